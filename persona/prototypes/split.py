"""When a prototype stands for two groups of users, and what they are.

A prototype is split if its members' remaining edits are

* **bimodal**: 2-means explains more than ``bimodality`` of their variance along the line through its two means. A normal
  distribution reaches 2/pi = 0.64 there and a uniform one 0.75, the most that a distribution without a valley does by
  symmetry; two separate groups come near 1;
* **large**: the split takes at least ``saving`` of the remaining-edit energy of the whole bank;

and each half is a cohort of its own. Users count with capped weights, untrimmed: a far group is trimmed as an outlier until it
is a cohort, not after.

Shapes: n rows (users at one prototype), D coordinates of the head metric.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from persona.errors import DataError
from persona.prototypes.kmeans import kmeans


@dataclass(frozen=True)
class SplitTest:
    """What two groups of one prototype's members have between them.

    Attributes:
        second: (n,) bool, the rows of the lighter group.
        bimodality: share of the variance along the line between the groups that the groups explain.
        saved: energy that two prototypes would save.
        smaller: rows of the smaller group.
    """

    second: Tensor
    bimodality: float
    saved: float
    smaller: int


def split_test(points: Tensor, weights: Tensor, seed: int) -> SplitTest | None:
    """2-means on members' edits: points (n, D) in the head metric, weights (n,). None if all are one."""
    try:
        found = kmeans(points, 2, seed=seed, weights=weights, restarts=2)
    except DataError:
        return None
    second = found.labels == 1
    if float(weights[second].sum()) > float(weights[~second].sum()):
        second = ~second
    axis = found.centres[1] - found.centres[0]
    along = points.double() @ (axis / axis.norm())
    whole, within = _scatter(along, weights), _scatter(along[second], weights[second])
    within += _scatter(along[~second], weights[~second])
    centre = (weights.unsqueeze(1) * points.double()).sum(0) / weights.sum()
    spread = float(weights @ (points.double() - centre).square().sum(1))
    rows = int(second.sum())
    return SplitTest(second, 1 - within / whole, spread - found.inertia, min(rows, len(points) - rows))


def _scatter(values: Tensor, weights: Tensor) -> float:
    mean = (weights @ values) / weights.sum()
    return float(weights @ (values - mean).square())
