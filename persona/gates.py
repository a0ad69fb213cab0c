"""Decisions that have to be proven on validation units (users, devices): intervals decide, not means.

Shapes: U units.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from persona.bootstrap import Interval, paired_bootstrap

Floats = NDArray[np.float64]


def difference(a: Floats, b: Floats) -> Interval:
    """Mean of a - b, both (U,), with its interval; that of a single unit is endless, for one unit proves nothing."""
    if len(a) < 2:
        return Interval(float(np.mean(a - b)), -np.inf, np.inf)
    return paired_bootstrap(a, b)


def supported_share(values: Mapping[float, Floats]) -> float:
    """The share of an edit that is applied, given what each share achieves.

    An edit is applied as it was learned, unless no edit at all is better and the interval of the difference lies above zero. A share
    between needs more proof, for it is chosen among several: it has to be better than the whole edit and than none, both by their
    intervals; of those that are, the one with the best mean.

    Args:
        values: (U,) the metric that selects, more is better, of the same units by share; 1 and 0 are among the shares.
    """
    end = 0.0 if difference(values[0.0], values[1.0]).low > 0 else 1.0
    between = [
        share
        for share in values
        if 0 < share < 1 and all(difference(values[share], values[other]).low > 0 for other in (0.0, 1.0))
    ]
    return max(between, key=lambda share: float(values[share].mean()), default=end)


def below(own: Mapping[str, Floats], other: Mapping[str, Floats]) -> dict[str, Interval]:
    """The metrics of which ``own`` has less than ``other`` with the whole interval below zero; (U,) values of both by metric."""
    found = {metric: difference(own[metric], other[metric]) for metric in own}
    return {metric: interval for metric, interval in found.items() if interval.high < 0}
