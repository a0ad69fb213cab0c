import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap

from persona import bootstrap as statistics
from persona.bootstrap import Interval, bootstrap_mean, paired_bootstrap, paired_bootstrap_over_seeds
from persona.errors import ConfigError, DataError

finite = st.floats(-1e3, 1e3)


def normal(n, seed=0, shift=0.0):
    return np.random.default_rng(seed).normal(shift, 1.0, n)


def test_interval_agrees_with_scipy():
    values = normal(80, seed=3) ** 2
    ours = bootstrap_mean(values, resamples=20_000)
    theirs = bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    assert ours.mean == pytest.approx(values.mean())
    # The ends of both are random; their standard error is about 0.003 here.
    assert ours.low == pytest.approx(theirs.low, abs=0.015)
    assert ours.high == pytest.approx(theirs.high, abs=0.015)


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_interval_covers_the_true_mean_as_often_as_it_says(level):
    """600 samples of 60 units: the share of intervals that hold the mean has a standard error below 0.017."""
    rng = np.random.default_rng(7)
    hits = 0
    for _ in range(600):
        interval = bootstrap_mean(rng.exponential(1.0, 60) - 1.0, resamples=400, level=level)
        hits += interval.low <= 0.0 <= interval.high
    # A percentile interval of 60 skewed units covers 1 to 2 points less than it says.
    assert hits / 600 == pytest.approx(level - 0.015, abs=0.04)


def test_interval_narrows_with_the_square_root_of_units():
    few, many = bootstrap_mean(normal(100)), bootstrap_mean(normal(10_000))
    assert (few.high - few.low) / (many.high - many.low) == pytest.approx(10, rel=0.2)


@given(st.lists(st.tuples(finite, finite), min_size=2, max_size=30))
def test_swapping_the_methods_mirrors_the_interval(pairs):
    a, b = np.array(pairs).T
    forth, back = paired_bootstrap(a, b, resamples=200), paired_bootstrap(b, a, resamples=200)
    np.testing.assert_allclose(
        [forth.mean, forth.low, forth.high], [-back.mean, -back.high, -back.low], atol=1e-9, rtol=0
    )


@given(st.lists(finite, min_size=2, max_size=30))
def test_a_method_against_itself_differs_by_nothing(values):
    interval = paired_bootstrap(values, values, resamples=50)
    assert interval == Interval(0.0, 0.0, 0.0)
    assert not interval.excludes_zero


def test_pairing_removes_what_units_differ_in():
    units = normal(500, seed=1) * 10
    a, b = units + 0.1 + normal(500, seed=2) * 0.1, units
    assert paired_bootstrap(a, b).excludes_zero
    unpaired = paired_bootstrap(a, np.random.default_rng(0).permutation(b))
    assert not unpaired.excludes_zero


def test_same_seed_same_interval_whatever_the_chunks(monkeypatch):
    values = normal(50)
    whole = bootstrap_mean(values, resamples=300)
    assert bootstrap_mean(values, resamples=300) == whole
    assert bootstrap_mean(values, resamples=300, seed=1) != whole
    monkeypatch.setattr(statistics, "CHUNK", 50 * 7)
    assert bootstrap_mean(values, resamples=300) == whole


def test_memory_is_bounded_for_many_units(monkeypatch):
    """All resamples at once would take 24 MB here, one chunk takes 1.2 MB."""
    monkeypatch.setattr(statistics, "CHUNK", 100_000)
    values = normal(1000)
    tracemalloc.start()
    bootstrap_mean(values, resamples=2000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4e6


def test_seeds_are_averaged_per_unit_before_units_are_resampled():
    differences = [normal(200, seed=s, shift=0.3) for s in range(3)]
    result = paired_bootstrap_over_seeds(differences)
    assert result.interval == bootstrap_mean(np.mean(differences, axis=0))
    assert result.seed_means == pytest.approx([d.mean() for d in differences])
    assert result.std == pytest.approx(np.std([d.mean() for d in differences], ddof=1))


def test_repeating_a_seed_adds_no_evidence():
    once = paired_bootstrap_over_seeds([normal(100)])
    thrice = paired_bootstrap_over_seeds([normal(100)] * 3)
    assert thrice.interval.low == pytest.approx(once.interval.low, abs=1e-12)
    assert thrice.interval.high == pytest.approx(once.interval.high, abs=1e-12)
    assert once.std == 0.0


def test_intervals_print_and_go_to_json():
    interval = Interval(0.00521, 0.0036, 0.0069)
    assert str(interval) == "+0.0052 [+0.0036, +0.0069]"
    assert f"{Interval(0.9, 0.88, 0.92):.2f}" == "0.90 [0.88, 0.92]"
    assert str(Interval(-0.00001, -1.0, 0.0)) == "+0.0000 [-1.0000, +0.0000]"
    assert json.loads(json.dumps(interval.as_dict())) == {"mean": 0.00521, "low": 0.0036, "high": 0.0069}
    result = paired_bootstrap_over_seeds([[1.0, 1.0], [3.0, 3.0]])
    assert str(result) == "+2.0000 [+2.0000, +2.0000] (2 seeds +1.0000 .. +3.0000)"
    assert json.loads(json.dumps(result.as_dict())) == pytest.approx(
        {"mean": 2, "low": 2, "high": 2, "seeds": 2, "seed_min": 1, "seed_max": 3, "seed_std": 2**0.5}
    )


@pytest.mark.parametrize(
    ("interval", "excludes"),
    [((1, 0.5, 2), True), ((-1, -2, -0.5), True), ((1, 0.0, 2), False), ((0, -1, 1), False), ((-1, -2, 0.0), False)],
)
def test_excludes_zero_only_when_strictly_on_one_side(interval, excludes):
    assert Interval(*interval).excludes_zero is excludes


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap_mean([1.0]), "at least two units"),
        (lambda: bootstrap_mean(np.zeros((3, 3))), r"shape \(3, 3\)"),
        (lambda: bootstrap_mean([1.0, np.nan, 2.0]), "1 of 3 are not, the first is unit 1"),
        (lambda: paired_bootstrap([1.0, 2.0], [1.0, 2.0, 3.0]), "same units, got 2 and 3"),
        (lambda: paired_bootstrap_over_seeds([]), "at least one seed"),
        (lambda: paired_bootstrap_over_seeds([[1.0, 2.0], [1.0, 2.0, 3.0]]), r"same units, got \[2, 3\]"),
    ],
)
def test_broken_values_are_refused(call, message):
    with pytest.raises(DataError, match=message):
        call()


@pytest.mark.parametrize("settings", [{"level": 0.0}, {"level": 1.0}, {"level": 95}, {"resamples": 0}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError):
        bootstrap_mean([1.0, 2.0], **settings)
