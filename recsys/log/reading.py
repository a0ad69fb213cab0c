"""``read_log``: any interaction log -> clean events in order, and a report of what was understood."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
from numpy.typing import NDArray

from persona.errors import DataError, nearest
from recsys.columns import ITEM, TIME, TITLE, USER, ColumnMapping
from recsys.ids import canonical_texts
from recsys.log.encoding import encode_ids, note_missing_words
from recsys.log.mapping import map_columns
from recsys.log.rawbytes import check_kind
from recsys.log.report import InteractionLog, LogReport, utc
from recsys.log.tables import PandasTable, ParquetTable, PolarsTable, Table
from recsys.log.text import TextTable
from recsys.log.times import Times, read_times

# polars panics, which is no PolarsError, on some damaged Parquet pages.
READ_ERRORS = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError)
PARQUET_SUFFIXES = {".parquet", ".pq"}


def read_log(
    source: str | Path | pd.DataFrame | pl.DataFrame | pl.LazyFrame,
    *,
    user: str | None = None,
    item: str | None = None,
    time: str | None = None,
    title: str | None = None,
    separator: str | None = None,
    name: str | None = None,
) -> InteractionLog:
    """Read an interaction log of any form.

    Separator, header, columns, kind and unit of time are found out; what was understood is in the ``report``. The rules:

    * Events are ordered by user, then time, then row. Without a time, an order column counts; without that, the row order.
    * A row equal to an earlier one in user, item and time is dropped. Repeats at other times are kept.
    * Ids become text: 42 and 42.0 are "42"; "042" stays "042".
    * Times become whole seconds since 1970 (UTC); a finer part only orders the events of a second.

    Args:
        source: a path of CSV, TSV, any separated text, RecBole ``.inter`` (each may be gz-compressed) or Parquet, a folder
            of Parquet parts, or a pandas or polars frame.
        user: column of user ids, where its name does not tell.
        item: column of item ids.
        time: column of times, or of positions in an order.
        title: column of item titles, for display only.
        separator: of a text file, where sniffing fails.
        name: what messages and the report call the source, instead of its path.

    Raises:
        DataError: the source is broken; the message says where and how to mend it.
    """
    explicit = {"user": user, "item": item, "time": time, "title": title}
    table = open_table(source, separator=separator, named=[column for column in explicit.values() if column], name=name)
    try:
        return _read(table, map_columns(table, explicit))
    except READ_ERRORS as error:
        raise table.broken(error) from error


def open_table(source: Any, *, separator: str | None = None, named: list[str], name: str | None = None) -> Table:
    """Find out what ``source`` is. ``named``: column names that the user gave.

    Raises:
        DataError: there is no such file, or it is of a kind that is not read.
    """
    if isinstance(source, pd.DataFrame):
        return PandasTable(source, name or "the pandas DataFrame")
    if isinstance(source, pl.DataFrame | pl.LazyFrame):
        return PolarsTable(source, name or "the polars frame")
    if not isinstance(source, str | Path):
        kind = type(source).__name__
        raise DataError(f"a log cannot be read from a {kind}: give a path, a pandas DataFrame or a polars frame")
    path = Path(source)
    label = name or str(source)
    if not path.exists():
        raise DataError(f"{label} does not exist: {_nearest_file(path)}")
    if path.is_dir():
        return ParquetTable(path, label)
    try:
        if _is_parquet(path):
            return ParquetTable(path, label)
        check_kind(path, label)
        return TextTable(path, label, separator, named)
    except OSError as error:
        raise DataError(
            f"{label} cannot be read ({error.strerror or error}): check the file and its permissions"
        ) from error


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        return path.suffix.lower() in PARQUET_SUFFIXES or file.read(4) == b"PAR1"


def _nearest_file(path: Path) -> str:
    """A hint for a path that does not exist."""
    if not path.parent.is_dir():
        return f"there is no folder {path.parent} either, check the path"
    files = [entry.name for entry in path.parent.iterdir()]
    return (
        nearest(path.name, files)
        if 0 < len(files) <= 50
        else f"check the path ({path.parent} has {len(files)} entries)"
    )


@dataclass(frozen=True)
class _Events:
    """Coded events, sorted by user, time, row, and without duplicates."""

    users: NDArray[np.uint32]
    items: NDArray[np.uint32]
    times: NDArray[np.int64]
    duplicates: int
    ties: int


def _read(table: Table, mapping: ColumnMapping) -> InteractionLog:
    columns = [mapping.user, mapping.item, *(name for name in (mapping.time or mapping.order,) if name)]
    frame = table.scan(columns).collect(engine="streaming")
    rows = frame.height
    if rows == 0:
        raise DataError(f"{table.label} holds no events: give a log with rows")
    _check_present(frame, table)
    times = _times(frame, table, mapping)
    users, user_ids = encode_ids(frame.drop_in_place(mapping.user), table)
    items, item_ids = encode_ids(frame.drop_in_place(mapping.item), table)
    for role, ids in (("user", user_ids), ("item", item_ids)):
        if len(ids) < 2:
            raise DataError(
                f"{table.label}: only one {role} ({ids[0]!r}), but a recommender needs several: give a larger log"
            )
    events = _arrange(users, items, times)
    if len(events.users) == len(user_ids):
        raise DataError(f"{table.label}: too few events, no user has more than one: a sequence needs at least two")
    coded = {
        USER: pl.Series(events.users).cat.to(pl.Enum(user_ids)),
        ITEM: pl.Series(events.items).cat.to(pl.Enum(item_ids)),
        TIME: events.times,
    }
    notes = note_missing_words(user_ids, "user") + note_missing_words(item_ids, "item")
    return InteractionLog(
        frame=pl.DataFrame(coded),
        titles=None if mapping.title is None else _titles(table, mapping.item, mapping.title),
        report=_report(table, mapping, times, events, rows=rows, ids=(len(user_ids), len(item_ids)), notes=notes),
    )


def _check_present(frame: pl.DataFrame, table: Table) -> None:
    """Refuse rows without a user, item or time; of several faults the one in the first row is reported."""
    gaps = [(int(column.is_null().arg_true()[0]), column.name) for column in frame if column.null_count()]
    if gaps:
        raise DataError(table.missing(*min(gaps, key=lambda gap: gap[0])))


def _times(frame: pl.DataFrame, table: Table, mapping: ColumnMapping) -> Times:
    """The time of each row; takes its column out of ``frame``."""
    if mapping.time is not None:
        return read_times(frame.drop_in_place(mapping.time), table)
    if mapping.order is None:
        return Times(np.arange(frame.height, dtype=np.int64), 1, "row order", is_date=False)
    order = frame.drop_in_place(mapping.order)
    numbers = order.cast(pl.Int64, strict=False)
    if order.dtype.is_float():
        numbers = numbers.set(order != order.floor(), None)
    if numbers.null_count() or order.dtype == pl.Boolean:
        row = int(numbers.is_null().arg_true()[0]) if numbers.null_count() else 0
        raise DataError(
            f"{table.at(row)}: column {order.name!r} holds {order[row]!r}, which is no position: give integers"
        )
    return Times(numbers.to_numpy(), 1, "order within a user", is_date=False)


def _arrange(users: NDArray[np.uint32], items: NDArray[np.uint32], times: Times) -> _Events:
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
    return _Events(users, items, seconds, duplicates, ties)


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


def _titles(table: Table, item: str, title: str) -> pl.DataFrame:
    """The first title of each item that has one."""
    frame = table.scan([item, title]).drop_nulls().unique(subset=item, keep="first", maintain_order=True).collect()
    titles = pl.DataFrame({ITEM: canonical_texts(frame[item]), TITLE: frame[title].cast(pl.String)})
    return titles.unique(subset=ITEM, keep="first", maintain_order=True)


def _report(
    table: Table,
    mapping: ColumnMapping,
    times: Times,
    events: _Events,
    *,
    rows: int,
    ids: tuple[int, int],
    notes: list[str],
) -> LogReport:
    first, last = int(events.times.min()), int(events.times.max())
    if first == last:
        notes = [*notes, "mind: all events have one and the same time, so only the row order orders them"]
    if mapping.time is None and mapping.order is None:
        notes = [*notes, "mind: no column of time or order was found, so the row order counts"]
    return LogReport(
        source=table.label,
        format=table.format,
        separator=table.separator,
        header=table.header,
        columns=mapping,
        time_kind=times.kind,
        ordered_only=mapping.time is None,
        rows=rows,
        events=len(events.users),
        users=ids[0],
        items=ids[1],
        duplicates_dropped=events.duplicates,
        ties_share=events.ties / len(events.users),
        first_time=utc(first) if times.is_date else str(first),
        last_time=utc(last) if times.is_date else str(last),
        notes=tuple(notes),
    )
