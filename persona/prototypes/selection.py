"""How many prototypes: judged by a validation score and by stability, for several K.

Stability asks whether the partition is a property of the users or of chance: the adjusted Rand index between the partitions
of two seeds, and between those of two random halves of the users, each applied to all contexts. Source: Hubert and Arabie,
"Comparing partitions" (Journal of Classification, 1985).

Shapes: N contexts, L layers, d code width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from statistics import fmean, pstdev
from typing import Any

import torch
from torch import Tensor

from persona.editor import ParameterEditor
from persona.errors import ConfigError, DataError
from persona.prototypes.assign import Assigner
from persona.prototypes.bank import PrototypeBank
from persona.prototypes.metric import HeadMetric
from persona.prototypes.partition import Partition, fit_bank


@dataclass(frozen=True)
class Candidate:
    """One K.

    Attributes:
        k: number of prototypes.
        score: mean validation score over seeds; larger is better.
        score_std: standard deviation over seeds.
        stability_seeds: mean adjusted Rand index between seeds; 1 is equal, 0 chance.
        stability_halves: mean adjusted Rand index between halves of the users, over seeds.
        inertia: smallest inertia over seeds.
    """

    k: int
    score: float
    score_std: float
    stability_seeds: float
    stability_halves: float
    inertia: float


@dataclass(frozen=True)
class Choice:
    """The table and the K chosen from it."""

    candidates: tuple[Candidate, ...]
    k: int

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def choose_k(
    editor: ParameterEditor,
    codes: Tensor,
    ks: Sequence[int],
    score: Callable[[PrototypeBank], float],
    *,
    tolerance: float,
    seeds: Sequence[int] = (0, 1, 2),
    users: Tensor | None = None,
    weights: Tensor | None = None,
    space: str = "edits",
    min_stability: float = -1.0,
) -> Choice:
    """Fit banks of several sizes and choose the smallest that is nearly as good as the best.

    Args:
        editor: that made the codes.
        codes: (N, L, d) of the training contexts.
        ks: sizes to try; one for which there are too few distinct edits is left out, unless none is smaller.
        score: of a bank on validation data, never on test data; larger is better.
        tolerance: how far below the best mean score the chosen K may be.
        seeds: of partitions and halves; at least two.
        users: (N,) whom each context belongs to; halves are of users, or of contexts where no users are given.
        weights: (N,) weights of the contexts.
        space: as in ``fit_bank``.
        min_stability: between halves; a K below it is chosen only if all are.

    Raises:
        ConfigError: no K, fewer than two seeds, or a negative tolerance.
        DataError: a score is not finite, or there are too few distinct edits for the smallest size.
    """
    if not ks or len(set(seeds)) < 2 or tolerance < 0:
        raise ConfigError("choosing K needs at least one K, two different seeds and a tolerance that is not negative")
    metric = HeadMetric(editor)
    owners = torch.arange(len(codes), device=codes.device) if users is None else users
    candidates: list[Candidate] = []
    for k in sorted(set(ks)):
        try:
            fits = [fit_bank(metric, codes, k, seed=s, space=space, weights=weights, restarts=2) for s in seeds]
            halves = [_halves(metric, codes, k, owners, weights, space, s) for s in seeds]
        except DataError:
            if not candidates:
                raise
            break
        candidates.append(_candidate(k, fits, halves, score))
    stable = [c for c in candidates if c.stability_halves >= min_stability] or candidates
    best = max(c.score for c in stable)
    return Choice(tuple(candidates), min(c.k for c in stable if c.score >= best - tolerance))


def _candidate(
    k: int, fits: Sequence[Partition], halves: Sequence[float], score: Callable[[PrototypeBank], float]
) -> Candidate:
    """What partitions of one size, and the agreement of their halves, say of it."""
    scores = [score(f.bank) for f in fits]
    if not all(abs(s) < float("inf") for s in scores):
        raise DataError(f"the validation score of {k} prototypes is not finite: look at the validation data")
    between_seeds = [adjusted_rand_index(a.labels, b.labels) for a, b in combinations(fits, 2)]
    inertia = min(f.inertia for f in fits)
    return Candidate(k, fmean(scores), pstdev(scores), fmean(between_seeds), fmean(halves), inertia)


def adjusted_rand_index(a: Tensor, b: Tensor) -> float:
    """(N,), (N,) labels -> agreement of two partitions: 1 if they are equal up to names, 0 on average by chance.

    Raises:
        DataError: different lengths, or no label at all.
    """
    if len(a) != len(b) or not len(a):
        raise DataError(f"two partitions of the same contexts are needed, but have {len(a)} and {len(b)} labels")
    width = int(b.max()) + 1
    table = torch.bincount(a * width + b, minlength=(int(a.max()) + 1) * width).reshape(-1, width).double()
    together, rows, columns = _pairs(table), _pairs(table.sum(1)), _pairs(table.sum(0))
    expected = rows * columns / max(_pairs(table.sum()), 1.0)
    largest = (rows + columns) / 2
    return 1.0 if largest == expected else (together - expected) / (largest - expected)


def _pairs(counts: Tensor) -> float:
    return float((counts * (counts - 1) / 2).sum())


def _halves(
    metric: HeadMetric, codes: Tensor, k: int, owners: Tensor, weights: Tensor | None, space: str, seed: int
) -> float:
    """Adjusted Rand index of the partitions that two random halves of the users make of all contexts."""
    users, index = torch.unique(owners, return_inverse=True)
    order = torch.randperm(len(users), generator=torch.Generator().manual_seed(seed)).to(codes.device)
    first = (order < len(users) / 2)[index]
    labels = []
    for half in (first, ~first):
        part = fit_bank(
            metric,
            codes[half],
            k,
            seed=seed,
            space=space,
            weights=None if weights is None else weights[half],
            restarts=2,
        )
        labels.append(Assigner(metric, part.bank.prototypes)(codes).prototypes)
    return adjusted_rand_index(*labels)
