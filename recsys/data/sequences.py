"""``SequenceData``: every user's events in time order, as flat arrays.

Example, two users with three and two events (item 0 is padding, so items start at 1)::

    items        4 2 9 | 2 7
    times        5 5 8 | 1 6
    offsets      0 3 5              user u owns positions offsets[u] .. offsets[u + 1] - 1
    basket_start 0 0 2 | 3 4        with baskets: the first position of the same user at the same time

A *position* is an index into ``items``. Everything downstream (protocols, batches, metrics) speaks of positions.

Shape letters: N events, U users, V items, B rows asked for, T context length.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from persona.errors import DataError, FormatError
from persona.storage import atomic_folder
from recsys.data import sequence_files as files
from recsys.data.columns import ITEM, TIME, TITLE, USER
from recsys.data.ids import canonical_id

if TYPE_CHECKING:
    from recsys.data.log import InteractionLog, LogReport

BASKET_SHARE = 0.2

Int32Array = NDArray[np.int32]
Int64Array = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class SequenceData:
    """Every user's events in time order, ties in the order of the log.

    Attributes:
        items: (N,) item of each event, 1..V.
        times: (N,) whole seconds since 1970 (UTC); where ``ordered_only``, an order that has a meaning within a user only.
        offsets: (U + 1,) where each user's events start; the last entry is N.
        basket_start: (N,) the first position of the same user at the same time where ``baskets``, else the own position.
        user_ids: (U,) the users' ids as text, numbers in numerical order, else in the order of the alphabet.
        item_ids: (V,) the items' ids as text, ordered like ``user_ids``; item i is ``item_ids[i - 1]``.
        titles: (V,) what to show for each item (null where unknown), or None.
        meta: how the data came about: the report of the log, filters, what was decided. JSON values only.
        baskets: whether events of one user at one time are a set without order, which a context must not look into.
        ordered_only: whether ``times`` is an order within each user, so that no time common to all users exists.
    """

    items: Int32Array
    times: Int64Array
    offsets: Int64Array
    basket_start: Int64Array
    user_ids: pl.Series
    item_ids: pl.Series
    titles: pl.Series | None
    baskets: bool
    ordered_only: bool
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def n_users(self) -> int:
        """Number of users U."""
        return len(self.user_ids)

    @property
    def n_items(self) -> int:
        """Number of items V, padding not counted."""
        return len(self.item_ids)

    @property
    def n_events(self) -> int:
        """Number of events N."""
        return len(self.items)

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hex, over events, users, items and how time is to be read; titles and ``meta`` do not count."""
        return files.digest([self.items], [self.times], self.offsets, (self.user_ids, self.item_ids), self._flags)

    @property
    def _flags(self) -> dict[str, bool]:
        return {"baskets": self.baskets, "ordered_only": self.ordered_only}

    @cached_property
    def item_index(self) -> dict[str, int]:
        """Item id -> item index 1..V."""
        return {item: index for index, item in enumerate(self.item_ids.to_list(), start=1)}

    @cached_property
    def user_index(self) -> dict[str, int]:
        """User id -> user index 0..U-1."""
        return {user: index for index, user in enumerate(self.user_ids.to_list())}

    @cached_property
    def repeats_share(self) -> float:
        """Share of the next events (all but each user's first) that are an item which the user has had before."""
        distinct = len(self.seen_items()[1])
        return (self.n_events - distinct) / max(1, self.n_events - self.n_users)

    def user_of(self, positions: NDArray[np.integer]) -> Int64Array:
        """The user (0..U-1) that each position belongs to: (B,) -> (B,)."""
        return np.searchsorted(self.offsets, positions, side="right").astype(np.int64) - 1

    def contexts(self, positions: NDArray[np.integer], length: int) -> tuple[Int64Array, Int64Array]:
        """What was known just before each position: the user's last ``length`` events before its basket.

        Returns:
            items (B, length), oldest first, left-aligned, padded with 0; and how many are valid (B,).
        """
        positions = np.asarray(positions, dtype=np.int64)
        stop = self.basket_start[positions]
        start = np.maximum(self.offsets[self.user_of(positions)], stop - length)
        return self._gather(start, stop, length)

    def _gather(self, start: Int64Array, stop: Int64Array, length: int) -> tuple[Int64Array, Int64Array]:
        """Items [start, stop) of each row: two (B,) -> items (B, length) and lengths (B,)."""
        index = start[:, None] + np.arange(length)
        valid = index < stop[:, None]
        items = np.where(valid, self.items[np.minimum(index, self.n_events - 1)], 0)
        return items.astype(np.int64), stop - start

    def history_of(self, user_id: Any) -> Int32Array:
        """All items of one user, oldest first.

        Raises:
            DataError: the user is not in the data; such a user is served from a history given as item ids.
        """
        user = self.user_index.get(canonical_id(user_id))
        if user is None:
            example = ", ".join(self.user_ids.head(3).to_list())
            raise DataError(f"user {user_id!r} is not in the data ({self.n_users:,} users, for example {example})")
        return self.items[self.offsets[user] : self.offsets[user + 1]]

    def seen_items(self, users: NDArray[np.integer] | None = None) -> tuple[Int64Array, Int32Array]:
        """The distinct items of users, in compressed rows, for negative sampling and for ranking without seen items.

        Args:
            users: (B,) users 0..U-1, in any order; all users if not given.

        Returns:
            indptr (B + 1,) and items: those of row b are ``items[indptr[b]:indptr[b + 1]]``, ascending.
        """
        users = np.arange(self.n_users) if users is None else np.asarray(users, dtype=np.int64)
        counts = self.offsets[users + 1] - self.offsets[users]
        rows = np.repeat(np.arange(len(users)), counts)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        items = self.items[np.repeat(self.offsets[users], counts) + within]
        pairs = np.sort(rows * (self.n_items + 1) + items)  # np.unique hashes, which takes ten times as long here
        pairs = pairs[np.append(True, pairs[1:] != pairs[:-1])] if len(pairs) else pairs
        indptr = np.searchsorted(pairs, np.arange(len(users) + 1) * (self.n_items + 1)).astype(np.int64)
        return indptr, (pairs % (self.n_items + 1)).astype(np.int32)

    def without(self, user_id: Any) -> SequenceData:
        """The same log as if the user had never been there; items that nobody else has go as well.

        Raises:
            DataError: the user is not in the data, or fewer than two users or items are left.
        """
        self.history_of(user_id)
        user = self.user_index[canonical_id(user_id)]
        kept = np.delete(np.arange(self.n_events), slice(self.offsets[user], self.offsets[user + 1]))
        used = np.bincount(self.items[kept], minlength=self.n_items + 1)[1:] > 0
        if self.n_users < 3 or used.sum() < 2:
            raise DataError(
                f"without user {user_id!r} fewer than two users or two items are left: prepare another log instead"
            )
        number = np.cumsum(used, dtype=np.int32)
        mask = pl.Series(used)
        return _assemble(
            items=number[self.items[kept] - 1],
            times=self.times[kept],
            counts=np.delete(np.diff(self.offsets), user),
            user_ids=self.user_ids.filter(pl.Series(np.arange(self.n_users) != user)),
            item_ids=self.item_ids.filter(mask),
            titles=None if self.titles is None else self.titles.filter(mask),
            baskets=self.baskets,
            ordered_only=self.ordered_only,
            meta=self.meta,
        )

    def save(self, folder: str | Path) -> None:
        """Write the data into ``folder`` (parquet and JSON), which appears at once or not at all.

        Raises:
            FormatError: ``folder`` exists and holds something else, which is left alone.
        """
        folder = Path(folder)
        files.FORMAT.check_target(folder)
        counts = {"users": self.n_users, "items": self.n_items, "events": self.n_events}
        with atomic_folder(folder) as new:
            pl.DataFrame({files.INDEX: self.items, TIME: self.times}).write_parquet(new / files.EVENTS)
            files.write_tables(new, self.user_ids, np.diff(self.offsets), self.item_ids, self.titles)
            files.write_header(new, self.digest, self._flags, counts, self.meta)

    @classmethod
    def load(cls, folder: str | Path) -> SequenceData:
        """Read what ``save`` wrote.

        Raises:
            FormatError: the folder is missing, holds something else, is of another version, or is damaged.
        """
        folder = Path(folder)
        header = files.FORMAT.read(folder)
        try:
            events = pl.read_parquet(folder / files.EVENTS)
            users = pl.read_parquet(folder / files.USERS)
            items = pl.read_parquet(folder / files.ITEMS)
            data = _assemble(
                items=events[files.INDEX].to_numpy(),
                times=events[TIME].to_numpy(),
                counts=users["events"].to_numpy(),
                user_ids=users[USER],
                item_ids=items[ITEM],
                titles=items[TITLE] if TITLE in items.columns else None,
                baskets=header["baskets"],
                ordered_only=header["ordered_only"],
                meta=header["meta"],
            )
        except (
            pl.exceptions.PolarsError,
            pl.exceptions.PanicException,
            OSError,
            KeyError,
            TypeError,
            ValueError,
        ) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise FormatError(f"{folder} is damaged ({reason}): prepare the data again") from error
        if data.digest != header["digest"]:
            raise FormatError(f"{folder} is damaged (its digest does not fit its contents): prepare the data again")
        return data


