"""Evaluation under a protocol: the same rows and the same negatives for every method.

``sampled``: the target against seeded uniform negatives that its user never touched (protocols ``paper`` and ``time``).
``full``: the target against the whole catalogue, without the items its user has seen before (protocol ``full``).

Shapes: E events, C candidates, V items, U distinct users.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from persona.errors import DataError
from recsys import metrics
from recsys.batches import Context
from recsys.negatives import sample_negatives
from recsys.sequences import SequenceData

NEGATIVES = 99
ROWS = 1024

Int64Array = NDArray[np.int64]


class Scorer(Protocol):
    """Anything that can be evaluated."""

    def score(self, context: Context, candidates: Tensor) -> Tensor:
        """Logits (B, C) of candidates (B, C)."""

    def score_catalogue(self, context: Context) -> Tensor:
        """Logits (B, V + 1); column 0 is -inf."""


@dataclass(frozen=True)
class Evaluated:
    """What a method achieved.

    Attributes:
        summary: one number a metric.
        per_user: (U,) values a metric, aligned with ``users``.
        users: (U,) the distinct users.
    """

    summary: dict[str, float]
    per_user: dict[str, NDArray[np.float64]]
    users: Int64Array


class Evaluation:
    """Rows to evaluate on, with their candidates.

    Args:
        data: the events.
        positions: (E,) the events that are the targets.
        full: rank against the whole catalogue instead of sampled negatives.
        max_length: context length T of the hosts.
        seed: of the negatives.
        negatives: how many, if sampled.
        limit: use at most this many events, drawn from ``seed`` (for validation during training).

    Raises:
        DataError: there are no events to evaluate on.
    """

    def __init__(
        self,
        data: SequenceData,
        positions: Int64Array,
        *,
        max_length: int,
        full: bool = False,
        seed: int = 0,
        negatives: int = NEGATIVES,
        limit: int | None = None,
    ) -> None:
        if len(positions) == 0:
            raise DataError("there are no events to evaluate on: the log is too short for this protocol")
        if limit is not None and limit < len(positions):
            chosen = np.random.default_rng([seed, 17]).choice(len(positions), limit, replace=False)
            positions = positions[np.sort(chosen)]
        self.data, self.positions, self.full, self.max_length = data, positions, full, max_length
        self.users = data.user_of(positions)
        self.seed, self.negatives = seed, negatives

    @cached_property
    def candidates(self) -> Tensor:
        """(E, 1 + negatives) int64, column 0 the target."""
        rng = np.random.default_rng([self.seed, 1])
        count = min(self.negatives, self.data.n_items - 1)
        drawn = sample_negatives(self.data, self.users, count, rng, distinct=True)
        return torch.from_numpy(np.column_stack([self.data.items[self.positions], drawn]).astype(np.int64))

    @cached_property
    def contexts(self) -> Context:
        """What every device knew just before its target."""
        items, lengths = self.data.contexts(self.positions, self.max_length)
        return Context(torch.from_numpy(items), torch.from_numpy(lengths))

    @torch.no_grad()
    def run(self, scorer: Scorer) -> Evaluated:
        """Score every row and compute the metrics of the protocol."""
        blocks = torch.split(torch.arange(len(self.positions)), 256 if self.full else ROWS)
        distinct = np.unique(self.users)
        if self.full:
            pairs = [self._full_ranks(scorer, rows) for rows in blocks]
            ranks, ties = (np.concatenate(part) for part in zip(*pairs, strict=True))
            per_user = metrics.ranking_metrics(ranks, self.users, ties=ties)
            return Evaluated({k: float(v.mean()) for k, v in per_user.items()}, per_user, distinct)
        parts = [scorer.score(self.contexts.index_select(rows), self.candidates[rows]) for rows in blocks]
        scores = torch.cat(parts).numpy()
        return Evaluated(metrics.summary(scores, self.users), metrics.per_user(scores, self.users), distinct)

    def _full_ranks(self, scorer: Scorer, rows: Tensor) -> tuple[NDArray[np.float64], Int64Array]:
        """Ranks (B,) and ties (B,) of the targets of ``rows`` in the catalogue without what the user has seen."""
        positions = self.positions[rows.numpy()]
        scores = scorer.score_catalogue(self.contexts.index_select(rows)).numpy()
        target = self.data.items[positions][:, None]
        positive = np.take_along_axis(scores, target, axis=1)
        start = self.data.offsets[self.users[rows.numpy()]]
        counts = positions - start
        row = np.repeat(np.arange(len(positions)), counts)
        event = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + start[row]
        scores[row, self.data.items[event]] = -np.inf
        np.put_along_axis(scores, target, -np.inf, axis=1)
        greater, equal = metrics.tie_counts(np.concatenate([positive, scores], axis=1))
        return 1.0 + greater + 0.5 * equal, equal
