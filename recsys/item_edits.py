"""Row edits of a host's item table: what an event adds, and a recommender whose table follows the stream.

An event adds the mean base embedding of those items of its context that training knew; it needs the table and the log alone, no
pass of the host. The stream is cut into blocks: one begins at the time stamp of every ``size``-th event, so that all events of one
time stamp are in one block. Whoever is asked in a block meets the table that all blocks before it have made, and so nothing that
happened at the same moment or later.

Shapes: B rows, C candidates, T context length, V items, d width, E events of the stream.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from persona.rows import Read, RowEdits, RowSums, fit_generator
from recsys.data.batches import Context
from recsys.data.sequences import SequenceData
from recsys.evaluation import Scorer
from recsys.hosts import Host
from recsys.hosts.base import TABLE

BLOCKS = 200
# The generator learns from so many samples of training events, of sizes between these; of few events, of a quarter to most of them.
DRAWS, SMALLEST, LARGEST = 20, 1_000, 15_000

Int64Array = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Events:
    """What events of a log add to the rows of a table.

    Attributes:
        data: the log.
        table: (V + 1, d) base embeddings.
        known: (V + 1,) how often training saw each item.
        length: T.
    """

    data: SequenceData
    table: NDArray[np.float32]
    known: Int64Array
    length: int

    def messages(self, positions: Int64Array) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """(B, d) mean embedding of the known items in the context of each position, and (B,) whether there are any."""
        items, _ = self.data.contexts(positions, self.length)
        counts = (self.known[items] > 0).astype(np.float32)
        n = counts.sum(1)
        return np.einsum("bt,btd->bd", counts, self.table[items]) / np.maximum(n, 1)[:, None], n > 0

    def add(self, sums: RowSums, positions: Int64Array, moments: Floats | None = None) -> None:
        """Add the events at ``positions`` (B,) to ``sums``."""
        sums.add(self.data.items[positions], *self.messages(positions), moments)

    def samples(self, positions: Int64Array, seed: int) -> Iterator[Read]:
        """Sums of random samples of training events."""
        rng, count = np.random.default_rng([seed, 71]), len(positions)
        for _ in range(DRAWS):
            size = int(rng.integers(min(SMALLEST, count // 4), min(LARGEST, 3 * count // 4) + 1))
            sums = RowSums(len(self.table), self.table.shape[1])
            self.add(sums, np.sort(rng.choice(positions, size, replace=False)))
            yield sums.at()


def table_of(host: Host) -> NDArray[np.float32]:
    """(V + 1, d) the item table of a host, a copy."""
    weight: Tensor = host.embedding.embeddings[TABLE].weight
    found: NDArray[np.float32] = weight.detach().cpu().numpy().copy()
    return found


def new_edits(data: SequenceData, host: Host, learned: Int64Array, seed: int) -> tuple[Events, RowEdits, float]:
    """What a host's item edits are made with: once a release, from its table and the rows that it learned.

    Args:
        data: the log.
        host: of any kind; its table does not lie in pieces.
        learned: positions that the host was trained on.
        seed: of the samples.

    Returns:
        What events add, the edits with their row generator, and the R^2 of that.
    """
    known = np.bincount(data.items[learned], minlength=data.n_items + 1)
    events = Events(data, table_of(host), known, host.config.max_length)
    generator, explained = fit_generator(events.samples(learned, seed), events.table, known)
    return events, RowEdits(events.table, known, generator), explained


class Blocks:
    """The events that came after training, in the order of time and in blocks.

    Args:
        data: the log.
        since: time of the first event of the stream.
        size: events of a block, about; a ``BLOCKS``-th of all by default.
    """

    def __init__(self, data: SequenceData, since: int, size: int = 0) -> None:
        later = np.flatnonzero(data.times >= since)
        self.data = data
        self.events = later[np.argsort(data.times[later], kind="stable")]
        times = data.times[self.events]
        self._edges = np.unique(times[:: size or max(1, -(-len(times) // BLOCKS))])
        self.starts = np.searchsorted(times, self._edges, side="left").astype(np.int64)

    def before(self, positions: Int64Array) -> Int64Array:
        """(B,) how many blocks are known when each position is answered."""
        block = np.searchsorted(self._edges, self.data.times[positions], side="right") - 1
        return np.maximum(block, 0).astype(np.int64)


class ItemEdits:
    """A recommender whose item table, and whose biases, follow the stream.

    Args:
        scorer: a model with a ``host``; its own copy of the table is edited, the model that is given stays as it is.
        events: what an event adds.
        edits: from sums to rows and biases.
        blocks: the stream.
        half_life: of events, in events.
    """

    def __init__(
        self, scorer: Scorer, events: Events, edits: RowEdits, blocks: Blocks, half_life: float = np.inf
    ) -> None:
        self.scorer, self.events, self.edits, self.blocks = copy.deepcopy(scorer), events, edits, blocks
        self.half_life = half_life
        self._shown = -1
        self._fresh()

    @property
    def host(self) -> Host:
        """The host with the table of the moment."""
        host: Host = self.scorer.host  # type: ignore[attr-defined]
        return host

    def with_edits(self, edits: RowEdits, half_life: float) -> ItemEdits:
        """The same by other settings."""
        return ItemEdits(self.scorer, self.events, edits, self.blocks, half_life)

    def at(self, positions: Int64Array) -> Placed:
        """What scores the contexts of ``positions`` (B,)."""
        return Placed(self, positions)

    def moved_rows(self) -> int:
        """Rows that the whole stream moves."""
        return len(self.edits.moved(self._read(len(self.blocks.starts))))

    def follow(self, block: int) -> Tensor | None:
        """Bring the table to where it is when ``block`` is served, and return the biases (V + 1,), if there are any."""
        read = self._read(block)
        if self._shown != block:
            with torch.no_grad():
                self.host.embedding.embeddings[TABLE].weight.copy_(torch.from_numpy(self.edits.table(read)))
            self._shown = block
        bias = self.edits.bias(read)
        return None if bias is None else torch.from_numpy(bias).to(self.host.device)

    def _fresh(self) -> None:
        rows, width = self.events.table.shape
        self._sums, self._done = RowSums(rows, width, self.half_life), 0

    def _read(self, block: int) -> Read:
        """The sums of the blocks before ``block``: always block by block, so that they are the same however it is asked."""
        if block < self._done:
            self._fresh()
        ends = np.append(self.blocks.starts, len(self.blocks.events))
        for start, end in zip(ends[self._done : block], ends[self._done + 1 : block + 1], strict=True):
            self.events.add(self._sums, self.blocks.events[start:end], np.arange(start, end, dtype=np.float64))
        self._done = block
        return self._sums.at(float(ends[block]))


@dataclass(frozen=True)
class Placed:
    """Item edits where they are asked: each row by the table of its own block."""

    edits: ItemEdits
    positions: Int64Array

    def score(self, context: Context, candidates: Tensor) -> Tensor:
        """Logits (B, C) of ``candidates`` (B, C)."""
        scores = torch.empty(candidates.shape, device=candidates.device)
        for rows, bias in self._parts(candidates.device):
            asked = candidates[rows]
            scores[rows] = self.edits.scorer.score(context.index_select(rows), asked)
            if bias is not None:
                scores[rows] += bias[asked]
        return scores

    def score_catalogue(self, context: Context) -> Tensor:
        """Logits (B, V + 1); column 0 is -inf."""
        device = context.items.device
        scores = torch.empty(len(context), self.edits.events.data.n_items + 1, device=device)
        for rows, bias in self._parts(device):
            scores[rows] = self.edits.scorer.score_catalogue(context.index_select(rows))
            if bias is not None:
                scores[rows] += bias
        return scores

    def _parts(self, device: torch.device) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Rows of one block after the other, in the order of time, with its biases."""
        blocks = self.edits.blocks.before(self.positions)
        for block in np.unique(blocks):
            bias = self.edits.follow(int(block))
            yield torch.from_numpy(np.flatnonzero(blocks == block)).to(device), bias