def _assemble(
    *,
    items: NDArray[np.integer],
    times: NDArray[np.integer],
    counts: NDArray[np.integer],
    user_ids: pl.Series,
    item_ids: pl.Series,
    titles: pl.Series | None,
    baskets: bool,
    ordered_only: bool,
    meta: dict[str, Any],
) -> SequenceData:
    """Derive offsets and basket starts. ``items`` and ``times`` (N,) are grouped by user, ``counts`` (U,) events each."""
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    if offsets[-1] != len(items):
        raise ValueError("the users' events do not add up")
    whole = times.astype(np.int64, copy=False)
    return SequenceData(
        items=items.astype(np.int32, copy=False),
        times=whole,
        offsets=offsets,
        basket_start=_basket_starts(whole, offsets) if baskets else np.arange(len(items), dtype=np.int64),
        user_ids=user_ids.alias(USER),
        item_ids=item_ids.alias(ITEM),
        titles=None if titles is None else titles.alias(TITLE),
        baskets=baskets,
        ordered_only=ordered_only,
        meta=meta,
    )


def _basket_starts(times: Int64Array, offsets: Int64Array) -> Int64Array:
    """For each position (N,) the first position of the same user at the same time."""
    new = np.ones(len(times), dtype=bool)
    new[1:] = times[1:] != times[:-1]
    new[offsets[:-1]] = True
    starts = np.flatnonzero(new)
    return np.repeat(starts, np.diff(np.append(starts, len(times))))


