"""What a refinement does to every prototype: where to it moves and how far, which are split, which are retired.

Shapes: K prototypes before, K' after, L layers, d code width, R rows of the statistics.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from persona.errors import ConfigError
from persona.prototypes.assign import Assigner
from persona.prototypes.bank import MAX_PROTOTYPES
from persona.prototypes.metric import HeadMetric
from persona.prototypes.robust import capped_weights, robust_means, rows_by_prototype, weighted_mean
from persona.prototypes.split import split_test
from persona.prototypes.user_statistics import UserStatistics

_ROWS = 1 << 14


@dataclass(frozen=True)
class RefineConfig:
    """How far and on whose behalf prototypes may move.

    Attributes:
        eta: share of the way to the robust mean, in [0, 1]; 0 changes nothing.
        cap: contexts that a user counts for at one prototype, at most; 1 gives all users equal weight.
        trim: share of the weight left out, the farthest users first, in [0, 0.5].
        min_users: users, after trimming, without whom a prototype does not move.
        budget: largest movement of a prototype in one version, as a Frobenius norm over all layers.
        budget_unit: ``weights``: the budget is a share of the norm of the host's own adaptive weights; ``absolute``.
        bimodality: share of variance that two groups have to explain before a prototype is split (see ``split``).
        split_saving: share of the bank's remaining-edit energy that a split has to save; 1 splits nothing.
        max_missed: share of its members' edit energy that a prototype may miss; beyond it, it is split also where its members
            are one wide group, as when a drift has spread them. 1 splits two groups only.
        max_prototypes: no split beyond so many.
        retire_after: versions in a row without a context after which a prototype is retired; 0 retires nothing.
        seed: of the 2-means in the split test.

    Raises:
        ConfigError: a setting is out of range.
    """

    eta: float = 0.5
    cap: float = 8.0
    trim: float = 0.1
    min_users: int = 10
    budget: float = 0.1
    budget_unit: str = "weights"
    bimodality: float = 0.8
    split_saving: float = 0.05
    max_missed: float = 0.002
    max_prototypes: int = MAX_PROTOTYPES
    retire_after: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        shares = dict.fromkeys(("eta", "bimodality", "split_saving", "max_missed"), (0.0, 1.0))
        ranges = shares | {"trim": (0.0, 0.5)}
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name} is {getattr(self, name)}, but has to lie between {low} and {high}")
        for name in ("cap", "min_users", "budget"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, but has to be positive")
        if self.budget_unit not in ("weights", "absolute"):
            raise ConfigError(f"unknown budget_unit {self.budget_unit!r}. Known: absolute, weights")
        if not 1 <= self.max_prototypes <= MAX_PROTOTYPES:
            raise ConfigError(f"max_prototypes is {self.max_prototypes}, but has to lie between 1 and {MAX_PROTOTYPES}")
        if self.retire_after < 0 or self.seed < 0:
            raise ConfigError("retire_after and seed cannot be negative")

    def limit(self, metric: HeadMetric) -> float:
        """The budget as a Frobenius norm."""
        return self.budget * (metric.weight_norm if self.budget_unit == "weights" else 1.0)


@dataclass(frozen=True)
class Plan:
    """A refinement, decided but not yet done.

    Attributes:
        origin: (K',) old prototype that it continues or was split from.
        targets: (K', L, d) codes towards whose edit it moves.
        steps: (K',) share of the way, budget included; 0 where it stays.
        members: (K',) contexts of the window.
        idle: (K',) versions in a row without one.
        held: old prototypes that stay for want of a cohort.
        split: pairs (old index, new index of the lighter part).
        retired: old prototypes that end here.
    """

    origin: Tensor
    targets: Tensor
    steps: Tensor
    members: Tensor
    idle: Tensor
    held: tuple[int, ...]
    split: tuple[tuple[int, int], ...]
    retired: tuple[int, ...]

    def continuation(self, k: int) -> Tensor:
        """(K,) where each old prototype continues, -1 if retired; the lighter part of a split is no continuation."""
        where = torch.full((k,), -1, device=self.origin.device)
        first = len(self.origin) - len(self.split)
        where[self.origin[:first]] = torch.arange(first, device=where.device)
        return where


@dataclass(frozen=True)
class _Part:
    """A group of users and the prototype that will stand for it."""

    origin: int
    target: Tensor
    contexts: float
    moves: bool


def make_plan(assigner: Assigner, idle: Tensor, statistics: UserStatistics, config: RefineConfig) -> Plan:
    """Decide for every prototype from the window's statistics; ``idle`` (K,) as in the bank."""
    distances = _distances(assigner, statistics)
    robust = robust_means(statistics, distances, config.cap, config.trim)
    contexts = statistics.per_prototype()
    idle = torch.where(contexts > 0, 0, idle + 1)
    retires = config.eta > 0 and config.retire_after > 0
    retired = torch.nonzero(idle >= config.retire_after).squeeze(1).tolist() if retires else []
    halves = _splits(assigner, statistics, distances, statistics.k - len(retired), config)
    parts = [
        halves[j][0]
        if j in halves
        else _Part(j, robust.codes[j], float(contexts[j]), int(robust.users[j]) >= config.min_users)
        for j in range(statistics.k)
        if j not in retired
    ]
    split = tuple((j, len(parts) + i) for i, j in enumerate(halves))
    parts += [second for _, second in halves.values()]
    origin = torch.tensor([p.origin for p in parts], device=contexts.device)
    targets = torch.stack([p.target for p in parts])
    moves = torch.tensor([p.moves for p in parts], device=contexts.device)
    return Plan(
        origin=origin,
        targets=targets,
        steps=_steps(assigner.distances_to(targets, origin), config.limit(assigner.metric), config.eta) * moves,
        members=torch.tensor([p.contexts for p in parts], dtype=torch.float64, device=contexts.device),
        idle=idle[origin],
        held=tuple(p.origin for p in parts if not p.moves),
        split=split,
        retired=tuple(retired),
    )


def _distances(assigner: Assigner, statistics: UserStatistics) -> Tensor:
    """(R,) norm of every row's mean remaining edit, piece by piece so that no second copy of all codes is made."""
    pieces = torch.split(torch.arange(len(statistics), device=statistics.counts.device), _ROWS)
    return torch.cat([assigner.distances_to(statistics.means(rows), statistics.prototypes[rows]) for rows in pieces])


def _steps(distances: Tensor, limit: float, eta: float) -> Tensor:
    """(K',) share of the way to a target so far off that keeps to the budget."""
    return torch.clamp(limit / distances.clamp_min(1e-300), max=eta)


def _splits(
    assigner: Assigner, statistics: UserStatistics, distances: Tensor, k: int, config: RefineConfig
) -> dict[int, tuple[_Part, _Part]]:
    """The two parts of every prototype that is split, the heavier first."""
    weights = capped_weights(statistics, config.cap)
    energy = weights * distances.square()
    needed = config.split_saving * float(energy.sum())
    found: dict[int, tuple[_Part, _Part]] = {}
    if config.eta == 0:
        return found
    for j, rows in rows_by_prototype(statistics):
        # Two groups save at most what there is.
        if len(rows) < 2 * config.min_users or float(energy[rows].sum()) <= needed:
            continue
        codes = statistics.means(rows)
        if k + len(found) >= config.max_prototypes:
            break
        test = split_test(assigner.metric.points(codes), weights[rows], needed, config.min_users, config.seed)
        if test is None:
            continue
        missed = float(energy[rows].sum() / (weights[rows] @ assigner.metric.energies(codes)))
        too_wide = missed > config.max_missed and test.saved_unseen > needed
        if test.bimodality >= config.bimodality or too_wide:
            found[j] = (
                _part(j, codes, statistics.counts[rows], weights[rows], ~test.second),
                _part(j, codes, statistics.counts[rows], weights[rows], test.second),
            )
    return found


def _part(j: int, codes: Tensor, counts: Tensor, weights: Tensor, rows: Tensor) -> _Part:
    return _Part(j, weighted_mean(codes[rows], weights[rows]), float(counts[rows].sum()), True)
