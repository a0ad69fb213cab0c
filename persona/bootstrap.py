"""Intervals by bootstrap over units: users of a recommender, devices of a classifier.

The unit is what is resampled, because a method is judged by what it does for the next user, not for the next event: events of
one user are not independent, users are. Intervals are percentile intervals of the mean over units.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from persona.errors import ConfigError, DataError

# Indices drawn at once: 32 MiB of gathered values, whatever the number of units.
CHUNK = 1 << 22


@dataclass(frozen=True)
class Interval:
    """A mean over units with its confidence interval.

    ``str`` gives ``+0.0052 [+0.0036, +0.0069]``; a format specification applies to each number: ``f"{interval:.3f}"``.
    """

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero."""
        return self.low > 0 or self.high < 0

    def as_dict(self) -> dict[str, float]:
        """Keys ``mean``, ``low``, ``high``."""
        return asdict(self)

    def __format__(self, spec: str) -> str:
        spec = spec or "+z.4f"
        return f"{self.mean:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"

    def __str__(self) -> str:
        return format(self)


@dataclass(frozen=True)
class SeedsInterval:
    """The interval over units of a difference averaged over seeds, and how far the seeds lie apart."""

    interval: Interval
    seed_means: tuple[float, ...]

    @property
    def std(self) -> float:
        """Standard deviation of the seeds' means (n - 1); 0 for one seed."""
        return float(np.std(self.seed_means, ddof=1)) if len(self.seed_means) > 1 else 0.0

    def as_dict(self) -> dict[str, float]:
        """Keys ``mean``, ``low``, ``high``, ``seeds``, ``seed_min``, ``seed_max``, ``seed_std``."""
        return self.interval.as_dict() | {
            "seeds": len(self.seed_means),
            "seed_min": min(self.seed_means),
            "seed_max": max(self.seed_means),
            "seed_std": self.std,
        }

    def __str__(self) -> str:
        count = len(self.seed_means)
        return f"{self.interval} ({count} seeds {min(self.seed_means):+z.4f} .. {max(self.seed_means):+z.4f})"


def bootstrap_mean(values: ArrayLike, *, resamples: int = 2000, level: float = 0.95, seed: int = 0) -> Interval:
    """Mean of ``values`` with its percentile bootstrap interval.

    Args:
        values: [n] one number a unit, finite.
        resamples: bootstrap resamples, each n units with replacement.
        level: confidence, in (0, 1).
        seed: of the resampling; the same seed gives the same interval.

    Raises:
        DataError: fewer than two units, or a value that is not finite.
        ConfigError: ``level`` or ``resamples`` out of range.
    """
    units = _checked(values)
    if not 0.0 < level < 1.0:
        raise ConfigError(f"the level of an interval must lie between 0 and 1, got {level}")
    if resamples < 1:
        raise ConfigError(f"an interval needs at least one resample, got {resamples}")
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(_resampled_means(units, resamples, seed), [tail, 1.0 - tail])
    return Interval(float(units.mean()), float(low), float(high))


def paired_bootstrap(
    a: ArrayLike, b: ArrayLike, *, resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Mean of a - b over units, both measured on the same units, with its interval.

    Args:
        a: [n] values of one method, a unit each.
        b: [n] values of the other, the same units in the same order.
        resamples: as in ``bootstrap_mean``.
        level: as in ``bootstrap_mean``.
        seed: as in ``bootstrap_mean``.

    Raises:
        DataError: different numbers of units, and as ``bootstrap_mean``.
    """
    first, second = _checked(a), _checked(b)
    if len(first) != len(second):
        raise DataError(f"paired values must be of the same units, got {len(first)} and {len(second)} of them")
    return bootstrap_mean(first - second, resamples=resamples, level=level, seed=seed)


def paired_bootstrap_over_seeds(
    differences: Sequence[ArrayLike], *, resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> SeedsInterval:
    """Mean difference over seeds and units, with an interval over units.

    A unit's differences are averaged over seeds first, then units are resampled. Units are the sample from the population
    the claim is about; the same units come back in every seed, so that seeds times units would be counted as more
    independent evidence than there is. How much the training seed matters is another question, and a handful of seeds is too
    few to resample: their means are reported beside the interval.

    Args:
        differences: for every seed [n], aligned by unit.
        resamples: as in ``bootstrap_mean``.
        level: as in ``bootstrap_mean``.
        seed: of the resampling.

    Raises:
        DataError: no seeds, seeds with different units, and as ``bootstrap_mean``.
    """
    seeds = [_checked(values) for values in differences]
    if not seeds:
        raise DataError("an interval over seeds needs at least one seed, got none")
    if len({len(values) for values in seeds}) > 1:
        raise DataError(
            f"all seeds must be measured on the same units, got {[len(values) for values in seeds]} of them"
        )
    stacked = np.stack(seeds)
    interval = bootstrap_mean(stacked.mean(axis=0), resamples=resamples, level=level, seed=seed)
    return SeedsInterval(interval, tuple(float(mean) for mean in stacked.mean(axis=1)))


def _checked(values: ArrayLike) -> NDArray[np.float64]:
    units = np.asarray(values, dtype=np.float64)
    if units.ndim != 1 or len(units) < 2:
        raise DataError(f"an interval needs one value each of at least two units, got an array of shape {units.shape}")
    broken = ~np.isfinite(units)
    if broken.any():
        raise DataError(
            f"an interval needs finite values: {broken.sum()} of {len(units)} are not, the first is unit {broken.argmax()}"
        )
    return units


def _resampled_means(units: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    """Means [resamples], drawn in chunks of bounded memory."""
    rng = np.random.default_rng(seed)
    rows = max(1, CHUNK // len(units))
    means = np.empty(resamples)
    for start in range(0, resamples, rows):
        stop = min(start + rows, resamples)
        drawn = rng.integers(len(units), size=(stop - start, len(units)), dtype=np.int32)
        means[start:stop] = np.take(units, drawn).mean(axis=1)
    return means