def build_sequences(
    log: InteractionLog,
    *,
    min_user_events: int = 1,
    min_item_events: int = 1,
    baskets: bool | None = None,
) -> SequenceData:
    """Turn a log into sequences.

    Args:
        log: what ``recsys.log.read_log`` returned.
        min_user_events: users with fewer events are left out. Counted once, on the whole log, as is
            ``min_item_events``: no repeated filtering until every user and item has that many.
        min_item_events: items with fewer events are left out.
        baskets: whether events of one user at one time are a set without order; by default, when times are real and at
            least 20 % of the rows tie with another one of the same user.

    Raises:
        DataError: the filter leaves fewer than two users or two items.
    """
    frame = log.frame
    users = frame[USER].to_physical().to_numpy()
    items = frame[ITEM].to_physical().to_numpy()
    times = frame[TIME].to_numpy()
    user_ids, item_ids = (_categories(frame[name]) for name in (USER, ITEM))
    if min_user_events > 1 or min_item_events > 1:
        keep = (np.bincount(users) >= min_user_events)[users] & (np.bincount(items) >= min_item_events)[items]
        users, user_ids = _compact(users[keep], user_ids)
        items, item_ids = _compact(items[keep], item_ids)
        times = times[keep]
        check_left(log.report.source, len(user_ids), len(item_ids), min_user_events, min_item_events)
    together, meta = describe(log.report, baskets, min_user_events, min_item_events)
    return _assemble(
        items=items.astype(np.int32) + np.int32(1),
        times=times,
        counts=np.bincount(users, minlength=len(user_ids)),
        user_ids=user_ids,
        item_ids=item_ids,
        titles=titles_of(log.titles, item_ids),
        baskets=together,
        ordered_only=log.report.ordered_only,
        meta=meta,
    )


def _categories(ids: pl.Series) -> pl.Series:
    """The ordered vocabulary of an id column of ``InteractionLog.frame``; its physical codes index it."""
    dtype = ids.dtype
    if not isinstance(dtype, pl.Enum):
        raise TypeError(f"column {ids.name!r} is {dtype}, expected Enum: logs come from recsys.log.read_log")
    return dtype.categories


def _compact(codes: NDArray[np.integer], ids: pl.Series) -> tuple[NDArray[np.integer], pl.Series]:
    """Renumber ``codes`` (N,) so that ids without an event vanish from the vocabulary, in unchanged order."""
    used = np.bincount(codes, minlength=len(ids)) > 0
    new_code = np.cumsum(used, dtype=np.int64) - 1
    return new_code[codes], ids.filter(pl.Series(used))


def titles_of(titles: pl.DataFrame | None, item_ids: pl.Series) -> pl.Series | None:
    """Titles in the order of the vocabulary, null where the log had none."""
    if titles is None:
        return None
    return pl.DataFrame({ITEM: item_ids}).join(titles, on=ITEM, how="left", maintain_order="left")[TITLE]


def describe(
    report: LogReport, baskets: bool | None, min_user_events: int, min_item_events: int
) -> tuple[bool, dict[str, Any]]:
    """Whether events at one time count as a set (``baskets``: as asked for, or None), and the ``meta`` of the data."""
    share = f"{report.ties_share:.1%} of the rows share user and time with another one"
    automatic = not report.ordered_only and report.ties_share >= BASKET_SHARE
    if baskets is not None:
        note = f"{'on' if baskets else 'off'}, as asked ({share})"
    elif report.ordered_only:
        note = "off: the log has an order, but no time"
    else:
        note = f"{'on' if automatic else 'off'}: {share} (on from {BASKET_SHARE:.0%})"
    meta = {
        "log": report.as_dict(),
        "min_user_events": min_user_events,
        "min_item_events": min_item_events,
        "baskets": note,
    }
    return automatic if baskets is None else baskets, meta


def check_left(source: str, users: int, items: int, min_user_events: int, min_item_events: int) -> None:
    """Refuse a filter that leaves fewer than two users or two items.

    Raises:
        DataError: it does.
    """
    if users < 2 or items < 2:
        raise DataError(
            f"{source}: no two users and two items are left of users with >= {min_user_events} and items with "
            f">= {min_item_events} events: lower the minimum"
        )
