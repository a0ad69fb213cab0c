"""A log of Parquet parts -> sequences on disk, with nothing but vocabularies and counts of the whole log in memory.

    1. distinct ids, counts and the kind of the times, column by column (polars' streaming engine)
    2. blocks of rows are coded and thrown into buckets of whole users, on disk
    3. every bucket is put in order and freed of duplicates, and counted
    4. every bucket is filtered and appended to the file of events

What is written is what ``read_log``, ``build_sequences`` and ``SequenceData.save`` write of the same log.

Shapes: N rows of a block or bucket, U users, V items.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from persona.storage import atomic_folder
from recsys.data import sequence_files as files
from recsys.data.columns import ITEM, TITLE, ColumnMapping
from recsys.data.ids import canonical_texts
from recsys.data.log.arranging import arrange
from recsys.data.log.encoding import Vocabulary, as_ids, check_values, note_missing_words, wrong_values
from recsys.data.log.reading import check_ids, check_present, check_repeats, check_rows, times_of
from recsys.data.log.report import Found, LogReport, log_report
from recsys.data.log.tables import ParquetTable
from recsys.data.log.times import Times
from recsys.data.sequences import check_left, describe, titles_of

# Rows that are read at once, and rows of a bucket; a user with more events has a bucket of their own.
BLOCK, BUCKET = 1 << 22, 1 << 22
FRACTIONS = ", with fractions"

_ROW = np.dtype([("user", "<u4"), ("item", "<u4"), ("tick", "<i8")])


class NotStreamable(Exception):
    """The times can only be understood from the whole log, so it has to be read at once."""


@dataclass(frozen=True)
class PreparedLog:
    """What was written.

    Attributes:
        report: how the log was understood.
        user_ids: (U,) ids.
        counts: (U,) events of each user.
        items: V.
        baskets: whether events of one user at one time are a set.
        digest: of the sequences.
        meta: of the sequences.
    """

    report: LogReport
    user_ids: pl.Series
    counts: NDArray[np.int64]
    items: int
    baskets: bool
    digest: str
    meta: dict[str, Any]


@dataclass(frozen=True)
class _Kind:
    """How times are to be read, as in ``Times``."""

    per_second: int
    kind: str
    is_date: bool


def stream_log(
    table: ParquetTable,
    mapping: ColumnMapping,
    folder: Path,
    *,
    min_user_events: int = 1,
    min_item_events: int = 1,
    baskets: bool | None = None,
    block: int = BLOCK,
    bucket: int = BUCKET,
) -> PreparedLog:
    """Prepare a log block by block.

    Args:
        table: the parts.
        mapping: their columns.
        folder: for the sequences; it appears at once or not at all.
        min_user_events: as in ``build_sequences``, like the rest.
        min_item_events: likewise.
        baskets: likewise.
        block: rows that are read at once.
        bucket: rows that are put in order at once.

    Raises:
        DataError: the log is broken, or the filter leaves too little.
        FormatError: the folder holds something else.
        NotStreamable: times are text, or their parts are of different kinds.
    """
    files.FORMAT.check_target(folder)
    check_rows(table.rows, table)
    kind = _kind(table, mapping, block)
    users, items = _vocabularies(table, mapping, block)
    titles = None if mapping.title is None else _titles(table, mapping.item, mapping.title, block)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.buckets.") as spilled:
        buckets = _scatter(table, mapping, kind, (users, items), Path(spilled), block, bucket)
        found, events_of_user, events_of_item = _arranged(buckets, kind, table.rows, len(users.texts), len(items.texts))
        check_repeats(found, table)
        notes = note_missing_words(users.texts, "user") + note_missing_words(items.texts, "item")
        report = log_report(table, mapping, kind.kind, kind.is_date, found, notes)
        kept = _Kept.of(events_of_user >= min_user_events, events_of_item >= min_item_events, buckets)
        user_ids, item_ids = users.texts.filter(kept.users), items.texts.filter(kept.items)
        if min_user_events > 1 or min_item_events > 1:
            check_left(report.source, len(user_ids), len(item_ids), min_user_events, min_item_events)
        together, meta = describe(report, baskets, min_user_events, min_item_events)
        flags = {"baskets": together, "ordered_only": report.ordered_only}
        with atomic_folder(folder) as new:
            counts = kept.write(new / files.EVENTS, buckets)
            digest = _write(new, counts, (user_ids, item_ids), titles_of(titles, item_ids), flags, meta)
    return PreparedLog(report, user_ids, counts, len(item_ids), together, digest, meta)


def _write(
    folder: Path,
    counts: NDArray[np.int64],
    ids: tuple[pl.Series, pl.Series],
    titles: pl.Series | None,
    flags: dict[str, bool],
    meta: dict[str, Any],
) -> str:
    """Tables and header beside the events of a folder; returns the digest of all of it."""
    user_ids, item_ids = ids
    files.write_tables(folder, user_ids, counts, item_ids, titles)
    digest = _digest(folder, counts, ids, flags)
    about = {"users": len(user_ids), "items": len(item_ids), "events": int(counts.sum())}
    files.write_header(folder, digest, flags, about, meta)
    return digest


def _kind(table: ParquetTable, mapping: ColumnMapping, block: int) -> _Kind:
    """What all blocks' times are; gaps in any column are found on the way."""
    columns = [mapping.user, mapping.item, *(name for name in (mapping.time or mapping.order,) if name)]
    gaps = table.scan(columns).null_count().collect(engine="streaming")
    if sum(gaps.row(0)):
        for rows, frame in table.blocks(columns, block):
            check_present(frame, rows)
    if mapping.time is None:
        return _Kind(1, "row order" if mapping.order is None else "order within a user", is_date=False)
    if table.schema[mapping.time] in (pl.String, pl.Categorical, pl.Enum):
        raise NotStreamable
    found = {
        (times.per_second, times.kind, times.is_date)
        for times in (times_of(frame, rows, mapping) for rows, frame in table.blocks([mapping.time], block))
    }
    kinds = {kind.removesuffix(FRACTIONS) for _, kind, _ in found}
    if len(kinds) > 1:
        raise NotStreamable
    return _Kind(*max(found))


