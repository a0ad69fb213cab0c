"""Scenarios: seeded shifts of a real log from a moment on, for the replay of a stream.

A scenario changes which items are touched, or whose events they are, at positions from the moment on; never when. So the same
windows of the same positions compare a log as it is with the log under a shift, and whatever was trained before the moment
stays valid.

==============  =====================================================================================================
``none``        the log as it is
``interest``    whoever has a past continues with another user's later items (pairs of users exchange theirs)
``new_users``   everybody is new: the events from the moment on are those of users without a past
``catalogue``   the items behind half of the events vanish, each replaced by an item that nobody had touched before
``popularity``  a shock: half of the events go to a few items that hardly anybody had touched before
==============  =====================================================================================================

Letters: N events, U users, V items.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from persona.errors import DataError, check_known
from recsys.data.columns import USER
from recsys.data.sequences import SequenceData

Int64Array = NDArray[np.int64]

# Events after which a user counts as having a past that an abrupt change can leave behind.
PAST = 10
SHARE = 0.5
SHOCKED_ITEMS = 20


def apply_scenario(data: SequenceData, name: str, moment: int, seed: int = 0) -> SequenceData:
    """The log under a scenario: the same N positions with the same times, all before ``moment`` as they were.

    Args:
        data: the log.
        name: of the scenario.
        moment: the time (as in ``data.times``) from which on it holds.
        seed: of what it draws.

    Raises:
        ConfigError: unknown scenario.
        DataError: the log has nothing that the scenario could change after the moment.
    """
    check_known("scenario", name, SCENARIOS)
    return SCENARIOS[name](data, moment, np.random.default_rng([seed, 23]))


def _as_it_is(data: SequenceData, moment: int, rng: np.random.Generator) -> SequenceData:
    return data


def _interest(data: SequenceData, moment: int, rng: np.random.Generator) -> SequenceData:
    """Users in random pairs exchange, item by item, what they touch after the moment and after their first ten events."""
    start, end = np.maximum(data.offsets[:-1] + PAST, _first_from(data, moment)), data.offsets[1:]
    inside = start < end
    # Whole baskets change hands.
    start[inside] = data.basket_start[start[inside]]
    left = end - start
    able = rng.permutation(np.flatnonzero(inside & (start > data.offsets[:-1])))
    if len(able) < 2:
        raise DataError("no two users have a past and a later history to exchange: choose another scenario or moment")
    # Neighbours in the order of what is left, so that little stays unexchanged; ties in random order.
    able = able[np.argsort(left[able], kind="stable")]
    items = data.items.copy()
    for one, other in zip(able[0::2], able[1::2], strict=False):
        count = min(left[one], left[other])
        a, b = start[one] + np.arange(count), start[other] + np.arange(count)
        items[a], items[b] = data.items[b], data.items[a]
    return replace(data, items=items)


def _new_users(data: SequenceData, moment: int, rng: np.random.Generator) -> SequenceData:
    """Every user's later events become those of somebody new."""
    first, begin, end = _first_from(data, moment), data.offsets[:-1], data.offsets[1:]
    both = (first > begin) & (first < end)
    if not both.any():
        raise DataError("no user is active before and after the moment: choose another scenario or moment")
    names = data.user_ids.to_list()
    owners = [own for u, split in enumerate(both) for own in ([names[u], f"{names[u]} (new)"] if split else [names[u]])]
    offsets = np.sort(np.concatenate([data.offsets, first[both]]))
    return replace(data, offsets=offsets, user_ids=pl.Series(USER, owners, dtype=data.user_ids.dtype))


def _catalogue(data: SequenceData, moment: int, rng: np.random.Generator) -> SequenceData:
    """Items give way, the most touched later on first drawn at random, to items that nobody had touched before."""
    later = data.times >= moment
    seen = np.bincount(data.items[~later], minlength=data.n_items + 1)
    events = np.bincount(data.items[later], minlength=data.n_items + 1)
    old = rng.permutation(np.flatnonzero((seen > 0) & (events > 0)))
    new = rng.permutation(np.flatnonzero(seen[1:] == 0) + 1)
    if not len(old) or not len(new):
        raise DataError("the catalogue has no item that nobody touched before the moment: choose another scenario")
    wanted = SHARE * events[old].sum()
    count = min(int(np.searchsorted(np.cumsum(events[old]), wanted)) + 1, len(new))
    becomes = np.arange(data.n_items + 1, dtype=data.items.dtype)
    becomes[old[:count]] = new[:count]
    return replace(data, items=np.where(later, becomes[data.items], data.items))


def _popularity(data: SequenceData, moment: int, rng: np.random.Generator) -> SequenceData:
    """Half of the later events go to a few items of the rarer half of those known, the first ones most often."""
    later = np.flatnonzero(data.times >= moment)
    seen = np.bincount(data.items[data.times < moment], minlength=data.n_items + 1)
    known = np.flatnonzero(seen > 0)
    rare = known[seen[known] <= np.median(seen[known])] if len(known) else known
    if not len(rare) or not len(later):
        raise DataError("no item was touched before the moment, or nothing after it: choose another moment")
    shocked = rng.permutation(rare)[:SHOCKED_ITEMS]
    odds = 1.0 / np.arange(1, len(shocked) + 1)
    positions = later[rng.random(len(later)) < SHARE]
    drawn = rng.choice(shocked, len(positions), p=odds / odds.sum())
    # What a user touches anyway, or was given just now, is not touched a second time.
    touched = set(zip(data.user_of(np.arange(data.n_events)).tolist(), data.items.tolist(), strict=True))
    items = data.items.copy()
    for position, user, item in zip(positions, data.user_of(positions).tolist(), drawn.tolist(), strict=True):
        if (user, item) not in touched:
            touched.add((user, item))
            items[position] = item
    return replace(data, items=items)


def _first_from(data: SequenceData, moment: int) -> Int64Array:
    """(U,) each user's first position at or after the moment; the end of their events if there is none."""
    before = np.concatenate([[0], np.cumsum(data.times < moment)])
    return np.asarray(data.offsets[:-1] + before[data.offsets[1:]] - before[data.offsets[:-1]], dtype=np.int64)


SCENARIOS: dict[str, Callable[[SequenceData, int, np.random.Generator], SequenceData]] = {
    "none": _as_it_is,
    "interest": _interest,
    "new_users": _new_users,
    "catalogue": _catalogue,
    "popularity": _popularity,
}
