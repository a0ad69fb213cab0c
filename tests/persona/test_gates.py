"""Decisions by intervals, on values whose differences are known."""

import numpy as np
import pytest

from persona.gates import below, difference, supported_share

RNG = np.random.default_rng(0)
BASE = RNG.random(200)
NOISE = RNG.normal(size=200)
NOISE -= NOISE.mean()


def values(whole: float, half: float, quarter: float, noise: float = 0.01) -> dict[float, np.ndarray]:
    """Per unit by share; each differs from no edit by its mean and by noise of its own."""
    gains = {1.0: whole, 0.5: half, 0.25: quarter}
    return {share: BASE + gain + noise * np.roll(NOISE, i) for i, (share, gain) in enumerate(gains.items())} | {
        0.0: BASE
    }


@pytest.mark.parametrize(
    ("gains", "noise", "share"),
    [
        ((0.02, 0.01, 0.0), 0.01, 1.0),
        ((-0.02, -0.01, -0.005), 0.01, 0.0),
        ((-0.02, 0.02, 0.01), 0.01, 0.5),
        ((-0.02, 0.01, 0.02), 0.01, 0.25),
        # What looks better by its mean alone is not taken.
        ((-0.02, 0.02, 0.01), 1.0, 1.0),
        ((-0.02, -0.03, -0.04), 1.0, 1.0),
        # Better than the whole edit, yet not than none: nothing is applied.
        ((-0.02, 0.0001, -0.01), 0.01, 0.0),
    ],
)
def test_a_share_has_to_be_proven(gains, noise, share):
    assert supported_share(values(*gains, noise=noise)) == share


def test_one_unit_proves_nothing():
    assert supported_share({1.0: np.zeros(1), 0.5: np.ones(1), 0.0: np.ones(1)}) == 1.0
    assert difference(np.zeros(1), np.ones(1)).mean == -1.0


def test_below_is_what_is_proven_worse():
    own = {"uauc": BASE - 0.02 + 0.01 * NOISE, "ndcg_10": BASE - 0.02 + NOISE, "mrr": BASE + 0.1}
    other = dict.fromkeys(own, BASE)
    assert list(below(own, other)) == ["uauc"]
    assert below(own, other)["uauc"].high < 0