def _vocabularies(table: ParquetTable, mapping: ColumnMapping, block: int) -> tuple[Vocabulary, Vocabulary]:
    """The ids of users and of items, checked."""
    users, items = (_vocabulary(table, column, block) for column in (mapping.user, mapping.item))
    check_ids("user", users.texts, table)
    check_ids("item", items.texts, table)
    return users, items


def _vocabulary(table: ParquetTable, column: str, block: int) -> Vocabulary:
    """The ids of a column."""
    distinct = table.scan([column]).unique().collect(engine="streaming")[column]
    distinct = as_ids(distinct, table).unique()
    if len(wrong_values(distinct)[0]):
        for rows, frame in table.blocks([column], block):
            values = as_ids(frame[column], rows)
            check_values(values.unique(), values, rows)
    return Vocabulary.of(distinct)


def _counts(table: ParquetTable, column: str, users: Vocabulary) -> NDArray[np.int64]:
    """(U,) rows of every user."""
    frame = table.scan([column]).group_by(column).len().collect(engine="streaming")
    codes = users.encode(as_ids(frame[column], table))
    return np.bincount(codes, weights=frame["len"].to_numpy(), minlength=len(users.texts)).astype(np.int64)


def _edges(counts: NDArray[np.int64], bucket: int) -> NDArray[np.int64]:
    """The first user of every bucket: a bucket ends before the user with whom it would hold more than ``bucket`` rows."""
    starts = [0]
    total = np.concatenate([[0], np.cumsum(counts)])
    while True:
        # At least one user, at most what fits.
        fits = int(np.searchsorted(total, total[starts[-1]] + bucket, side="right")) - 1
        following = max(fits, starts[-1] + 1)
        if following >= len(counts):
            return np.array(starts, dtype=np.int64)
        starts.append(following)


def _titles(table: ParquetTable, item: str, title: str, block: int) -> pl.DataFrame:
    """The first title of each item that has one."""
    kept: pl.DataFrame | None = None
    for _, frame in table.blocks([item, title], block):
        fresh = frame.drop_nulls()
        kept = (fresh if kept is None else pl.concat([kept, fresh])).unique(item, keep="first", maintain_order=True)
    assert kept is not None
    named = pl.DataFrame({ITEM: canonical_texts(kept[item]), TITLE: kept[title].cast(pl.String)})
    return named.unique(ITEM, keep="first", maintain_order=True)


