"""Windows of users' histories, for training on whole sequences: every target once, each with a past, at new offsets every epoch.

Letters: N events, U users, P targets, W windows, B windows of a batch, T their longest context, C their most targets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.data.batches import Context
from recsys.data.sequences import SequenceData

Int64Array = NDArray[np.int64]


class Windows(Protocol):
    """Windows of an epoch."""

    @property
    def sizes(self) -> Int64Array:
        """(W,) how long each is: windows of similar sizes make batches with little padding."""

    @property
    def counts(self) -> Int64Array:
        """(W,) targets of each."""

    def batch(self, rows: Int64Array) -> tuple[Context, Tensor, Tensor | None]:
        """Windows ``rows`` (B,): context (B, T), targets (B, C), 0 where none, and after which item each is asked for (B, C).

        No states are given where it is item c for target c.
        """


def cut(data: SequenceData, trained: NDArray[np.bool_], width: int, rng: np.random.Generator) -> Windows:
    """The windows of an epoch.

    Args:
        data: the events.
        trained: (N,) which are targets; each has a past.
        width: the longest context.
        rng: of the offsets.
    """
    if data.baskets:
        return BasketWindows.cut(data, np.flatnonzero(trained), width, rng)
    return EventWindows.cut(data, trained, width, rng)


@dataclass(frozen=True)
class EventWindows:
    """Runs of events, each the target of those before it in its window. Neighbours share an event: target, then context.

    Attributes:
        data: the events.
        trained: (N,) which are targets.
        start: (W,) first event.
        stop: (W,) behind the last one.
    """

    data: SequenceData
    trained: NDArray[np.bool_]
    start: Int64Array
    stop: Int64Array

    @classmethod
    def cut(cls, data: SequenceData, trained: NDArray[np.bool_], width: int, rng: np.random.Generator) -> EventWindows:
        """All windows of at most ``width`` + 1 events that hold a target."""
        targets = np.flatnonzero(trained)
        users = data.user_of(targets)
        last = np.zeros(data.n_users, dtype=np.int64)
        np.maximum.at(last, users, targets + 1)
        known = np.unique(users)
        first, last = data.offsets[known], last[known]
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
        keep = cls(data, trained, start, stop).counts > 0
        return cls(data, trained, start[keep], stop[keep])

    @property
    def sizes(self) -> Int64Array:
        """(W,) events."""
        return self.stop - self.start

    @property
    def counts(self) -> Int64Array:
        """(W,) those of the events but the first that are targets."""
        before: Int64Array = np.append(0, np.cumsum(self.trained))
        counts: Int64Array = before[self.stop] - before[self.start + 1]
        return counts

    def batch(self, rows: Int64Array) -> tuple[Context, Tensor, None]:
        """See ``Windows``; C is T."""
        start, stop = self.start[rows, None], self.stop[rows, None]
        width = int((stop - start).max()) - 1
        index = start + np.arange(width + 1)
        valid = index < stop
        index = np.minimum(index, self.data.n_events - 1)
        items = np.where(valid, self.data.items[index], 0).astype(np.int64)
        lengths = np.minimum(valid.sum(1) - 1, width)
        history = np.where(np.arange(width) < lengths[:, None], items[:, :-1], 0)
        targets = np.where(valid & self.trained[index], items, 0)[:, 1:]
        return Context(torch.from_numpy(history), torch.from_numpy(lengths)), torch.from_numpy(targets), None


@dataclass(frozen=True)
class BasketWindows:
    """Runs of events with targets that are asked for before their baskets.

    Attributes:
        data: the events.
        targets: (P,) positions, ascending.
        start: (W,) first event of the context.
        stop: (W,) behind its last one.
        first: (W,) the first target, as a place in ``targets``.
        last: (W,) behind the last one.
    """

    data: SequenceData
    targets: Int64Array
    start: Int64Array
    stop: Int64Array
    first: Int64Array
    last: Int64Array

    @classmethod
    def cut(cls, data: SequenceData, targets: Int64Array, width: int, rng: np.random.Generator) -> BasketWindows:
        """Baskets of a user whose contexts end within ``width`` events share a window.

        The context ends before the last of these baskets and is as long as may be, so that the other targets have a past, too.
        """
        user, past = data.user_of(targets), data.basket_start[targets]
        begin = data.offsets[user]
        known, where = np.unique(user, return_inverse=True)
        longest = np.zeros(len(known), dtype=np.int64)
        np.maximum.at(longest, where, past - begin)
        shift = np.where(longest > width, rng.integers(0, width, len(known)), 0)
        cell = (past - begin - 1 + shift[where]) // width
        new = np.ones(len(targets), dtype=bool)
        new[1:] = (user[1:] != user[:-1]) | (cell[1:] != cell[:-1])
        first = np.flatnonzero(new)
        last = np.append(first[1:], len(targets))
        stop = past[last - 1]
        return cls(data, targets, np.maximum(begin[first], stop - width), stop, first, last)

    @property
    def sizes(self) -> Int64Array:
        """(W,) events of the context."""
        return self.stop - self.start

    @property
    def counts(self) -> Int64Array:
        """(W,) targets."""
        return self.last - self.first

    def batch(self, rows: Int64Array) -> tuple[Context, Tensor, Tensor]:
        """See ``Windows``."""
        start, lengths = self.start[rows], (self.stop - self.start)[rows]
        history = _run(self.data.items, start, lengths)
        first, counts = self.first[rows], (self.last - self.first)[rows]
        targets = _run(self.data.items[self.targets], first, counts)
        states = _run(self.data.basket_start[self.targets], first, counts) - 1 - start[:, None]
        states = np.where(targets > 0, states, 0)
        context = Context(torch.from_numpy(history), torch.from_numpy(lengths))
        return context, torch.from_numpy(targets), torch.from_numpy(states)


def _run(values: NDArray[np.integer], start: Int64Array, counts: Int64Array) -> Int64Array:
    """``counts`` (B,) values from ``start`` (B,) on: (B, most), 0 behind them."""
    column = np.arange(int(counts.max()))
    index = np.minimum(start[:, None] + column, len(values) - 1)
    return np.where(column < counts[:, None], values[index], 0).astype(np.int64)
