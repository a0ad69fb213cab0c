"""Objectives: what an epoch is, for ``persona.training.loop.fit``.

``RowObjective`` trains one target a row, with negatives drawn anew every epoch: any host, any editor. ``SoftmaxRowObjective``
does so against the whole catalogue, or negatives shared by a batch: GRU4Rec and SASRec, with or without an editor.
``SequenceObjective`` trains all positions of a sequence at once: GRU4Rec and SASRec without an editor.

Shapes: B rows, T positions, C candidates, N negatives, P targets of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from persona.errors import ConfigError, check_each, check_known
from persona.training.objective import Part
from persona.training.ranks import Ranks
from recsys import losses
from recsys.data.batches import Batch, Context, features
from recsys.data.negatives import sample_negatives
from recsys.data.sequences import SequenceData
from recsys.evaluation import Evaluation
from recsys.hosts import SequentialHost
from recsys.personalised import Personalised
from recsys.seen import seen_counts
from recsys.sequence_windows import Windows, cut
from recsys.softmax import Competitors, SequenceBatch

DRAWN_BATCHES = 64
POOLED_BATCHES = 16
SHARED = 16  # targets that share one encoding of their context; a power of two
LOSSES = ("bce", "sampled_softmax", "gbce", "softmax")

Int64Array = NDArray[np.int64]


@dataclass(frozen=True)
class LossConfig:
    """How a batch is made and judged.

    Attributes:
        loss: ``bce`` (as published), ``sampled_softmax``, ``gbce`` or ``softmax`` (see ``recsys.softmax``).
        negatives: drawn for every target (rows) or for every batch (sequences, and ``softmax`` where it is not exact).
        batch_size: rows or sequences; targets of sequences with ``softmax``.
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
        check_known("loss", self.loss, LOSSES)
        check_each(self, ("negatives", "batch_size"), 1)


def batch_loss(config: LossConfig, positive: Tensor, negatives: Tensor, n_items: int) -> Tensor:
    """Mean loss of positives (...) against negatives (..., N)."""
    if config.loss in ("sampled_softmax", "softmax"):
        return losses.sampled_softmax(positive, negatives)
    if config.loss == "gbce":
        return losses.gbce(positive, negatives, n_items)
    return losses.bce(torch.cat([positive.unsqueeze(-1), negatives], dim=-1))


@dataclass(eq=False, repr=False)
class _Objective:
    """A model, the events it learns from, and held-out rows that select the epoch.

    Attributes:
        model: host, or host with editor.
        data: the events.
        positions: (R,) events to learn from.
        validation: rows that select the epoch.
        config: loss, negatives, batch size.
        seed: of the order and of the negatives.
        reference: what a training from scratch has to beat on ``validation`` before it may stop.
    """

    model: Personalised
    data: SequenceData
    positions: Int64Array
    validation: Evaluation
    config: LossConfig
    seed: int
    reference: float | None = None

    def __post_init__(self) -> None:
        self.competitors: Competitors | None = None
        if self.config.loss == "softmax":
            if not isinstance(self.model.host, SequentialHost):
                raise ConfigError(
                    f"{self.model.host.config.kind} scores every candidate by itself, so that a softmax over the catalogue would "
                    "take too long: choose --loss sampled_softmax"
                )
            self.competitors = Competitors(seen_counts(self.data, self.positions), self.config.negatives)

    @property
    def monitor(self) -> str:
        """Larger is better."""
        return self.config.monitor

    def validate(self) -> dict[str, float]:
        """The metrics of the protocol."""
        summary = self.validation.run(self.model).summary
        check_known("metric", self.config.monitor, summary)
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
            drawn = self._with_negatives(targets, rng).astype(np.int64)
            items, lengths = map(torch.from_numpy, self.data.contexts(block[:, 0], self.model.host.config.max_length))
            candidates = torch.from_numpy(drawn.reshape(len(block), -1))
            for rows in torch.split(torch.arange(len(block)), size):
                yield Batch(Context(items[rows], lengths[rows]), candidates[rows])

    def _with_negatives(self, targets: Int64Array, rng: np.random.Generator) -> NDArray[np.int32]:
        """(P,) positions -> (P, 1 + N) their items and negatives."""
        negatives = sample_negatives(self.data, self.data.user_of(targets), self.config.negatives, rng)
        return np.column_stack([self.data.items[targets], negatives])


class SoftmaxRowObjective(RowObjective):
    """Rows whose targets meet the catalogue, or the same negatives in a batch: one context is scored once for all of them."""

    def batches(self, epoch: int) -> Iterator[SequenceBatch]:  # type: ignore[override]
        """The rows of ``RowObjective`` in its order, with the negatives of the batch."""
        assert self.competitors is not None
        rng = np.random.default_rng([self.seed, epoch, 1])
        for batch in super().batches(epoch):
            negatives, log_expected = self.competitors.draw(rng)
            yield SequenceBatch(batch.context, batch.candidates, negatives, log_expected=log_expected)

    def loss(self, batch: SequenceBatch) -> Tensor:
        """Mean over targets."""
        assert self.competitors is not None
        assert isinstance(self.model.host, SequentialHost)
        users = self.model.user_vectors(batch.context).repeat_interleave(batch.targets.shape[1], dim=0)
        return self.competitors.loss(self.model.host, users, batch.targets.flatten(), batch)

    def part(self, batch: SequenceBatch, ranks: Ranks) -> Part:
        """This rank's rows of a batch."""
        return batch.part(ranks)

    def _with_negatives(self, targets: Int64Array, rng: np.random.Generator) -> NDArray[np.int32]:
        """(P,) positions -> (P, 1) their items; negatives are the batch's."""
        return self.data.items[targets, None]


