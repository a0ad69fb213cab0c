"""Coded events -> the order of user, time and row, without duplicates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recsys.data.log.times import Times


@dataclass(frozen=True)
class Events:
    """Coded events, sorted by user, time, row, and without duplicates."""

    users: NDArray[np.uint32]
    items: NDArray[np.uint32]
    times: NDArray[np.int64]
    duplicates: int
    ties: int
    repeats: int


def arrange(users: NDArray[np.uint32], items: NDArray[np.uint32], times: Times) -> Events:
    """Sort by user, time, row, and drop exact duplicates. All arrays (N,)."""
    order = _sorted_order(users, times.ticks)
    users, items, ticks = users[order], items[order], times.ticks[order]
    keep = _first_of_each(users, items, ticks)
    duplicates = len(keep) - int(keep.sum())
    if duplicates:
        users, items, ticks = users[keep], items[keep], ticks[keep]
    seconds = ticks // times.per_second if times.per_second > 1 else ticks
    same = _same_as_previous(users, seconds)
    ties = int((same | np.append(same[1:], False)).sum())
    return Events(users, items, seconds, duplicates, ties, _repeats(users, items))


def _sorted_order(users: NDArray[np.uint32], ticks: NDArray[np.int64]) -> NDArray[np.int64]:
    """The stable order by (user, tick). One packed key, where it fits 63 bits, sorts three times as fast as two."""
    low = int(ticks.min())
    width = int(ticks.max()) - low + 1
    if (int(users.max()) + 1) * width < 2**63:
        return np.argsort(users.astype(np.int64) * width + (ticks - low), kind="stable")
    return np.lexsort((ticks, users))


def _same_as_previous(users: NDArray[np.uint32], times: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether a sorted row has user and time of the row before, (N,)."""
    same = np.zeros(len(users), dtype=bool)
    same[1:] = (users[1:] == users[:-1]) & (times[1:] == times[:-1])
    return same


def _repeats(users: NDArray[np.uint32], items: NDArray[np.uint32]) -> int:
    """How many of the events (N,) are an item that their user has at an earlier place, too."""
    pairs = np.sort(users.astype(np.uint64) << np.uint64(32) | items)
    return int(np.count_nonzero(pairs[1:] == pairs[:-1]))


def _first_of_each(users: NDArray[np.uint32], items: NDArray[np.uint32], ticks: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which sorted rows are the first of their user, item and tick, (N,). Only rows that tie have to be compared."""
    keep = np.ones(len(users), dtype=bool)
    same = _same_as_previous(users, ticks)
    tied = np.flatnonzero(same | np.append(same[1:], False))
    if len(tied):
        run = np.cumsum(~same[tied])
        keys = run * (int(items.max()) + 1) + items[tied]
        order = np.argsort(keys, kind="stable")
        again = np.zeros(len(tied), dtype=bool)
        again[order[1:]] = keys[order[1:]] == keys[order[:-1]]
        keep[tied[again]] = False
    return keep
