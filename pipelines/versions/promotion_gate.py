"""The gate before a version becomes the champion: not worse beyond a stated margin, and no segment harmed.

Overall, a metric passes where even the lower end of the interval of its difference to the champion is above -margin: absence of
evidence is not enough. A segment (users by activity, say) is smaller and its interval wider, so there the burden is turned
round: it is harmed where the whole interval is below zero, or the mean below -segment_margin.

Differences are in the direction of better: for a metric of which less is better, champion minus candidate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from persona.bootstrap import Interval, paired_bootstrap
from persona.errors import ConfigError, MismatchError, nearest
from pipelines.versions.snapshots import SEGMENT, UNIT, Snapshot, less_is_better

# The tag that says what a release was held to, and how it begins where the release was kept from being the candidate.
TAG, REFUSED = "gate.release", "refused"
# Values of the champion carry this ending when two snapshots are joined.
OTHER = " of the other"


@dataclass(frozen=True)
class Limits:
    """What the gate lets pass.

    Attributes:
        metrics: last names of the metrics that count, for example ``uauc``; all if empty.
        margin: how much worse a metric may be, by the lower end of its interval.
        segment_margin: how much worse a segment may be on average.

    Raises:
        ConfigError: a margin is negative.
    """

    metrics: tuple[str, ...] = ()
    margin: float = 0.002
    segment_margin: float = 0.01

    def __post_init__(self) -> None:
        if min(self.margin, self.segment_margin) < 0:
            raise ConfigError("the margins of the gate cannot be negative: give how much worse a version may be")


@dataclass(frozen=True)
class Check:
    """One question the gate asked.

    Attributes:
        metric: whole name.
        segment: empty for all units.
        units: how many.
        champion: mean value of the champion.
        candidate: mean value of the candidate.
        gain: candidate minus champion, in the direction of better, with its interval over units.
        margin: what it had to keep to.
        passed: whether it did.
    """

    metric: str
    segment: str
    units: int
    champion: float
    candidate: float
    gain: Interval
    margin: float
    passed: bool

    def __str__(self) -> str:
        where = f" for {self.segment}" if self.segment else ""
        return f"{self.metric}{where}: {self.gain}, margin {self.margin:g}"


def check(candidate: Snapshot, champion: Snapshot, limits: Limits) -> list[Check]:
    """Ask the gate's questions: every metric overall, then by segment.

    Raises:
        ConfigError: a metric that counts was not measured.
        MismatchError: the two were not measured on the same rows.
    """
    same_rows(candidate, champion)
    both = paired(candidate, champion)
    asked = [
        (metric, segment)
        for metric in _chosen(candidate, champion, limits.metrics)
        for segment in ("", *candidate.segments)
    ]
    return [_check(both, metric, segment, limits) for metric, segment in asked]


def same_rows(a: Snapshot, b: Snapshot) -> None:
    """Refuse to compare what was measured on different rows.

    Raises:
        MismatchError: protocols, test rows or units differ.
    """
    if (a.protocol, a.rows) != (b.protocol, b.rows) or set(a.units[UNIT]) != set(b.units[UNIT]):
        raise MismatchError(
            f"the two versions were not tested on the same rows (protocol {a.protocol}, {len(a.units)} {a.kind}s, rows "
            f"{a.rows[:12]}; protocol {b.protocol}, {len(b.units)} {b.kind}s, rows {b.rows[:12]}): release both from one workspace"
        )


def paired(a: Snapshot, b: Snapshot) -> pl.DataFrame:
    """The units of both, ``b``'s values under names that end in `` of the other``; the segments are ``a``'s."""
    return a.units.join(b.units, on=UNIT, suffix=OTHER, how="inner")


def gains(both: pl.DataFrame, metric: str) -> NDArray[np.float64]:
    """What every unit of ``paired`` gains from ``b`` to ``a``, in the direction of better."""
    gain: NDArray[np.float64] = both[metric].to_numpy() - both[f"{metric}{OTHER}"].to_numpy()
    return -gain if less_is_better(metric) else gain


def _chosen(candidate: Snapshot, champion: Snapshot, names: Sequence[str]) -> list[str]:
    """Whole names of the metrics that count."""
    known = [metric for metric in candidate.metrics if metric in champion.metrics]
    short = {metric.rpartition("/")[2]: metric for metric in known}
    for name in names:
        if name not in known and name not in short:
            raise ConfigError(f"the metric {name!r} was not measured for both versions: {nearest(name, short)}")
    return [name if name in known else short[name] for name in names] or known


def _check(both: pl.DataFrame, metric: str, segment: str, limits: Limits) -> Check:
    margin = limits.segment_margin if segment else limits.margin
    own = both.filter(pl.col(SEGMENT) == segment) if segment else both
    difference = gains(own, metric)
    mean = float(difference.mean())
    gain = paired_bootstrap(difference, np.zeros_like(difference)) if len(own) > 1 else Interval(mean, mean, mean)
    passed = gain.low >= -margin if not segment else gain.high >= 0 and gain.mean >= -margin
    champion, candidate = (float(own[name].mean()) for name in (f"{metric}{OTHER}", metric))  # type: ignore[arg-type]
    return Check(metric, segment, len(own), champion, candidate, gain, margin, passed)
