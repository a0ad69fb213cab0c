"""Evaluation under a protocol: the same rows and the same negatives for every method.

``sampled``: the target against seeded uniform negatives that its user never touched (protocols ``paper`` and ``time``).
``full``: the target against the whole catalogue, without the items its user has seen before (protocol ``full``).

On many ranks each scores some blocks of rows; a block is computed as in one process, so that the metrics have the same bits.

Shapes: E events, C candidates, V items, U distinct users.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from persona.errors import DataError
from persona.torch_device import device_of, moved
from persona.training.ranks import Ranks, current
from recsys import metrics
from recsys.data.batches import Context
from recsys.data.negatives import sample_negatives
from recsys.data.sequences import SequenceData

NEGATIVES = 99
ROWS = 1024
FULL_ROWS = 256  # of the whole catalogue

Int64Array = NDArray[np.int64]


class Scorer(Protocol):
    """Anything that can be evaluated; one with a ``host`` is asked, and answers, where that lies."""

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
        blocks = torch.split(torch.arange(len(self.positions)), FULL_ROWS if self.full else ROWS)
        distinct = np.unique(self.users)
        device = device_of(scorer)
        if self.full:
            found = _shared(blocks, lambda rows: self._full_ranks(scorer, rows), current()).numpy()
            per_user = metrics.ranking_metrics(found[:, 0], self.users, ties=found[:, 1].astype(np.int64))
            return Evaluated({k: float(v.mean()) for k, v in per_user.items()}, per_user, distinct)

        def sampled(rows: Tensor) -> Tensor:
            asked = (self.contexts.index_select(rows), self.candidates[rows])
            return scorer.score(*moved(asked, device)).cpu()

        scores = _shared(blocks, sampled, current()).numpy()
        return Evaluated(metrics.summary(scores, self.users), metrics.per_user(scores, self.users), distinct)

    def _full_ranks(self, scorer: Scorer, rows: Tensor) -> Tensor:
        """(B, 2) float64, rank and ties of the targets of ``rows`` in the catalogue without what the user has seen."""
        positions = self.positions[rows.numpy()]
        contexts = moved(self.contexts.index_select(rows), device_of(scorer))
        scores = scorer.score_catalogue(contexts).cpu().numpy()
        target = self.data.items[positions][:, None]
        positive = np.take_along_axis(scores, target, axis=1)
        start = self.data.offsets[self.users[rows.numpy()]]
        counts = positions - start
        row = np.repeat(np.arange(len(positions)), counts)
        event = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + start[row]
        scores[row, self.data.items[event]] = -np.inf
        np.put_along_axis(scores, target, -np.inf, axis=1)
        greater, equal = metrics.tie_counts(np.concatenate([positive, scores], axis=1))
        return torch.from_numpy(np.column_stack([1.0 + greater + 0.5 * equal, equal]))


def _shared(blocks: Sequence[Tensor], work: Callable[[Tensor], Tensor], ranks: Ranks) -> Tensor:
    """What ``work`` makes of every block of rows, (E, ...) in the order of the blocks, on all ranks.

    Args:
        blocks: of equal size, only the last one may be shorter.
        work: rows (B,) -> (B, ...).
        ranks: they take turns, block by block. Where blocks run out the last one is done again and not counted: a table
            that lies in pieces on all ranks is looked up by all of them together.
    """
    last = len(blocks) - 1
    made = [work(blocks[min(first + ranks.rank, last)]) for first in range(0, len(blocks), ranks.size)]
    if ranks.size == 1:
        return torch.cat(made)
    padded = made[0].new_zeros(len(made), len(blocks[0]), *made[0].shape[1:])
    for turn, part in zip(padded, made, strict=True):
        turn[: len(part)] = part
    every = torch.stack(ranks.gather(padded), dim=1).flatten(0, 2)
    return every[: sum(map(len, blocks))]
