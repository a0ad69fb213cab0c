"""One view of every kind of source: named columns to scan, and words for the place of a row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import pandas as pd
import polars as pl
import pyarrow.parquet as pq
from typing_extensions import override

from persona.errors import DataError


class Table(ABC):
    """A source of named columns.

    Attributes:
        label: what messages call it: the path, or "the pandas DataFrame".
        format: the kind of source, in words.
        names: its columns.
        separator: of text.
        header: whether the first line of text names the columns.
    """

    label: str
    format: str
    names: list[str]
    separator: str | None = None
    header: bool | None = None

    @abstractmethod
    def scan(self, columns: list[str]) -> pl.LazyFrame:
        """These columns, blank lines left out, in row order."""

    def at(self, row: int) -> str:
        """The beginning of a message about a row of ``scan``: the source and the place in it."""
        return f"{self.label}, row {row} (counted from 0)"

    def missing(self, row: int, column: str) -> str:
        """What to say about a row without a value in a column that needs one."""
        return f"{self.at(row)}: column {column!r} has no value: fill it or drop the row"

    def broken(self, error: BaseException) -> DataError:
        """The clear form of an error that polars raised while it read."""
        return DataError(f"{self.label}: cannot be read as {self.format} ({first_line(error)}): write the file again")


class PolarsTable(Table):
    """A polars DataFrame or LazyFrame."""

    format = "polars frame"

    def __init__(self, frame: pl.DataFrame | pl.LazyFrame, label: str) -> None:
        self.label = label
        self._frame = frame.lazy()
        try:
            self.names = self._frame.collect_schema().names()
        except (pl.exceptions.PolarsError, OSError) as error:
            raise self.broken(error) from error

    @override
    def scan(self, columns: list[str]) -> pl.LazyFrame:
        return self._frame.select(columns)

    @override
    def broken(self, error: BaseException) -> DataError:
        return DataError(f"{self.label} cannot be collected ({first_line(error)}): mend its query")


class PandasTable(Table):
    """A pandas DataFrame. Only the columns asked for are converted, so that odd ones elsewhere do no harm."""

    format = "pandas DataFrame"

    def __init__(self, frame: pd.DataFrame, label: str) -> None:
        self.label = label
        self._frame = frame
        self.names = [str(name) for name in frame.columns]
        check_distinct(self.names, label)

    @override
    def scan(self, columns: list[str]) -> pl.LazyFrame:
        series = [self._convert(name) for name in columns]
        return pl.DataFrame(series).lazy()

    def _convert(self, name: str) -> pl.Series:
        column = self._frame.iloc[:, self.names.index(name)]
        if column.dtype == object:
            self._check_one_type(name, column)
        return pl.from_pandas(column).alias(name)

    def _check_one_type(self, name: str, column: pd.Series) -> None:
        """Refuse an object column whose values are of several types: 42 and "42" could be one id or two."""
        first: type | None = None
        for row, (value, missing) in enumerate(zip(column, column.isna(), strict=True)):
            if missing:
                continue
            first = first or type(value)
            if type(value) is not first:
                raise DataError(
                    f"{self.at(row)}: column {name!r} holds {type(value).__name__} where the rows before hold "
                    f"{first.__name__}: convert it to one type, for example with .astype(str)"
                )


class Rows(Table):
    """Some rows of another table, from ``start`` on, already read; only the places of rows are asked for."""

    def __init__(self, table: Table, start: int) -> None:
        self.label, self.format, self.names = table.label, table.format, table.names
        self._table, self._start = table, start

    @override
    def scan(self, columns: list[str]) -> pl.LazyFrame:
        return self._table.scan(columns).slice(self._start)

    @override
    def at(self, row: int) -> str:
        return self._table.at(self._start + row)


class ParquetTable(Table):
    """Parquet parts that are read in the order of their names.

    Attributes:
        rows: of all parts.
        schema: of the first part, to whose columns the others have to fit.
    """

    format = "Parquet"

    def __init__(self, parts: Sequence[Path], label: str) -> None:
        self.label = label
        self._parts = sorted(parts)
        if not self._parts:
            raise DataError(f"{label}: the folder holds no .parquet file: give a file, or a folder of Parquet parts")
        self._heights, self._schemas = zip(*map(_checked_footer, self._parts), strict=True)
        self.names = list(self._schemas[0])
        self.rows, self.schema = sum(self._heights), self._schemas[0]

    def blocks(self, columns: list[str], size: int) -> Iterator[tuple[Rows, pl.DataFrame]]:
        """These columns, ``size`` rows at a time, with the places of the rows; only these rows are read."""
        starts = list(accumulate(self._heights, initial=0))
        for start in range(0, self.rows, size):
            end = min(start + size, self.rows)
            first, last = bisect_right(starts, start) - 1, bisect_left(starts, end)
            scan = pl.scan_parquet(self._parts[first:last], extra_columns="ignore").select(columns)
            yield Rows(self, start), scan.slice(start - starts[first], end - start).collect()

    @override
    def scan(self, columns: list[str]) -> pl.LazyFrame:
        first = self._schemas[0]
        for part, schema in zip(self._parts, self._schemas, strict=True):
            for column in columns:
                if schema.get(column) != first[column]:
                    raise DataError(
                        f"{part}: column {column!r} is {schema.get(column, 'missing')}, but {first[column]} in "
                        f"{self._parts[0].name}: write all parts with the same columns"
                    )
        return pl.scan_parquet(self._parts, extra_columns="ignore").select(columns)

    @override
    def at(self, row: int) -> str:
        for part, height in zip(self._parts, self._heights, strict=True):
            if row < height:
                return f"{part}, row {row} (counted from 0)"
            row -= height
        raise IndexError(row)


def part_paths(folder: Path) -> list[Path]:
    """The Parquet files anywhere below ``folder``."""
    return [path for suffix in ("*.parquet", "*.pq") for path in folder.rglob(suffix) if path.is_file()]


def _checked_footer(path: Path) -> tuple[int, pl.Schema]:
    """Number of rows and the columns of a Parquet file, after its two marks and its footer were looked at."""
    with path.open("rb") as file:
        head = file.read(4)
        size = file.seek(0, 2)
        file.seek(max(0, size - 4))
        tail = file.read(4)
    if size == 0:
        raise DataError(f"{path} is empty (0 bytes): write the file again")
    if head != b"PAR1":
        raise DataError(
            f"{path} is not Parquet (it does not start with PAR1): rename it to what it is, or write it again"
        )
    if tail != b"PAR1":
        raise DataError(
            f"{path} is a truncated Parquet file (its end is missing after byte {size:,}): copy or write it again"
        )
    try:
        return int(pq.read_metadata(path).num_rows), pl.scan_parquet(path).collect_schema()
    except Exception as error:  # pyarrow and polars raise many kinds for a damaged footer
        raise DataError(f"{path} is damaged Parquet ({first_line(error)}): write the file again") from error


def check_distinct(names: list[str], label: str) -> None:
    """Refuse two columns of one name."""
    for number, name in enumerate(names):
        if name in names[:number]:
            raise DataError(f"{label}: two columns are named {name!r}: rename one of them")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, for use inside a sentence."""
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".:") if text else type(error).__name__