class SequenceObjective(_Objective):
    """All positions of a window at once; every target meets the same N negatives of its batch (all items if N >= V).

    Every epoch cuts each user's training events into windows at a new offset, so that contexts of all lengths occur and no event
    is left out. Targets of a basket are all asked for after the last event before it.

    Raises:
        ConfigError: the host scores every candidate by itself and cannot share a state between targets.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        host = self.model.host
        if not isinstance(host, SequentialHost) or self.model.editor is not None:
            raise ConfigError(
                f"{host.config.kind} with an editor of its own or with attention to the target cannot train whole "
                "sequences: use rows (sequences = false)"
            )
        self.host = host
        self.trained = np.zeros(self.data.n_events, dtype=bool)
        self.trained[self.positions] = True

    def batches(self, epoch: int) -> Iterator[SequenceBatch]:
        """Windows in a new order and at new offsets, with new negatives."""
        rng = np.random.default_rng([self.seed, epoch])
        windows = cut(self.data, self.trained, self.host.config.max_length, rng)
        for rows in self._similar(rng, windows):
            context, targets, states = windows.batch(rows)
            negatives, log_expected = self._negatives(rng)
            yield SequenceBatch(context, targets, negatives, states, log_expected)

    def _similar(self, rng: np.random.Generator, windows: Windows) -> Iterator[Int64Array]:
        """Batches of windows of similar sizes, in random order: padding would be most of a batch of mixed ones.

        With the softmax a batch has about ``batch_size`` targets, so that steps are alike whatever the lengths of histories, and
        as large as those of rows; with the other losses, so many windows.
        """
        size, counts = self.config.batch_size, windows.counts
        usual = size if self.competitors is None else max(1, round(size / counts.mean()))
        for pool in _blocks(rng.permutation(len(counts)), POOLED_BATCHES * usual):
            order = pool[np.argsort(windows.sizes[pool], kind="stable")]
            if self.competitors is None:
                batches = list(_blocks(order, size))
            else:
                full = np.cumsum(counts[order]) // size
                batches = np.split(order, np.flatnonzero(full[1:] > full[:-1]) + 1)
            for i in rng.permutation(len(batches)):
                yield batches[i]

    def _negatives(self, rng: np.random.Generator) -> tuple[Tensor, Tensor | None]:
        """(N,) drawn items, and how often each is expected; where N would be the catalogue, every item once."""
        if self.competitors is not None:
            return self.competitors.draw(rng)
        if self.config.negatives >= self.data.n_items:
            return torch.arange(1, self.data.n_items + 1), None
        return torch.from_numpy(rng.integers(1, self.data.n_items + 1, self.config.negatives)), None

    def part(self, batch: SequenceBatch, ranks: Ranks) -> Part:
        """This rank's windows of a batch."""
        return batch.part(ranks)

    def loss(self, batch: SequenceBatch) -> Tensor:
        """Mean over all targets of the batch; a negative that is the target itself does not count."""
        mask = batch.targets > 0
        targets = batch.targets[mask]
        if self.competitors is not None:
            users = self.host.user_vectors(
                _asked(self.host.encode_positions(self.host.context_features(batch.context)), batch, mask)
            )
            return self.competitors.loss(self.host, users, targets, batch)
        vectors, projected = self.host.forward_sequence(
            features(batch.context, batch.targets), length=batch.context.items.shape[1]
        )
        users = _asked(vectors, batch, mask).float()
        scores = (users @ self.host.target_vectors(batch.negatives).T).float()
        if len(batch.negatives) == self.data.n_items and self.config.loss == "sampled_softmax":
            return functional.cross_entropy(scores, targets - 1)  # the same, without taking the targets out first
        clash = targets.unsqueeze(1) == batch.negatives
        scores = scores.masked_fill(clash, torch.finfo(scores.dtype).min / 2)
        return batch_loss(self.config, (users * projected[mask].float()).sum(-1), scores, self.data.n_items)


def _asked(vectors: Tensor, batch: SequenceBatch, mask: Tensor) -> Tensor:
    """(B, T, d) -> (P, d) those that the targets of a batch are asked for with, where ``mask`` (B, C) has targets."""
    if batch.states is None:
        return vectors[mask]
    return vectors[mask.nonzero()[:, 0], batch.states[mask]]


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
    reference: float | None = None,
) -> RowObjective | SequenceObjective:
    """The objective that ``config`` asks for; an editor always learns from rows, for every row has an edit of its own."""
    kind: type[RowObjective | SequenceObjective] = SoftmaxRowObjective if config.loss == "softmax" else RowObjective
    if config.sequences and model.editor is None:
        kind = SequenceObjective
    return kind(model, data, positions, validation, config, seed, reference)


def _blocks(order: Int64Array, size: int) -> Iterator[Int64Array]:
    """Parts of ``order`` (P, ...) of ``size`` rows, the last one shorter."""
    for start in range(0, len(order), size):
        yield order[start : start + size]