def _scatter(
    table: ParquetTable,
    mapping: ColumnMapping,
    kind: _Kind,
    ids: tuple[Vocabulary, Vocabulary],
    folder: Path,
    block: int,
    bucket: int,
) -> list[Path]:
    """Write every row into the bucket of its user, in the order of rows; the buckets."""
    edges = _edges(_counts(table, mapping.user, ids[0]), bucket)
    buckets = [folder / str(i) for i in range(len(edges))]
    columns = [mapping.user, mapping.item, *(name for name in (mapping.time or mapping.order,) if name)]
    start = 0
    for rows, frame in table.blocks(columns, block):
        times = times_of(frame, rows, mapping)
        coded = np.empty(frame.height, dtype=_ROW)
        coded["tick"] = times.ticks * (kind.per_second // times.per_second)
        if len(columns) == 2:
            coded["tick"] += start
        coded["user"] = ids[0].encode(as_ids(frame[mapping.user], rows))
        coded["item"] = ids[1].encode(as_ids(frame[mapping.item], rows))
        start += frame.height
        owner = np.searchsorted(edges, coded["user"], side="right") - 1
        order = np.argsort(owner.astype(np.uint16) if len(edges) < 1 << 16 else owner, kind="stable")
        ends = np.cumsum(np.bincount(owner, minlength=len(edges)))
        for path, piece in zip(buckets, np.split(coded[order], ends[:-1]), strict=True):
            if len(piece):
                with path.open("ab") as file:
                    piece.tofile(file)
    return buckets


def _arranged(
    buckets: list[Path], kind: _Kind, rows: int, users: int, items: int
) -> tuple[Found, NDArray[np.int64], NDArray[np.int64]]:
    """Put every bucket in order, without duplicates and with seconds for ticks; what was found, and events by user and item."""
    by_user, by_item = np.zeros(users, dtype=np.int64), np.zeros(items, dtype=np.int64)
    parts = []
    for path in buckets:
        coded = np.fromfile(path, dtype=_ROW)
        times = Times(coded["tick"].copy(), kind.per_second, kind.kind, kind.is_date)
        events = arrange(coded["user"].copy(), coded["item"].copy(), times)
        parts.append(Found.of(events, len(coded), 0, 0))
        low = int(events.users[0])
        counts = np.bincount(events.users - events.users[0])
        by_user[low : low + len(counts)] += counts
        by_item += np.bincount(events.items, minlength=items)
        kept = np.empty(len(events.users), dtype=_ROW)
        kept["user"], kept["item"], kept["tick"] = events.users, events.items, events.times
        kept.tofile(path)
    found = Found(
        rows=rows,
        events=sum(p.events for p in parts),
        users=users,
        items=items,
        duplicates=sum(p.duplicates for p in parts),
        ties=sum(p.ties for p in parts),
        repeats=sum(p.repeats for p in parts),
        first=min(p.first for p in parts),
        last=max(p.last for p in parts),
    )
    return found, by_user, by_item


@dataclass(frozen=True)
class _Kept:
    """Which users (U,) and items (V,) have an event that stays, and which are frequent enough to stay."""

    users: pl.Series
    items: pl.Series
    frequent_users: NDArray[np.bool_]
    frequent_items: NDArray[np.bool_]

    @classmethod
    def of(cls, users: NDArray[np.bool_], items: NDArray[np.bool_], buckets: list[Path]) -> _Kept:
        """Read the buckets once more only if something is left out: what remains may have lost its partners."""
        if users.all() and items.all():
            return cls(pl.Series(users), pl.Series(items), users, items)
        left_users, left_items = np.zeros_like(users), np.zeros_like(items)
        for coded in map(_read, buckets):
            mask = users[coded["user"]] & items[coded["item"]]
            left_users[coded["user"][mask]] = True
            left_items[coded["item"][mask]] = True
        return cls(pl.Series(left_users), pl.Series(left_items), users, items)

    def write(self, path: Path, buckets: list[Path]) -> NDArray[np.int64]:
        """Append what stays of every bucket to a Parquet file; (U',) events of each user that stays."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        new_item = np.cumsum(self.items.to_numpy(), dtype=np.int32)
        counts = np.zeros(len(self.users), dtype=np.int64)
        schema = files.event_schema()
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            for coded in map(_read, buckets):
                mask = self.frequent_users[coded["user"]] & self.frequent_items[coded["item"]]
                users, items, times = (coded[name][mask] for name in ("user", "item", "tick"))
                if len(users):
                    some = np.bincount(users - users[0])
                    counts[int(users[0]) : int(users[0]) + len(some)] += some
                    writer.write_table(pa.table([new_item[items], times], schema=schema))
        stay: NDArray[np.int64] = counts[self.users.to_numpy()]
        return stay


def _read(path: Path) -> NDArray[Any]:
    return np.fromfile(path, dtype=_ROW)


def _digest(new: Path, counts: NDArray[np.int64], ids: tuple[pl.Series, pl.Series], flags: files.Flags) -> str:
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    names: Iterator[str] = iter(files.event_schema().names)
    items, times = (files.column_pieces(new / files.EVENTS, name) for name in names)
    return files.digest(items, times, offsets, ids, flags)
