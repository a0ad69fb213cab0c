"""A device asks when its context has drifted, as often as was wanted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from persona.device.policy import RequestPolicy, fit_policy, plain_policy, requests, source_rows
from persona.errors import ConfigError, DataError, FormatError


def walks(devices=30, events=50, seed=0):
    """Coordinates that wander, device after device, and where each device begins."""
    rng = np.random.default_rng(seed)
    coordinates = np.cumsum(rng.normal(size=(devices, events, 3)), axis=1).reshape(-1, 3).astype(np.float32)
    return coordinates, np.arange(devices * events) % events == 0


@given(st.integers(0, 1000), st.floats(0, 10))
def test_requests_are_what_a_device_decides_in_turn(seed, threshold):
    coordinates, first = walks(3, 12, seed)
    policy = RequestPolicy(np.zeros(3, dtype=np.float32), np.eye(3, dtype=np.float32), threshold)
    asked, last = [], None
    for here, begins in zip(coordinates, first, strict=True):
        wants = policy.wants(policy.coordinates(here), None if begins else last)
        asked.append(wants)
        last = here if wants else last
    assert np.array_equal(asked, requests(coordinates, first, threshold))


def test_every_event_is_answered_with_the_last_edit_that_was_asked_for():
    asked = np.array([True, False, True, False, False, True, True, False])
    assert source_rows(asked).tolist() == [0, 0, 2, 2, 2, 5, 6, 6]


@pytest.mark.parametrize("rate", [0.5, 0.2, 0.1, 0.05])
def test_the_threshold_gives_the_wanted_rate(rate):
    policy = RequestPolicy(np.zeros(3, dtype=np.float32), np.eye(3, dtype=np.float32))
    coordinates, first = walks()
    calibrated = policy.calibrated(coordinates, first, rate)
    assert rate - 0.02 <= requests(coordinates, first, calibrated.threshold).mean() <= rate
    fresh, first = walks(seed=1)
    assert requests(fresh, first, calibrated.threshold).mean() == pytest.approx(rate, rel=0.2)


def test_at_rate_one_every_change_is_asked_about():
    policy = RequestPolicy(np.zeros(3, dtype=np.float32), np.eye(3, dtype=np.float32))
    coordinates, first = walks()
    assert requests(coordinates, first, policy.calibrated(coordinates, first, 1.0).threshold).all()


def test_the_first_event_of_a_device_always_asks():
    coordinates = np.zeros((6, 3), dtype=np.float32)
    first = np.array([True, False, False, True, False, False])
    assert requests(coordinates, first, 0.5).tolist() == first.tolist()


def test_wrong_rates_and_missing_contexts_are_refused():
    policy = RequestPolicy(np.zeros(3, dtype=np.float32), np.eye(3, dtype=np.float32))
    for rate in (0, -1, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="share of events"):
            policy.calibrated(*walks(), rate)
    empty = np.zeros((0, 3), dtype=np.float32)
    with pytest.raises(DataError, match="training data"):
        policy.calibrated(empty, np.zeros(0, dtype=bool), 0.1)
    with pytest.raises(DataError, match="training data"):
        fit_policy(empty, empty)


def test_fitted_distances_are_those_between_edits():
    rng = np.random.default_rng(0)
    summaries = rng.normal(3.0, 1.0, size=(500, 8))
    edits = summaries @ rng.normal(size=(8, 2)) @ rng.normal(size=(2, 20)) + 7
    policy = fit_policy(summaries, edits)
    assert policy.projection.shape == (8, 2)  # the edits span two dimensions
    here = policy.coordinates(summaries)
    pairs = rng.integers(500, size=(100, 2))
    got = np.linalg.norm(here[pairs[:, 0]] - here[pairs[:, 1]], axis=1)
    wanted = np.linalg.norm(edits[pairs[:, 0]] - edits[pairs[:, 1]], axis=1)
    assert np.allclose(got, wanted, rtol=0.02, atol=1e-3)


def test_what_no_edit_depends_on_does_not_count():
    rng = np.random.default_rng(1)
    summaries = rng.normal(size=(500, 4))
    policy = fit_policy(summaries, summaries[:, :1] @ np.ones((1, 3)))
    moved = np.array([0.0, 9.0, 9.0, 9.0])
    assert np.linalg.norm(policy.coordinates(moved) - policy.coordinates(np.zeros(4))) < 0.5
    assert plain_policy(summaries, [0]).coordinates(moved)[0] == pytest.approx(-summaries[:, 0].mean(), abs=1e-5)


def test_contexts_that_never_change_are_no_error():
    policy = fit_policy(np.ones((10, 4)), np.ones((10, 3)))
    assert np.isfinite(policy.coordinates(np.zeros(4))).all()


def test_round_trip_and_damage():
    policy = fit_policy(np.random.default_rng(2).normal(size=(50, 4)), np.random.default_rng(3).normal(size=(50, 6)))
    data = policy.to_bytes()
    again = RequestPolicy.from_bytes(data)
    assert np.array_equal(again.projection, policy.projection)
    assert (again.threshold, again.rate) == (policy.threshold, policy.rate)
    with pytest.raises(FormatError):
        RequestPolicy.from_bytes(data[:-3])
