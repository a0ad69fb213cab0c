import json
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from persona.bootstrap import Interval
from persona.errors import ConfigError, DataError
from persona.methods import adaptive_bytes, all_bytes
from persona.prototypes import BankConfig, RefineConfig
from recsys.methods import Problem, train_method
from recsys.personalised import Personalised
from recsys.prototypes import fit_bank
from recsys.replay import (
    METRICS,
    POLICIES,
    ReplayConfig,
    boundaries,
    covered,
    cut,
    replay,
    report,
    windows_until,
    won_back,
)
from recsys.replay import policies as rules
from recsys.replay.stream import Replay, Served
from recsys.replay.windows import DAY
from tests.recsys.toy import SMALL, walks

LIMITS = RefineConfig(min_users=2, budget=10.0, eta=1.0)
CONFIG = replace(SMALL, protocol="time", epochs=3, editor_learning_rate=0.05)


@pytest.fixture(scope="module")
def problem():
    """In the test events all strides are longer than before: there is something to learn on the way."""
    return Problem(walks(users=150, events=14, turn=12), CONFIG)


@pytest.fixture(scope="module")
def model(problem):
    return train_method("persona_held_back", problem).scorer


@pytest.fixture(scope="module")
def bank(problem, model):
    return fit_bank(problem, model, BankConfig(k=3, specialise=False)).bank


@pytest.fixture(scope="module")
def replayed(problem, model, bank):
    before = {name: t.clone() for name, t in model.state_dict().items()}
    config = ReplayConfig(scenario="popularity", windows=4, shift=1, refinement=LIMITS)
    seen = []
    result = replay(problem, model, bank, config, lambda *note: seen.append(note))
    assert seen == [(policy, window) for policy in POLICIES for window in range(4)]
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items()), "nothing was trained"
    return result


# Windows.


def test_windows_hold_all_events_in_order_of_time(problem):
    times = problem.data.times[problem.split.test]
    starts = boundaries(times, 5)
    windows = cut(problem.data, problem.split.test, starts, 5, seed=0)
    assert sorted(np.concatenate([w.positions for w in windows])) == problem.split.test.tolist()
    sizes = [len(w.positions) for w in windows]
    assert max(sizes) - min(sizes) <= 1
    for one, other in pairwise(windows):
        assert problem.data.times[one.positions].max() < other.start <= problem.data.times[other.positions].min()


def test_events_of_one_time_stay_together_and_days_make_windows_of_the_calendar():
    times = np.array([0, 0, 0, 0, 7, 8, 8, 9])
    assert boundaries(times, 4).tolist() == [0, 7, 8]
    assert boundaries(np.array([5, 5 + DAY, 5 + 4 * DAY]), 2, days=1.0).tolist() == [5, 5 + DAY, 5 + 4 * DAY]
    with pytest.raises(DataError, match="one window"):
        boundaries(np.array([3, 3, 3]), 2)
    with pytest.raises(ConfigError, match="at least 2"):
        boundaries(times, 1)
    with pytest.raises(ConfigError, match="positive number of days"):
        boundaries(times, 2, days=-1.0)


def test_a_window_without_two_users_with_a_past_is_refused(problem):
    with pytest.raises(DataError, match="window 0"):
        cut(problem.data, problem.split.test[:1], np.array([0]), 5, seed=0)


# The stream.


def test_the_frozen_host_and_the_edits_are_those_of_an_ordinary_evaluation(problem, model, bank):
    """Without a shift, a window is a part of the test rows."""
    result = replay(problem, model, bank, ReplayConfig(windows=2, shift=1, refinement=LIMITS))
    starts = boundaries(problem.data.times[problem.split.test], 2)
    window = cut(problem.data, problem.split.test, starts, 5, CONFIG.seed)[1]
    for policy, scorer in (("host", rules.Personalised(problem.early_host()).eval()), ("edits", model)):
        expected = window.evaluation.run(scorer).per_user
        for metric in METRICS:
            np.testing.assert_array_equal(result.served[policy][1].values[metric], expected[metric])


def test_every_policy_serves_the_same_users_and_starts_from_the_same_release(replayed):
    assert tuple(replayed.served) == POLICIES
    for window in range(4):
        users = replayed.served["host"][window].users
        for served in replayed.served.values():
            np.testing.assert_array_equal(served[window].users, users)
    for metric in METRICS:
        first = {name: served[0].values[metric] for name, served in replayed.served.items()}
        for name in ("refined", "refined_checked"):
            np.testing.assert_array_equal(first[name], first["prototypes"])
        for name in ("finetune_adaptive", "finetune_all"):
            np.testing.assert_array_equal(first[name], first["host"])


def test_what_learns_differs_from_the_second_window_on(replayed):
    for name, origin in (("refined", "prototypes"), ("finetune_all", "host")):
        one, other = replayed.served[name][1].values, replayed.served[origin][1].values
        assert any((one[m] != other[m]).any() for m in METRICS)


