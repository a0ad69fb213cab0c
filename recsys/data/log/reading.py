"""``read_log``: any interaction log -> clean events in order, and a report of what was understood."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl

from persona.errors import DataError, nearest
from recsys.data.columns import ITEM, TIME, TITLE, USER, ColumnMapping
from recsys.data.ids import canonical_texts
from recsys.data.log.arranging import arrange
from recsys.data.log.encoding import encode_ids, note_missing_words
from recsys.data.log.mapping import map_columns
from recsys.data.log.rawbytes import check_kind
from recsys.data.log.report import Found, InteractionLog, log_report
from recsys.data.log.tables import PandasTable, ParquetTable, PolarsTable, Table, part_paths
from recsys.data.log.text import TextTable
from recsys.data.log.times import Times, read_times

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
            of Parquet parts or a pattern such as ``log/2024-*.parquet``, or a pandas or polars frame.
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
        return ParquetTable(_matching(path, label), label)
    if path.is_dir():
        return ParquetTable(part_paths(path), label)
    try:
        if _is_parquet(path):
            return ParquetTable([path], label)
        check_kind(path, label)
        return TextTable(path, label, separator, named)
    except OSError as error:
        raise DataError(
            f"{label} cannot be read ({error.strerror or error}): check the file and its permissions"
        ) from error


def _matching(pattern: Path, label: str) -> list[Path]:
    """The Parquet parts that a pattern stands for."""
    if not glob.has_magic(str(pattern)):
        raise DataError(f"{label} does not exist: {_nearest_file(pattern)}")
    parts = [Path(name) for name in glob.glob(str(pattern), recursive=True)]
    if not parts:
        raise DataError(f"no file matches {label}: check the pattern")
    other = [part for part in parts if not (part.is_file() and _is_parquet(part))]
    if other:
        raise DataError(f"{label} matches {min(other)}, which is no Parquet: several files are read only of Parquet")
    return parts


def names_parquet(path: Path) -> bool:
    """Whether this is a Parquet file, a folder of parts or a pattern of their names; no other file is opened."""
    if path.is_file():
        return _is_parquet(path)
    return path.is_dir() or (not path.exists() and glob.has_magic(str(path)))


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


def _read(table: Table, mapping: ColumnMapping) -> InteractionLog:
    columns = [mapping.user, mapping.item, *(name for name in (mapping.time or mapping.order,) if name)]
    frame = table.scan(columns).collect(engine="streaming")
    rows = frame.height
    check_rows(rows, table)
    check_present(frame, table)
    times = times_of(frame, table, mapping)
    users, user_ids = encode_ids(frame.drop_in_place(mapping.user), table)
    items, item_ids = encode_ids(frame.drop_in_place(mapping.item), table)
    check_ids("user", user_ids, table)
    check_ids("item", item_ids, table)
    events = arrange(users, items, times)
    found = Found.of(events, rows, len(user_ids), len(item_ids))
    check_repeats(found, table)
    coded = {
        USER: pl.Series(events.users).cat.to(pl.Enum(user_ids)),
        ITEM: pl.Series(events.items).cat.to(pl.Enum(item_ids)),
        TIME: events.times,
    }
    notes = note_missing_words(user_ids, "user") + note_missing_words(item_ids, "item")
    return InteractionLog(
        frame=pl.DataFrame(coded),
        titles=None if mapping.title is None else titles_of(table, mapping.item, mapping.title),
        report=log_report(table, mapping, times.kind, times.is_date, found, notes),
    )


def check_rows(rows: int, table: Table) -> None:
    """Refuse an empty log."""
    if rows == 0:
        raise DataError(f"{table.label} holds no events: give a log with rows")


def check_ids(role: str, ids: pl.Series, table: Table) -> None:
    """Refuse a log of a single user or item."""
    if len(ids) < 2:
        raise DataError(
            f"{table.label}: only one {role} ({ids[0]!r}), but a recommender needs several: give a larger log"
        )


def check_repeats(found: Found, table: Table) -> None:
    """Refuse a log in which nobody did anything twice."""
    if found.events == found.users:
        raise DataError(f"{table.label}: too few events, no user has more than one: a sequence needs at least two")


def check_present(frame: pl.DataFrame, table: Table) -> None:
    """Refuse rows without a user, item or time; of several faults the one in the first row is reported."""
    gaps = [(int(column.is_null().arg_true()[0]), column.name) for column in frame if column.null_count()]
    if gaps:
        raise DataError(table.missing(*min(gaps, key=lambda gap: gap[0])))


def times_of(frame: pl.DataFrame, table: Table, mapping: ColumnMapping) -> Times:
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


def titles_of(table: Table, item: str, title: str) -> pl.DataFrame:
    """The first title of each item that has one."""
    frame = table.scan([item, title]).drop_nulls().unique(subset=item, keep="first", maintain_order=True).collect()
    titles = pl.DataFrame({ITEM: canonical_texts(frame[item]), TITLE: frame[title].cast(pl.String)})
    return titles.unique(subset=ITEM, keep="first", maintain_order=True)
