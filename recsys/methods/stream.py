"""What is known at a moment: the events before it, as counts of items and as pairs of items that users had near each other.

The stream is the log in the order of time. An answer at some moment knows the events with an earlier time stamp: all of one
time stamp are answered before any of them is learned. Everything here is computed from the log for any moment anew, so that
no state can hold the event that it is judged on.

Shapes: N events, E of them in the stream, B rows to answer, V items, P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from recsys.data.sequences import SequenceData

Int64Array = NDArray[np.int64]
Floats = NDArray[np.float64]
Asked = Int64Array | None


class Stream:
    """Events in the order of time.

    Args:
        data: the log.
        known: (N,) bool, the events that are in the stream.
        live: an answer knows those before its own time stamp; otherwise it knows them all.

    Attributes:
        events: (E,) positions in the order of time.
    """

    def __init__(self, data: SequenceData, known: NDArray[np.bool_], live: bool) -> None:
        chosen = np.flatnonzero(known)
        self.data, self.live = data, live
        self.events = chosen[np.argsort(data.times[chosen], kind="stable")]
        self.items, self.times = data.items[self.events], data.times[self.events]

    def __len__(self) -> int:
        return len(self.events)

    def before(self, positions: Int64Array) -> Int64Array:
        """(B,) how many events of the stream are known when each position is answered."""
        if not self.live:
            return np.full(len(positions), len(self), dtype=np.int64)
        return np.searchsorted(self.times, self.data.times[positions], side="left").astype(np.int64)

    def counts(self, known: Int64Array, asked: Asked, half_life: float = np.inf) -> Iterator[tuple[int, Floats]]:
        """Each row, in the order of time, with the decayed counts of its items, (C,) or (V + 1,).

        Args:
            known: (B,) what ``before`` returned.
            asked: (B, C) items of each row; all if not given.
            half_life: events of the stream after which one counts half.
        """
        order = np.argsort(known, kind="stable")
        start = done = int(known[order[0]])
        # Weights grow with time from the first row on, and each row divides by what they have grown to.
        weights = np.exp2((np.arange(start) - start) / half_life)
        grown = np.bincount(self.items[:start], weights=weights, minlength=self.data.n_items + 1)
        for row in order:
            now = int(known[row])
            if now > done:
                np.add.at(grown, self.items[done:now], np.exp2((np.arange(done, now) - start) / half_life))
                done = now
            yield int(row), (grown if asked is None else grown[asked[row]]) * np.exp2((start - now) / half_life)


class Pairs:
    """Items that one user had at most ``steps`` events apart, each pair known from its later event on.

    Args:
        stream: the events.
        steps: how far apart.
        both: pairs lead from the later item to the earlier one, too.

    Attributes:
        targets: (P,) second items, by first item and then by time.
        weights: (P,) one over the distance in events.
    """

    def __init__(self, stream: Stream, steps: int, both: bool) -> None:
        self.stream = stream
        order = np.argsort(stream.events)
        positions, rank = stream.events[order], order
        users, items = stream.data.user_of(positions), stream.items[order]
        sources, targets, moments, weights = [], [], [], []
        for distance in range(1, steps + 1):
            first = np.flatnonzero(users[distance:] == users[:-distance])
            ends = (items[first], items[first + distance])
            moment = np.maximum(rank[first], rank[first + distance])
            for source, target in (ends, ends[::-1]) if both else (ends,):
                sources.append(source.astype(np.int64))
                targets.append(target)
                moments.append(moment)
                weights.append(np.full(len(first), 1 / distance))
        source, moment = np.concatenate(sources), np.concatenate(moments)
        by_source = np.lexsort((moment, source))
        self.targets = np.concatenate(targets)[by_source].astype(np.int64)
        self.weights = np.concatenate(weights)[by_source]
        # One ascending key over all first items: the number of events is above every moment.
        self._width = len(stream) + 1
        self._keys = source[by_source] * self._width + moment[by_source]

    def counting(self, latest: int) -> int:
        """How many pairs count where of each first item the ``latest`` do."""
        return int(np.minimum(np.bincount(self._keys // self._width), latest).sum())

    def of(self, items: NDArray[np.integer], known: int, latest: int) -> tuple[Int64Array, Int64Array]:
        """The pairs of ``items`` (n,) that ``known`` events make, of each item the ``latest`` at most.

        Returns:
            For each of the M pairs, where it lies in ``targets`` and ``weights``, and the index into ``items`` that it is of.
        """
        keys = items.astype(np.int64) * self._width
        stops = np.searchsorted(self._keys, keys + known)
        lengths = np.minimum(stops - np.searchsorted(self._keys, keys), latest)
        ends = np.cumsum(lengths)
        places = np.arange(lengths.sum()) + np.repeat(stops - ends, lengths)
        return places, np.repeat(np.arange(len(items)), lengths)


class Sums:
    """Weights summed up by item, row after row, in a time that does not grow with the catalogue where few items are asked for.

    Args:
        n_items: V.
    """

    def __init__(self, n_items: int) -> None:
        self._sums = np.zeros(n_items + 1)

    def of(self, items: NDArray[np.integer], weights: Floats | float, asked: Asked, row: int) -> Floats:
        """Sums of the ``weights`` (M,) of ``items`` (M,): those of ``asked[row]`` (C,), or of all items (V + 1,)."""
        np.add.at(self._sums, items, weights)
        found = self._sums.copy() if asked is None else self._sums[asked[row]]
        self._sums[items] = 0.0
        return found
