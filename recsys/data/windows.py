"""Windows of events after a release: which contexts refine a bank, and on which rows its versions are compared.

A window is data in the vocabulary of a bundle, and the positions in it that are new. What a device knows *after* each new event
refines the bank, without labels; what it knew *before* them is where two versions are compared, with the events as targets.

Shapes: N contexts, P positions, T context length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from persona.errors import ConfigError, DataError
from recsys.data.batches import Context
from recsys.data.columns import ITEM, TIME, USER
from recsys.data.log import InteractionLog
from recsys.data.sequences import BASKET_SHARE, SequenceData

DAY = 86_400
NEW = "new"

Positions = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Window:
    """New events among the old ones.

    Attributes:
        data: all events that count, items numbered as in the bundle.
        positions: (P,) the new events, rising.
        unknown: new events that were left out, because the bundle does not know their items.
    """

    data: SequenceData
    positions: Positions
    unknown: int

    def contexts(self, length: int) -> tuple[Context, NDArray[np.int64]]:
        """What each user knew after each new event, once a basket; and whose it is: (N, T) and users (N,)."""
        data = self.data
        ends = np.flatnonzero(np.append(data.basket_start[1:] != data.basket_start[:-1], True))
        baskets = np.unique(data.basket_start[self.positions])
        stop = ends[np.searchsorted(ends, baskets)] + 1
        users = data.user_of(baskets)
        start = np.maximum(data.offsets[users], stop - length)
        index = start[:, None] + np.arange(length)
        items = np.where(index < stop[:, None], data.items[np.minimum(index, data.n_events - 1)], 0)
        return Context(torch.from_numpy(items.astype(np.int64)), torch.from_numpy(stop - start)), users

    def targets(self) -> Positions:
        """(P,) the new events before which their user did something: rows to compare versions on."""
        first = self.data.offsets[self.data.user_of(self.positions)]
        return self.positions[self.data.basket_start[self.positions] > first]

    def describe(self) -> dict[str, int | str]:
        """Counts and limits, as JSON values."""
        times = self.data.times[self.positions]
        users = len(np.unique(self.data.user_of(self.positions)))
        shown = (str(int(t)) if self.data.ordered_only else _utc(int(t)) for t in (times.min(), times.max()))
        limits = dict(zip(("from", "to"), shown, strict=True))
        return {"events": len(self.positions), "users": users, "unknown_items": self.unknown, **limits}


def prepared_window(data: SequenceData, item_ids: Sequence[str], start: int, end: int) -> Window:
    """The events of prepared data with start <= time < end; later ones have not happened yet.

    Args:
        data: what ``prepare`` left.
        item_ids: vocabulary of the bundle.
        start: seconds since 1970 (UTC).
        end: likewise.

    Raises:
        ConfigError: the data has no time that all users share.
        DataError: there is no event in the window.
    """
    if data.ordered_only:
        raise ConfigError(
            "these events have an order but no time, so no window can be cut out of them: give new events as a file"
        )
    frame = _frame(data).filter(pl.col(TIME) < end).with_columns((pl.col(TIME) >= start).alias(NEW))
    if not frame[NEW].any():
        raise DataError(
            f"no event lies between {_utc(start)} and {_utc(end)}: the prepared log goes from {_utc(int(data.times.min()))} "
            f"to {_utc(int(data.times.max()))}"
        )
    return _window(frame, item_ids, baskets=data.baskets, ordered_only=False)


def log_window(log: InteractionLog, item_ids: Sequence[str], before: SequenceData | None = None) -> Window:
    """The events of a log, after what is already known of its users.

    Args:
        log: new events; those that ``before`` has as well (same user, item and time) are not new.
        item_ids: vocabulary of the bundle.
        before: what ``prepare`` left, if anything.

    Raises:
        DataError: none of the events is new and of a known item.
    """
    new = log.frame.select(pl.col(USER).cast(pl.String), pl.col(ITEM).cast(pl.String), TIME)
    ordered_only = log.report.ordered_only or (before is not None and before.ordered_only)
    baskets = not ordered_only and log.report.ties_share >= BASKET_SHARE
    frame = new.with_columns(pl.lit(True).alias(NEW))
    if before is not None:
        baskets = before.baskets
        old = _frame(before).join(new.select(USER).unique(), on=USER, how="semi", maintain_order="left")
        if not ordered_only:
            frame = frame.join(old, on=[USER, ITEM, TIME], how="anti", maintain_order="left")
        order = [USER, NEW, TIME] if ordered_only else [USER, TIME, NEW]
        frame = pl.concat([old.with_columns(pl.lit(False).alias(NEW)), frame]).sort(order, maintain_order=True)
    if not frame[NEW].any():
        raise DataError(f"{log.report.source} holds no event that the prepared log does not have: give newer events")
    return _window(frame, item_ids, baskets=baskets, ordered_only=ordered_only)


def moment(text: str) -> int:
    """A date, a date with time (UTC unless it says otherwise), or seconds since 1970 -> seconds since 1970.

    Raises:
        ConfigError: it is none of these.
    """
    if text.lstrip("-").isdigit():
        return int(text)
    try:
        value = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(f"{text!r} is no time: give a date such as 2016-10-01, or seconds since 1970") from error
    return int((value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp())


def last_days(data: SequenceData, days: float) -> tuple[int, int]:
    """Start and end of the last ``days`` of the data."""
    end = int(data.times.max()) + 1
    return end - int(days * DAY), end


def _frame(data: SequenceData) -> pl.DataFrame:
    owner = np.repeat(np.arange(data.n_users), np.diff(data.offsets))
    users, items = data.user_ids.gather(owner), data.item_ids.gather(data.items - 1)
    return pl.DataFrame({USER: users, ITEM: items, TIME: data.times})


def _window(frame: pl.DataFrame, item_ids: Sequence[str], *, baskets: bool, ordered_only: bool) -> Window:
    """Events in the order of user and time, with the column ``new``, in the vocabulary of the bundle."""
    vocabulary = pl.Enum(list(item_ids))
    known = frame.with_columns(pl.col(ITEM).cast(vocabulary, strict=False)).drop_nulls(ITEM)
    new = known[NEW].to_numpy()
    if not new.any():
        raise DataError("the bundle knows none of the items in these events: train and release one that does")
    counts = known.group_by(USER, maintain_order=True).len()
    offsets = np.concatenate([[0], counts["len"].to_numpy().cumsum()]).astype(np.int64)
    times = known[TIME].to_numpy().astype(np.int64)
    starts = np.arange(len(known), dtype=np.int64)
    if baskets:
        first = np.append(True, times[1:] != times[:-1])
        first[offsets[:-1]] = True
        starts = np.maximum.accumulate(np.where(first, starts, 0))
    data = SequenceData(
        items=known[ITEM].to_physical().to_numpy().astype(np.int32) + np.int32(1),
        times=times,
        offsets=offsets,
        basket_start=starts,
        user_ids=counts[USER],
        item_ids=pl.Series(ITEM, list(item_ids)),
        titles=None,
        baskets=baskets,
        ordered_only=ordered_only,
    )
    return Window(data, np.flatnonzero(new), int(frame[NEW].sum()) - int(new.sum()))


def _utc(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
