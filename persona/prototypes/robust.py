"""Robust means of the codes that came to each prototype.

Users, not contexts, are what is averaged: a user counts with the mean of their own contexts at the prototype and with a weight
of at most ``cap`` contexts, so whoever sends more gains nothing. The users whose mean edit lies farthest from the prototype
are left out, up to a share ``trim`` of the weight. As edits are affine in the codes, the edit of the mean code is the mean of
the edits.

Shapes: R rows (a user at a prototype), L layers, d code width, K prototypes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from persona.prototypes.user_statistics import UserStatistics

_ROUNDING = 1e-12


@dataclass(frozen=True)
class RobustMeans:
    """One robust mean a prototype.

    Attributes:
        codes: (K, L, d) mean codes; zero where nobody came.
        weights: (K,) weight that they stand on.
        users: (K,) int64 users that they stand on.
    """

    codes: Tensor
    weights: Tensor
    users: Tensor


def capped_weights(statistics: UserStatistics, cap: float) -> Tensor:
    """(R,) weight of every row: its contexts, but at most ``cap``."""
    return statistics.counts.clamp_max(cap)


def trimmed(distances: Tensor, weights: Tensor, trim: float) -> Tensor:
    """(n,) which rows stay when the farthest ones are left out, up to a share ``trim`` of the weight.

    Rows at one distance stay or go together, so the order of rows does not count.
    """
    order = torch.argsort(distances, stable=True)
    reached = weights[order].cumsum(0)
    needed = (1 - trim) * reached[-1] * (1 - _ROUNDING)
    last = int(torch.searchsorted(reached, needed))
    return distances <= distances[order[min(last, len(order) - 1)]]


def robust_means(statistics: UserStatistics, distances: Tensor, cap: float, trim: float) -> RobustMeans:
    """Robust mean code of every prototype.

    Args:
        statistics: of the window.
        distances: (R,) norm of the remaining edit of every row's mean code.
        cap: contexts that a user may count for, at most.
        trim: share of the weight to leave out, the farthest users first; in [0, 1).
    """
    weights, device = capped_weights(statistics, cap), distances.device
    codes = torch.zeros(statistics.k, *statistics.sums.shape[1:], dtype=torch.float64, device=device)
    total = torch.zeros(statistics.k, dtype=torch.float64, device=device)
    users = torch.zeros(statistics.k, dtype=torch.int64, device=device)
    for j, rows in rows_by_prototype(statistics):
        kept = rows[trimmed(distances[rows], weights[rows], trim)]
        codes[j] = weighted_mean(statistics.means(kept), weights[kept])
        total[j], users[j] = weights[kept].sum(), len(kept)
    return RobustMeans(codes, total, users)


def weighted_mean(codes: Tensor, weights: Tensor) -> Tensor:
    """(n, L, d), (n,) -> (L, d)."""
    return torch.einsum("n,nld->ld", weights, codes) / weights.sum()


def rows_by_prototype(statistics: UserStatistics) -> Iterator[tuple[int, Tensor]]:
    """Every prototype that somebody came to, with its rows."""
    order = torch.argsort(statistics.prototypes, stable=True)
    sizes = torch.bincount(statistics.prototypes, minlength=statistics.k).tolist()
    for j, rows in enumerate(torch.split(order, sizes)):
        if len(rows):
            yield j, rows
