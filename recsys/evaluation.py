"""Evaluation under a protocol: the same rows and the same negatives for every method.

``sampled``: the target against seeded uniform negatives that its user never touched (protocols ``paper`` and ``time``).
``full``: the target against the whole catalogue (protocol ``full``), without the items its user has seen before unless those are
offered, too: where users come back to what they had, most targets are such items. Negatives are never touched by the user, so that
there sampled metrics flatter whoever knows the history; the whole catalogue does not.

What is reported under ``time`` is all of it: besides uniform negatives the whole catalogue, and as a control of what is
personal, negatives drawn by popularity (``reported``).

On many ranks each scores some blocks of rows; a block is computed as in one process, so that the metrics have the same bits.

Shapes: E events, C candidates, V items, U distinct users.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from persona.errors import DataError
from persona.torch_device import device_of, moved
from persona.training.ranks import Ranks, current
from recsys import metrics
from recsys.data.batches import Context
from recsys.data.negatives import popular_negatives, sample_negatives
from recsys.data.sequences import SequenceData

NEGATIVES = 99
ROWS = 1024
FULL_ROWS, FULL_SCORES = 256, 2**25  # of the whole catalogue: rows at once, and scores at once
LIST = 10  # items that a user is shown
# Pairs of row and item that a report ranks at most: some seconds of a host that multiplies vectors, and twenty of one where every
# item attends to the history.
PAIRS, ATTENDED_PAIRS = 2**28, 2**22
# Metrics by which a report tells that it was made with all evaluations that its protocol has.
REPORTED = {"paper": ("uauc",), "full": ("ndcg_10", "novelty"), "time": ("uauc", "full_ndcg_10", "popular_uauc")}

Int64Array = NDArray[np.int64]


class Scorer(Protocol):
    """Anything that scores items by what is in a context; one with a ``host`` is asked, and answers, where that lies."""

    def score(self, context: Context, candidates: Tensor) -> Tensor:
        """Logits (B, C) of candidates (B, C)."""

    def score_catalogue(self, context: Context) -> Tensor:
        """Logits (B, V + 1); column 0 is -inf."""


@runtime_checkable
class Follower(Protocol):
    """What scores items by where in the log they are asked for: it follows the stream."""

    def at(self, positions: Int64Array) -> Scorer:
        """The scorer of the contexts of these events (B,), which knows nothing of them and of what came later."""


@dataclass(frozen=True)
class Evaluated:
    """What a method achieved.

    Attributes:
        summary: one number a metric.
        per_user: (U,) values a metric, aligned with ``users``; a metric of certain rows only (the ``cold`` ones, or a sample) has
            a value for each user who has any of them, in the same order.
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
        known: (V + 1,) how often training saw each item. Where it is given, a full ranking is judged beyond accuracy, too.
        seen: leave items that the user has seen before in a full ranking, but for those of the target's own basket.
        popular: draw negatives as often as they are targets here, instead of uniformly.
        alongside: evaluations whose metrics are reported with those of this one, by the prefix of their names.

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
        known: Int64Array | None = None,
        seen: bool = False,
        popular: bool = False,
        alongside: Mapping[str, Evaluation] | None = None,
    ) -> None:
        if len(positions) == 0:
            raise DataError("there are no events to evaluate on: the log is too short for this protocol")
        if limit is not None and limit < len(positions):
            chosen = np.random.default_rng([seed, 17]).choice(len(positions), limit, replace=False)
            positions = positions[np.sort(chosen)]
        self.data, self.positions, self.full, self.max_length = data, positions, full, max_length
        self.users = data.user_of(positions)
        self.seed, self.negatives, self.known, self.popular, self.seen = seed, negatives, known, popular, seen
        self.alongside = dict(alongside or {})

    @cached_property
    def candidates(self) -> Tensor:
        """(E, 1 + negatives) int64, column 0 the target."""
        rng = np.random.default_rng([self.seed, 1])
        count = min(self.negatives, self.data.n_items - 1)
        if self.popular:
            drawn = popular_negatives(self.data, self.users, count, rng, self.data.items[self.positions])
        else:
            drawn = sample_negatives(self.data, self.users, count, rng, distinct=True)
        return torch.from_numpy(np.column_stack([self.data.items[self.positions], drawn]).astype(np.int64))

    @cached_property
    def contexts(self) -> Context:
        """What every device knew just before its target."""
        items, lengths = self.data.contexts(self.positions, self.max_length)
        return Context(torch.from_numpy(items), torch.from_numpy(lengths))

    @torch.no_grad()
    def run(self, scorer: Scorer | Follower) -> Evaluated:
        """Score every row and compute the metrics of the protocol, and those of the evaluations alongside."""
        own = self._ranked(scorer) if self.full else self._sampled(scorer)
        for prefix, other in self.alongside.items():
            found = other.run(scorer)
            own.summary.update({f"{prefix}_{name}": value for name, value in found.summary.items()})
            own.per_user.update({f"{prefix}_{name}": values for name, values in found.per_user.items()})
        return own

    def _sampled(self, scorer: Scorer | Follower) -> Evaluated:
        device = device_of(scorer)

        def score(rows: Tensor) -> Tensor:
            asked = (self.contexts.index_select(rows), self.candidates[rows])
            return self._at(scorer, rows).score(*moved(asked, device)).cpu()

        scores = self._rowwise(scorer, ROWS, score)
        users = np.unique(self.users)
        return Evaluated(metrics.summary(scores, self.users), metrics.per_user(scores, self.users), users)

    def _ranked(self, scorer: Scorer | Follower) -> Evaluated:
        size = max(1, min(FULL_ROWS, FULL_SCORES // self.data.n_items))
        found = self._rowwise(scorer, size, lambda rows: self._full_ranks(scorer, rows))
        ranks, ties, lists = found[:, 0], found[:, 1].astype(np.int64), found[:, 2:].astype(np.int64)
        per_user = metrics.ranking_metrics(ranks, self.users, ties=ties)
        totals: dict[str, float] = {}
        if self.known is not None:
            per_user |= metrics.beyond_accuracy(lists, self.users, self.known)
            per_user |= self._cold_and_warm(ranks, ties)
            cold = self.known[self.data.items[self.positions]] == 0
            totals["coverage"] = metrics.coverage(lists, self.data.n_items)
            totals |= {"cold_targets": float(cold.mean()), "events": float(len(cold))}
        summary = {name: float(values.mean()) for name, values in per_user.items()} | totals
        return Evaluated(summary, per_user, np.unique(self.users))

    def _cold_and_warm(self, ranks: NDArray[np.float64], ties: Int64Array) -> dict[str, NDArray[np.float64]]:
        """``ndcg_10`` on targets that training never saw and on those it did, each of the users who have any, if two do."""
        assert self.known is not None
        seen = self.known[self.data.items[self.positions]] > 0
        return {
            f"{name}_ndcg_{LIST}": metrics.ranking_metrics(ranks[rows], self.users[rows], (LIST,), ties[rows])[
                f"ndcg_{LIST}"
            ]
            for name, rows in (("cold", ~seen), ("warm", seen))
            if len(np.unique(self.users[rows])) > 1  # no interval over fewer
        }

    def _rowwise(self, scorer: Scorer | Follower, size: int, work: Callable[[Tensor], Tensor]) -> NDArray[Any]:
        """What ``work`` makes of ``size`` rows at once, (E, ...); what follows the stream is asked in the order of time."""
        order = torch.arange(len(self.positions))
        if isinstance(scorer, Follower):
            order = torch.from_numpy(np.argsort(self.data.times[self.positions], kind="stable"))
        made = _shared(torch.split(order, size), work, current())
        found = torch.empty_like(made)
        found[order] = made
        return found.numpy()

    def _at(self, scorer: Scorer | Follower, rows: Tensor) -> Scorer:
        return scorer.at(self.positions[rows.numpy()]) if isinstance(scorer, Follower) else scorer

    def _full_ranks(self, scorer: Scorer | Follower, rows: Tensor) -> Tensor:
        """(B, 2 + LIST) float64: rank and ties of the targets of ``rows`` in the catalogue, without what is not offered.

        Behind them the items that the user would be shown, the best first; 0 where the catalogue has no more.
        """
        positions = self.positions[rows.numpy()]
        contexts = moved(self.contexts.index_select(rows), device_of(scorer))
        scores = self._at(scorer, rows).score_catalogue(contexts).cpu().numpy()
        target = self.data.items[positions][:, None]
        positive = np.take_along_axis(scores, target, axis=1)
        start = self.data.basket_start[positions] if self.seen else self.data.offsets[self.users[rows.numpy()]]
        counts = positions - start
        row = np.repeat(np.arange(len(positions)), counts)
        event = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + start[row]
        scores[row, self.data.items[event]] = -np.inf
        np.put_along_axis(scores, target, positive, axis=1)
        lists = _best(torch.from_numpy(scores))
        np.put_along_axis(scores, target, -np.inf, axis=1)
        greater, equal = metrics.tie_counts(np.concatenate([positive, scores], axis=1))
        return torch.from_numpy(np.column_stack([1.0 + greater + 0.5 * equal, equal, lists]))


def _best(scores: Tensor) -> Tensor:
    """(B, V + 1) scores, -inf where an item is not offered -> (B, LIST) items, the best first, 0 where no more are offered."""
    values, items = torch.topk(scores, min(LIST, scores.shape[1]))
    return nn.functional.pad(items.where(values.isfinite(), 0), (0, LIST - items.shape[1]))


def reported(evaluation: Evaluation, *, attends: bool) -> Evaluation:
    """``evaluation`` of a stream with the whole catalogue (``full``) and negatives drawn by popularity (``popular``) alongside.

    Args:
        evaluation: the test rows with uniform negatives; it knows how often training saw each item.
        attends: whether every item attends to the history, which is slow: a smaller sample of rows is ranked.
    """
    data, rows = evaluation.data, evaluation.positions
    length, seed = evaluation.max_length, evaluation.seed
    ranked = catalogue_rows(evaluation, attends=attends)
    evaluation.alongside |= {
        "full": Evaluation(
            data, ranked, max_length=length, full=True, seed=seed, known=evaluation.known, seen=evaluation.seen
        ),
        "popular": Evaluation(data, rows, max_length=length, seed=seed, negatives=evaluation.negatives, popular=True),
    }
    return evaluation


def catalogue_rows(evaluation: Evaluation, *, attends: bool, part: int = 1) -> Int64Array:
    """The rows of ``evaluation`` that are ranked against the whole catalogue: of many a sample, every user's share as even as can be.

    Args:
        evaluation: the rows.
        attends: as in ``reported``.
        part: one in so many of what a report may cost.
    """
    limit = max(1, (ATTENDED_PAIRS if attends else PAIRS) // (part * evaluation.data.n_items))
    return _spread(evaluation.positions, evaluation.users, limit)


def _spread(positions: Int64Array, users: Int64Array, limit: int) -> Int64Array:
    """At most ``limit`` of ``positions`` (E,), every user's share of them as even as can be, the same whatever the seed."""
    if limit >= len(positions):
        return positions
    rng = np.random.default_rng(17)
    shuffled = rng.permutation(len(positions))
    by_user = shuffled[np.argsort(users[shuffled], kind="stable")]
    _, first, counts = np.unique(users[by_user], return_index=True, return_counts=True)
    turn = np.arange(len(by_user)) - np.repeat(first, counts)  # the rows of a user come one in each turn
    chosen = by_user[np.lexsort((rng.random(len(turn)), turn))][:limit]
    return positions[np.sort(chosen)]


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