def test_a_refined_version_is_also_compared_with_its_parent(replayed):
    refined, fixed = replayed.served["refined"], replayed.served["prototypes"]
    assert refined[0].parent == {}
    for metric in METRICS:
        np.testing.assert_array_equal(refined[1].parent[metric], fixed[1].values[metric])
    assert replayed.against_parents("prototypes", "uauc", range(4)) is None
    found = replayed.against_parents("refined", "uauc", [1])
    assert found.mean == pytest.approx((refined[1].values["uauc"] - refined[1].parent["uauc"]).mean())


def test_the_share_that_prototypes_miss_is_reported_where_there_are_some(replayed):
    fixed, refined = ([s.unexplained for s in replayed.served[name]] for name in ("prototypes", "refined"))
    assert all(0 < value < 1 for value in [*fixed, *refined])
    assert fixed[0] == refined[0]
    assert fixed[1:] != refined[1:]
    assert replayed.served["host"][0].unexplained is None


def test_costs_are_what_each_policy_sends_and_computes(problem, model, replayed):
    host = model.host
    for window, events in enumerate(replayed.events):
        spent = {name: served[window].spent for name, served in replayed.served.items()}
        users = len(replayed.served["host"][window].users)
        assert (spent["host"].bytes_sent, spent["host"].editor_passes) == (0, 0)
        assert (spent["edits"].bytes_sent, spent["edits"].editor_passes) == (events * adaptive_bytes(host), events)
        assert (spent["prototypes"].bytes_sent, spent["prototypes"].editor_passes) == (events, events)
        downloads = (spent["refined"].bytes_sent - events) / adaptive_bytes(host)
        assert downloads == 0 if window == 0 else users <= downloads <= 3 * users
        assert spent["finetune_all"].bytes_sent in (0, users * all_bytes(host))
        assert spent["finetune_adaptive"].bytes_sent in (0, users * adaptive_bytes(host))
        assert all(s.gradient_steps == 0 for name, s in spent.items() if not name.startswith("finetune"))
        assert spent["finetune_all"].gradient_steps > 0
        assert all(s.serving_seconds > 0 for s in spent.values())
    assert replayed.served["finetune_all"][1].spent.bytes_sent == users * all_bytes(host), (
        "tuned after the first window"
    )


# Policies.


@pytest.fixture
def window(problem):
    starts = boundaries(problem.data.times[problem.split.test], 2)
    return cut(problem.data, problem.split.test, starts, 5, CONFIG.seed)[0]


def test_without_a_cohort_no_prototype_moves(model, bank, window):
    policy = rules.Refined(model, bank, replace(LIMITS, min_users=1000))
    policy.learn(window)
    assert policy.parent is None
    assert policy.bank is bank


def test_a_refined_bank_stands_nearer_to_the_edits_of_its_window(model, bank, window):
    """Means of all members, untrimmed, are a step of Lloyd's."""
    policy = rules.Refined(model, bank, replace(LIMITS, trim=0.0, cap=1e9))
    before = policy.unexplained(window)
    policy.learn(window)
    assert policy.unexplained(window) < before


def test_a_checked_version_is_refused_if_past_events_speak_against_it(model, bank, window, monkeypatch):
    def served_by(prototypes):
        scorer = rules.ServedAtLevel(model, rules.Server(model.editor, prototypes), "prototype")
        return window.run(scorer).per_user["uauc"].mean()

    worse = min((replace(bank, prototypes=bank.prototypes * factor) for factor in (-50.0, 50.0)), key=served_by)
    assert served_by(worse) < served_by(bank)
    monkeypatch.setattr(rules, "refine", lambda *_: SimpleNamespace(bank=worse))
    checked, free = (rules.Refined(model, bank, LIMITS, monitor) for monitor in ("uauc", None))
    for policy in (checked, free):
        policy.learn(window)
    assert checked.bank is bank
    assert checked.parent is None
    assert free.bank is worse
    assert window.run(free.parent).per_user["uauc"].mean() == served_by(bank)


