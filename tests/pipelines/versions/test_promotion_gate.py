import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persona.errors import ConfigError, MismatchError
from pipelines.versions import promotion_gate, snapshots
from pipelines.versions.promotion_gate import Limits
from tests.pipelines.made_versions import snapshot

USERS = 90
CHAMPION = snapshot(np.linspace(0.2, 0.8, USERS), USERS)


def shifted(by, users=USERS):
    return snapshot(np.linspace(0.2, 0.8, users) + np.asarray(by), users)


def failed(checks):
    return [(check.metric, check.segment) for check in checks if not check.passed]


def test_an_equal_or_better_version_passes():
    for gain in (0.0, 0.05):
        checks = promotion_gate.check(shifted(gain), CHAMPION, Limits(margin=0.0, segment_margin=0.0))
        assert [check.segment for check in checks] == ["", "light", "medium", "heavy"]
        assert failed(checks) == []
        assert checks[0].gain.mean == pytest.approx(gain)
        assert checks[0].units == USERS


def test_a_worse_version_fails_beyond_the_margin_only():
    assert failed(promotion_gate.check(shifted(-0.004), CHAMPION, Limits(margin=0.005, segment_margin=0.1))) == [
        ("time/ndcg_10", segment) for segment in ("light", "medium", "heavy")
    ]
    assert ("time/ndcg_10", "") in failed(promotion_gate.check(shifted(-0.006), CHAMPION, Limits(margin=0.005)))


def test_an_uncertain_gain_does_not_pass_overall():
    noise = np.random.default_rng(0).normal(0.0, 0.3, USERS)
    checks = promotion_gate.check(shifted(noise - noise.mean()), CHAMPION, Limits(margin=0.002))
    assert checks[0].gain.mean == pytest.approx(0.0)
    assert failed(checks)[0] == ("time/ndcg_10", "")


def test_a_gain_on_average_that_harms_one_segment_fails_there():
    by = np.full(USERS, 0.05)
    by[:30] = -0.02
    checks = promotion_gate.check(shifted(by), CHAMPION, Limits(segment_margin=0.5))
    assert failed(checks) == [("time/ndcg_10", "light")]
    assert "time/ndcg_10 for light: -0.0200" in str(checks[1])


def test_less_is_better_for_losses():
    def loss(values):
        return snapshots.from_columns(
            "user", "time", "r", units=["a", "b"], metrics={"time/logloss": values}, segments=["light", "light"]
        )

    checks = promotion_gate.check(loss([0.3, 0.3]), loss([0.5, 0.5]), Limits())
    assert failed(checks) == []
    assert checks[0].gain.mean == pytest.approx(0.2)
    assert len(failed(promotion_gate.check(loss([0.5, 0.5]), loss([0.3, 0.3]), Limits()))) == 2


def test_units_are_paired_by_name_and_not_by_place():
    names = [f"u{i}" for i in range(USERS)]
    order = np.random.default_rng(1).permutation(USERS)
    values = np.linspace(0.2, 0.8, USERS)
    shuffled = snapshots.from_columns(
        "user",
        "time",
        "rows",
        units=[names[i] for i in order],
        metrics={"time/ndcg_10": values[order]},
        segments=["light"] * USERS,
    )
    both = promotion_gate.paired(shuffled, CHAMPION)
    assert np.abs(promotion_gate.gains(both, "time/ndcg_10")).max() == 0.0


@pytest.mark.parametrize("other", [snapshot(rows="elsewhere"), snapshot(users=8)])
def test_versions_tested_on_different_rows_are_not_compared(other):
    with pytest.raises(MismatchError, match=r"not tested on the same rows .* release both from one workspace"):
        promotion_gate.check(snapshot(), other, Limits())


def test_metrics_that_count_are_named_by_their_last_name():
    assert len(promotion_gate.check(CHAMPION, CHAMPION, Limits(metrics=("ndcg_10",)))) == 4
    with pytest.raises(ConfigError, match="'ndgc_10' was not measured for both versions: did you mean 'ndcg_10'"):
        promotion_gate.check(CHAMPION, CHAMPION, Limits(metrics=("ndgc_10",)))


@pytest.mark.parametrize("margins", [{"margin": -0.1}, {"segment_margin": -1.0}])
def test_negative_margins_are_refused(margins):
    with pytest.raises(ConfigError, match="cannot be negative"):
        Limits(**margins)


@settings(max_examples=20)
@given(st.floats(-0.1, 0.1), st.floats(0.0, 0.1), st.floats(0.0, 0.1))
def test_a_wider_margin_never_turns_a_pass_into_a_failure(gain, margin, more):
    def passes(width):
        return promotion_gate.check(shifted(gain, 12), shifted(0.0, 12), Limits(margin=width, segment_margin=width))[
            0
        ].passed

    assert passes(margin + more) >= passes(margin)
