"""When a prototype stands for two groups of users or for one that is too wide, and what the two parts are.

A prototype is split if its members' remaining edits are

* **bimodal**: along the line through the means of 2-means, the two groups explain more than ``bimodality`` of the variance of
  users that 2-means did not see. A normal distribution reaches 2/pi = 0.64 there, a uniform one 0.75; two separate groups
  come near 1. On users that it saw 2-means always looks good: with fewer users than coordinates it tells noise apart;
* **large**: the split takes more than ``saving`` of the remaining-edit energy of the whole bank;

and each half is a cohort of its own. Where a prototype misses too much of its members' edits (``RefineConfig.max_missed``), one
wide group is split as well, if the parts made of one half of the users save as much on the other half: cutting noise in two
saves nothing on users that it did not see. This is how the codebooks of Linde, Buzo and Gray grow ("An algorithm for vector
quantizer design", IEEE Transactions on Communications, 1980).

Users count with capped weights, untrimmed: a far group is trimmed as an outlier until it is a cohort, not after.

Shapes: n rows (users at one prototype), D coordinates of the head metric.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from persona.errors import DataError
from persona.prototypes.clustering import kmeans


@dataclass(frozen=True)
class SplitTest:
    """What two groups of one prototype's members have between them.

    Attributes:
        second: (n,) bool, the rows of the lighter group.
        bimodality: share of the variance of unseen users along the line between the groups that the groups explain.
        saved: energy that two prototypes would save.
        saved_unseen: the same on unseen users: what the parts of one half of the users save the other half, and the other way round.
    """

    second: Tensor
    bimodality: float
    saved: float
    saved_unseen: float


def split_test(points: Tensor, weights: Tensor, saving: float, cohort: int, seed: int) -> SplitTest | None:
    """2-means on members' edits.

    Args:
        points: (n, D) in the head metric, one a user.
        weights: (n,) of the users.
        saving: energy that two prototypes have to save more of.
        cohort: users that each group needs.
        seed: of 2-means.

    Returns:
        None where the groups save or hold too little, or there is nothing to tell apart.
    """
    points = points.double()
    centre = (weights.unsqueeze(1) * points).sum(0) / weights.sum()
    square = (points - centre).square().sum(1)
    # Sorted by what they are, not by who they are, the rows' order decides nothing; halves alternate in it.
    order = torch.argsort(square, stable=True)
    x, w = points[order], weights[order]
    try:
        found = kmeans(x, 2, seed=seed, weights=w, restarts=2)
        saved = float(weights @ square) - found.inertia
        if saved <= saving or min(torch.bincount(found.labels).tolist()) < cohort:
            return None
        halves = [
            (kmeans(x[i::2], 2, seed=seed, weights=w[i::2], restarts=2).centres, x[1 - i :: 2], w[1 - i :: 2])
            for i in (0, 1)
        ]
    except DataError:
        return None
    second = torch.zeros(len(points), dtype=torch.bool, device=points.device)
    second[order] = found.labels == 1
    if float(weights[second].sum()) > float(weights[~second].sum()):
        second = ~second
    return SplitTest(second, min(_explained(*half) for half in halves), saved, sum(_saved(*half) for half in halves))


def _explained(centres: Tensor, points: Tensor, weights: Tensor) -> float:
    """Share of the points' variance along the line through two centres that being nearer to one of them explains."""
    along = points @ (centres[1] - centres[0])
    second = along > float(centres.square().sum(1).diff() / 2)
    if second.all() or not second.any():
        return 0.0
    within = _scatter(along[second], weights[second]) + _scatter(along[~second], weights[~second])
    return 1 - within / _scatter(along, weights)


def _saved(centres: Tensor, points: Tensor, weights: Tensor) -> float:
    """Energy that two centres made of others save against the points' own mean; negative where they are worse."""
    mean = (weights @ points) / weights.sum()
    one = (points - mean).square().sum(1)
    two = torch.cdist(points, centres).square().amin(1)
    return float(weights @ (one - two))


def _scatter(values: Tensor, weights: Tensor) -> float:
    mean = (weights @ values) / weights.sum()
    return float(weights @ (values - mean).square())