def test_fine_tuning_moves_what_it_says_on_a_copy_of_its_own(problem, window):
    for whole in (False, True):
        host = problem.early_host()
        policy = rules.Finetuned(host, whole, problem.data, replace(CONFIG, learning_rate=0.05))
        steps = policy.learn(window)
        rows = len(window.positions)
        assert steps % -(-(rows - rows // 5) // CONFIG.batch_size) == 0
        base = problem.early_host()
        moved = [not torch.equal(a, b) for a, b in zip(base.shared_parameters(), host.shared_parameters(), strict=True)]
        assert any(moved) == whole == all(moved)
        assert not torch.equal(next(base.adaptive_parameters()), next(host.adaptive_parameters()))


# Recovery.


@pytest.mark.parametrize(
    ("gains", "half", "most"),
    [
        ([2.0, 2.0, 0.0, 0.5, 1.0, 1.9], 2, 3),
        ([2.0, 2.0, 2.1, 0.0, 0.0, 0.0], 0, 0),
        ([2.0, 2.0, 0.0, 0.0, 0.9, 0.9], None, None),
        ([-1.0, 0.5, 1.0, 1.0, 1.0, 1.0], None, None),
    ],
)
def test_windows_until_the_gain_is_back(gains, half, most):
    assert windows_until(gains, 2, 0.5) == half
    assert windows_until(gains, 2, 0.9) == most


def stream(**values):
    """A replay of four users with these UAUC per window, the same for all of them."""
    served = {
        name: [Served(np.arange(4), {m: np.full(4, v) for m in METRICS}, {}, rules.Spent()) for v in series]
        for name, series in values.items()
    }
    return Replay(ReplayConfig(windows=4, shift=1), [0, 1, 2, 3], [4] * 4, served, 2)


def test_refinement_wins_back_a_share_of_what_the_shift_cost_the_release():
    shifted = stream(edits=[0.8, 0.9, 0.9, 0.9], prototypes=[0.79, 0.8, 0.85, 0.85], refined=[0.79, 0.8, 0.87, 0.89])
    won = won_back(shifted, "refined", "uauc")
    assert won.before.mean == pytest.approx(0.01)
    assert won.after.mean == pytest.approx(0.05)
    assert won.refined.mean == pytest.approx(0.03)
    assert won.share == pytest.approx(0.75)
    assert won.of_gap == pytest.approx(0.6)
    harmless = won_back(stream(edits=[0.8] * 4, prototypes=[0.7] * 4, refined=[0.7] * 4), "refined", "uauc")
    assert (harmless.share, harmless.of_gap) == (None, pytest.approx(0.0))
    ahead = won_back(stream(edits=[0.8] * 4, prototypes=[0.9] * 4, refined=[0.9] * 4), "refined", "uauc")
    assert (ahead.share, ahead.of_gap) == (None, None)


def test_the_energy_won_back_needs_no_labels():
    shifted = stream(edits=[0.8] * 4, prototypes=[0.8] * 4, refined=[0.8] * 4)
    for name, shares in {"prototypes": [0.1, 0.3, 0.5, 0.5], "refined": [0.1, 0.3, 0.2, 0.4]}.items():
        for window, share in zip(shifted.served[name], shares, strict=True):
            window.unexplained = share
    found = covered(shifted, "refined")
    assert (found.before, found.after, found.refined) == pytest.approx((0.1, 0.5, 0.3))
    assert found.share == pytest.approx(0.5)
    assert covered(replace(shifted, config=ReplayConfig(windows=4, shift=3)), "refined") is None


def test_a_user_counts_with_the_mean_of_their_windows():
    parts = [([1, 2], [0.0, 4.0]), ([2, 3], [2.0, 0.0])]
    served = {
        "a": [Served(np.array(u), {"uauc": np.array(v)}, {}, rules.Spent()) for u, v in parts],
        "b": [Served(np.array(u), {"uauc": np.zeros(2)}, {}, rules.Spent()) for u, _ in parts],
    }
    replay_ = Replay(ReplayConfig(windows=2, shift=1), [0, 1], [2, 2], served, 1)
    found = replay_.difference("a", "b", "uauc", [0, 1])
    assert isinstance(found, Interval)
    assert found.mean == pytest.approx((0.0 + 3.0 + 0.0) / 3)
    assert found.low < found.mean < found.high


# Report.


def test_the_report_is_plain_json_with_intervals_and_costs(replayed):
    value = json.loads(json.dumps(report(replayed)))
    assert (value["scenario"], value["shift"], value["prototypes"]) == ("popularity", 1, 3)
    assert set(value["policies"]) == set(POLICIES)
    for name, policy in value["policies"].items():
        assert len(policy["windows"]) == 4
        for index, row in enumerate(policy["windows"]):
            assert row["uauc"]["mean"] == pytest.approx(replayed.means(name, "uauc")[index])
            assert row["uauc"]["low"] <= row["uauc"]["mean"] <= row["uauc"]["high"]
        assert policy["spent"]["bytes_sent"] == sum(row["bytes_sent"] for row in policy["windows"])
        assert ("won_back" in policy) == ("covered" in policy) == name.startswith("refined")
    assert value["policies"]["host"]["overall"]["uauc"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert value["policies"]["refined"]["windows"][1]["uauc_vs_parent"] is not None


def test_only_a_split_by_time_can_be_replayed(model, bank):
    with pytest.raises(ConfigError, match="--protocol time"):
        replay(Problem(walks(), SMALL), model, bank, ReplayConfig())


def test_the_shift_lies_inside_the_stream(problem, model, bank):
    with pytest.raises(ConfigError, match="from 1 to 9"):
        ReplayConfig(windows=10, shift=10)
    with pytest.raises(ConfigError, match="only 2"):
        replay(problem, model, bank, ReplayConfig(days=0.002, shift=5))


def test_an_editor_that_changes_nothing_leaves_nothing_unexplained(problem):
    plain = problem.early_host()
    idle = Personalised(plain, problem.new_editor(plain), fixed_host=True).eval()
    bank = fit_bank(problem, idle, BankConfig(k=2, specialise=False)).bank
    with problem.reporting():
        window = SimpleNamespace(evaluation=problem.test)
    assert rules.Prototypes(idle, bank).unexplained(window) == 0.0
