"""Objectives: what an epoch is, for ``persona.training.loop.fit``.

``RowObjective`` trains one target a row, with negatives drawn anew every epoch: any host, any editor. ``SequenceObjective``
trains all positions of a sequence at once, with negatives shared by a batch: GRU4Rec and SASRec without an editor.

Shapes: B rows, T positions, C candidates, N negatives.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from persona.errors import ConfigError, nearest
from persona.training.objective import Part
from persona.training.ranks import Ranks
from recsys import losses
from recsys.data.batches import Batch, Context, features
from recsys.data.negatives import sample_negatives
from recsys.data.sequences import SequenceData
from recsys.evaluation import Evaluation
from recsys.hosts import SequentialHost
from recsys.personalised import Personalised

DRAWN_BATCHES = 64
POOLED_BATCHES = 16
SHARED = 16  # targets that share one encoding of their context; a power of two
LOSSES = ("bce", "sampled_softmax", "gbce")

Int64Array = NDArray[np.int64]


@dataclass(frozen=True)
class LossConfig:
    """How a batch is made and judged.

    Attributes:
        loss: ``bce`` (as published), ``sampled_softmax`` or ``gbce``.
        negatives: drawn for every target (rows) or for every batch (sequences).
        batch_size: rows or sequences.
        sequences: train all positions of a sequence at once.
        monitor: metric that selects the epoch.

    Raises:
        ConfigError: a setting is unknown or out of range.
    """

    loss: str = "bce"
    negatives: int = 4
    batch_size: int = 1024
    sequences: bool = False
    monitor: str = "uauc"

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ConfigError(f"unknown loss {self.loss!r}: {nearest(self.loss, LOSSES)}")
        for name in ("negatives", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, but it has to be at least 1")

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def batch_loss(config: LossConfig, positive: Tensor, negatives: Tensor, n_items: int) -> Tensor:
    """Mean loss of positives (...) against negatives (..., N)."""
    if config.loss == "sampled_softmax":
        return losses.sampled_softmax(positive, negatives)
    if config.loss == "gbce":
        return losses.gbce(positive, negatives, n_items)
    return losses.bce(torch.cat([positive.unsqueeze(-1), negatives], dim=-1))


class _Objective:
    """A model, the events it learns from, and held-out rows that select the epoch.

    Args:
        model: host, or host with editor.
        data: the events.
        positions: (R,) events to learn from.
        validation: rows that select the epoch.
        config: loss, negatives, batch size.
        seed: of the order and of the negatives.
    """

    def __init__(
        self,
        model: Personalised,
        data: SequenceData,
        positions: Int64Array,
        validation: Evaluation,
        config: LossConfig,
        seed: int,
    ) -> None:
        self.model, self.data, self.positions = model, data, positions
        self.validation, self.config, self.seed = validation, config, seed

    @property
    def monitor(self) -> str:
        """Larger is better."""
        return self.config.monitor

    def validate(self) -> dict[str, float]:
        """The metrics of the protocol."""
        summary = self.validation.run(self.model).summary
        if self.config.monitor not in summary:
            raise ConfigError(f"unknown metric {self.config.monitor!r}: {nearest(self.config.monitor, summary)}")
        return summary


class RowObjective(_Objective):
    """One target a row: its context, the target, and fresh negatives.

    All targets of a basket have the same context, which is encoded and edited once for up to ``SHARED`` of them: a batch
    holds ``batch_size`` targets, M = 1, 2, 4, ... to a context.
    """

    def batches(self, epoch: int) -> Iterator[Batch]:
        """The rows in a new order, with new negatives: candidates (B, M (1 + N)), target by target."""
        rng = np.random.default_rng([self.seed, epoch])
        groups = self._groups(rng.permutation(self.positions))
        streams = [self._stream(rng.permutation(g) if len(groups) > 1 else g, rng) for g in groups]
        order = np.repeat(np.arange(len(groups)), [-(-len(g) // self._contexts(g)) for g in groups])
        if len(groups) > 1:
            rng.shuffle(order)
        for index in order:
            yield next(streams[index])

    def loss(self, batch: Batch) -> Tensor:
        """Mean over targets."""
        return self.judge(self.model(batch.features))

    def judge(self, logits: Tensor) -> Tensor:
        """Mean loss over targets, in float32, of the logits (B, M (1 + N)) of a batch."""
        logits = logits.float().view(-1, 1 + self.config.negatives)
        return batch_loss(self.config, logits[:, 0], logits[:, 1:], self.data.n_items)

    def part(self, batch: Batch, ranks: Ranks) -> Part:
        """This rank's rows of a batch; all rows have as many targets."""
        rows = ranks.rows(len(batch))
        context = Context(rows.of(batch.context.items), rows.of(batch.context.lengths))
        return Part(Batch(context, rows.of(batch.candidates)), rows, rows.share)

    def _groups(self, order: Int64Array) -> list[Int64Array]:
        """Positions (P,) -> for each M, (G, M) positions that share a context: a basket's as powers of two up to ``SHARED``."""
        if not self.data.baskets:
            return [order[:, None]]
        basket = self.data.basket_start[order]
        by_basket: Int64Array = np.argsort(basket, kind="stable")
        order = order[by_basket]
        _, first, inverse, counts = np.unique(
            basket[by_basket], return_index=True, return_inverse=True, return_counts=True
        )
        rank, rest = np.arange(len(order)) - first[inverse], counts[inverse] % SHARED
        # A basket of 16 a + r: a groups of 16, then the powers of two that r is the sum of, largest first.
        place, size = rank - (counts[inverse] - rest), np.full(len(order), SHARED)
        bit = SHARED // 2
        while bit:
            has = (rest & bit) > 0
            size[has & (place >= 0) & (place < bit)] = bit
            place = np.where(has & (place >= 0), place - bit, place)
            place[size == bit] = -1
            bit //= 2
        return [order[size == m].reshape(-1, m) for m in np.unique(size)]

    def _contexts(self, groups: Int64Array) -> int:
        """Contexts of a batch of ``groups`` (G, M)."""
        return max(1, self.config.batch_size // int(groups.shape[1]))

    def _stream(self, groups: Int64Array, rng: np.random.Generator) -> Iterator[Batch]:
        """Batches of ``groups`` (G, M)."""
        size = self._contexts(groups)
        # Negatives are drawn for many batches at once: looking up what users touched costs more than drawing.
        for block in _blocks(groups, DRAWN_BATCHES * size):
            targets = block.reshape(-1)
            negatives = sample_negatives(self.data, self.data.user_of(targets), self.config.negatives, rng)
            items, lengths = map(torch.from_numpy, self.data.contexts(block[:, 0], self.model.host.config.max_length))
            drawn = np.column_stack([self.data.items[targets], negatives]).astype(np.int64)
            candidates = torch.from_numpy(drawn.reshape(len(block), -1))
            for rows in torch.split(torch.arange(len(block)), size):
                yield Batch(Context(items[rows], lengths[rows]), candidates[rows])


@dataclass(frozen=True)
class SequenceBatch:
    """Windows of B users: context (B, T), the item after each position (B, T), 0 where none, and shared negatives (N,)."""

    context: Context
    targets: Tensor
    negatives: Tensor


class SequenceObjective(_Objective):
    """All positions of a window at once; every target meets the same N negatives of its batch (all items if N >= V).

    Every epoch cuts each user's training events into windows of T + 1 at a new offset, so that contexts of all lengths
    occur and no event is left out.

    Raises:
        ConfigError: the host scores every candidate by itself and cannot share a state between targets.
    """

    def __init__(
        self,
        model: Personalised,
        data: SequenceData,
        positions: Int64Array,
        validation: Evaluation,
        config: LossConfig,
        seed: int,
    ) -> None:
        super().__init__(model, data, positions, validation, config, seed)
        if not isinstance(model.host, SequentialHost) or model.editor is not None:
            raise ConfigError(
                f"{model.host.config.kind} with an editor of its own or with attention to the target cannot train whole "
                "sequences: use rows (sequences = false)"
            )
        if data.baskets:
            raise ConfigError(
                "whole sequences would let a target see the rest of its basket: use rows (sequences = false)"
            )
        self.host = model.host
        self.trained = np.zeros(data.n_events, dtype=bool)
        self.trained[positions] = True

    def batches(self, epoch: int) -> Iterator[SequenceBatch]:
        """Windows in a new order and at new offsets, with new negatives."""
        rng = np.random.default_rng([self.seed, epoch])
        width = self.host.config.max_length
        start, stop = self._windows(rng, width)
        for rows in self._similar(rng, stop - start):
            width = int((stop - start)[rows].max()) - 1
            index = start[rows, None] + np.arange(width + 1)
            valid = index < stop[rows, None]
            items = np.where(valid, self.data.items[np.minimum(index, self.data.n_events - 1)], 0).astype(np.int64)
            trained = valid & self.trained[np.minimum(index, self.data.n_events - 1)]
            lengths = np.minimum(valid.sum(1) - 1, width)
            history = np.where(np.arange(width) < lengths[:, None], items[:, :-1], 0)
            yield SequenceBatch(
                Context(torch.from_numpy(history), torch.from_numpy(lengths)),
                torch.from_numpy(np.where(trained, items, 0)[:, 1:]),
                torch.from_numpy(self._negatives(rng)),
            )

    def _similar(self, rng: np.random.Generator, sizes: Int64Array) -> Iterator[Int64Array]:
        """Batches of windows of similar ``sizes``, in random order: padding would be most of a batch of mixed ones."""
        for pool in _blocks(rng.permutation(len(sizes)), POOLED_BATCHES * self.config.batch_size):
            batches = list(_blocks(pool[np.argsort(sizes[pool], kind="stable")], self.config.batch_size))
            for i in rng.permutation(len(batches)):
                yield batches[i]

    def _negatives(self, rng: np.random.Generator) -> Int64Array:
        """(N,) drawn items; where that many would be the catalogue, every item once, which makes the softmax exact."""
        if self.config.negatives >= self.data.n_items:
            return np.arange(1, self.data.n_items + 1)
        return rng.integers(1, self.data.n_items + 1, self.config.negatives)

    def _windows(self, rng: np.random.Generator, width: int) -> tuple[Int64Array, Int64Array]:
        """Start and stop of every window that holds a target; neighbours share one event, target of one, context of the next."""
        users = self.data.user_of(np.flatnonzero(self.trained))
        last = np.zeros(self.data.n_users, dtype=np.int64)
        np.maximum.at(last, users, np.flatnonzero(self.trained) + 1)
        known = np.unique(users)
        first, last = self.data.offsets[known], last[known]
        # The last window ends at the user's last target, moved back by a random share of a window for long users.
        shift = np.where(last - first > width + 1, rng.integers(0, width, len(known)), 0)
        ends = last + shift
        counts = np.maximum(1, -(-(ends - first - 1) // width))
        user = np.repeat(np.arange(len(known)), counts)
        step = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        stop = ends[user] - step * width
        start = np.maximum(first[user], stop - width - 1)
        stop = np.minimum(stop, last[user])
        # Where a part of the past is trained, windows without a target in (start, stop) would have no loss.
        before = np.append(0, np.cumsum(self.trained))
        keep = before[stop] > before[start + 1]
        return start[keep], stop[keep]

    def part(self, batch: SequenceBatch, ranks: Ranks) -> Part:
        """This rank's windows of a batch, and its share of the targets; the negatives are those of the whole batch."""
        rows = ranks.rows(len(batch.context))
        targets = rows.of(batch.targets)
        context = Context(rows.of(batch.context.items), rows.of(batch.context.lengths))
        share = int((targets > 0).sum()) / int((batch.targets > 0).sum()) if rows.counted else 0.0
        return Part(SequenceBatch(context, targets, batch.negatives), rows, share)

    def loss(self, batch: SequenceBatch) -> Tensor:
        """Mean over all targets of the batch; a negative that is the target itself does not count."""
        users, vectors = self.host.forward_sequence(
            features(batch.context, batch.targets), length=batch.context.items.shape[1]
        )
        mask = batch.targets > 0
        users, targets = users[mask].float(), batch.targets[mask]
        scores = (users @ self.host.target_vectors(batch.negatives).T).float()
        if len(batch.negatives) == self.data.n_items and self.config.loss == "sampled_softmax":
            return functional.cross_entropy(scores, targets - 1)  # the same, without taking the targets out first
        clash = targets.unsqueeze(1) == batch.negatives
        scores = scores.masked_fill(clash, torch.finfo(scores.dtype).min / 2)
        return batch_loss(self.config, (users * vectors[mask].float()).sum(-1), scores, self.data.n_items)


class CrossFitted:
    """Several objectives as one: rows of parts, each judged over a host that has not seen them, for one editor.

    Batches of all parts come in random order. What selects the epoch is ``deployed``, the model that the editor is for.

    Args:
        parts: one a part; their models share the editor.
        deployed: validates.
    """

    def __init__(self, parts: Sequence[RowObjective], deployed: RowObjective) -> None:
        self.parts, self.deployed = list(parts), deployed

    @property
    def monitor(self) -> str:
        """Larger is better."""
        return self.deployed.monitor

    def batches(self, epoch: int) -> Iterator[tuple[RowObjective, Batch]]:
        """Each batch with its part."""
        batches = [(part, batch) for part in self.parts for batch in part.batches(epoch)]
        for index in np.random.default_rng([self.deployed.seed, epoch]).permutation(len(batches)):
            yield batches[index]

    def loss(self, batch: tuple[RowObjective, Batch]) -> Tensor:
        """Mean over targets of a batch, over the host of its part."""
        part, rows = batch
        return part.loss(rows)

    def part(self, batch: tuple[RowObjective, Batch], ranks: Ranks) -> Part:
        """This rank's rows of a batch."""
        objective, whole = batch
        own = objective.part(whole, ranks)
        return Part((objective, own.batch), own.rows, own.share)

    def validate(self) -> dict[str, float]:
        """The metrics of the protocol, of the deployed model."""
        return self.deployed.validate()


def make_objective(
    model: Personalised,
    data: SequenceData,
    positions: Int64Array,
    validation: Evaluation,
    config: LossConfig,
    seed: int,
) -> RowObjective | SequenceObjective:
    """The objective that ``config`` asks for; an editor always learns from rows, for every row has an edit of its own."""
    kind = SequenceObjective if config.sequences and model.editor is None else RowObjective
    return kind(model, data, positions, validation, config, seed)


def _blocks(order: Int64Array, size: int) -> Iterator[Int64Array]:
    """Parts of ``order`` (P, ...) of ``size`` rows, the last one shorter."""
    for start in range(0, len(order), size):
        yield order[start : start + size]
