"""Text files: CSV, TSV, other separators, RecBole's ``.inter``, each of them plain or gz-compressed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import polars as pl
from typing_extensions import override

from persona.errors import DataError
from recsys.data.columns import is_known
from recsys.data.log.rawbytes import check_bytes, check_start, csv_reader, open_text
from recsys.data.log.tables import Table, check_distinct, first_line

SEPARATORS = ("\t", "::", ",", ";", "|", " ")
SAMPLE_LINES = 50
LINE = "line"
RECBOLE_TYPES = {"token", "float", "token_seq", "float_seq"}
NUMBER = re.compile(r"^\s*[-+]?\d[\d.:eE+/\-TZ ]*\s*$")


@dataclass(frozen=True)
class Row:
    """One row of a text file: the number of its first line, counted from 1, and its cells."""

    line: int
    cells: list[str]


class TextTable(Table):
    """A text file of columns. Everything is read as text; the ids' and times' own rules decide what it means."""

    def __init__(self, path: Path, label: str, separator: str | None, named: list[str]) -> None:
        """Sniff ``path``. ``named``: column names the user gave, which make the first line a header if they are in it."""
        self.label = label
        self._path = path
        inter = path.name.removesuffix(".gz").endswith(".inter")
        self.format = "RecBole .inter" if inter else "text"
        check_start(path, label)
        sample = _sample(path)
        lines = [line for _, line in sample]
        if not lines:
            raise DataError(f"{label}, line 1: the file begins with blank lines only: give a file with events")
        self.separator = separator or ("\t" if inter else _sniff_separator(lines, label))
        self._quoted = check_bytes(path, label, self.separator)
        first, *others = [_split(line, self.separator, self._quoted) for line in lines]
        if len(first) < 2:
            raise DataError(
                f"{label}, line 1: one column only when separated by {self.separator!r}: give the right separator=..."
            )
        self.header = inter or _is_header(first, others, named)
        self.names = first if self.header else [f"column {number}" for number in range(1, len(first) + 1)]
        if inter:
            self.names = _without_types(first, label)
        check_distinct(self.names, f"{label}, line 1")
        if self.header and not others:
            raise DataError(f"{label}: line 1 names the columns, but no row follows: give a file with events")
        self._skip = sample[int(self.header)][0]

    @override
    def scan(self, columns: list[str]) -> pl.LazyFrame:
        frame = self._scan_long() if len(str(self.separator)) > 1 else self._scan_csv()
        return frame.filter(~pl.all_horizontal(pl.all().is_null())).select(columns)

    def _scan_csv(self) -> pl.LazyFrame:
        return pl.scan_csv(
            self._path,
            separator=str(self.separator),
            has_header=False,
            skip_lines=self._skip,
            schema=dict.fromkeys(self.names, pl.String),
            quote_char='"' if self._quoted else None,
            missing_columns="insert",
        )

    def _scan_long(self) -> pl.LazyFrame:
        """A separator of several characters, which polars' CSV reader does not know: whole lines, then split."""
        lines = pl.scan_csv(
            self._path,
            separator="\x01",
            has_header=False,
            skip_lines=self._skip,
            schema={LINE: pl.String},
            quote_char=None,
        )
        cells = pl.col(LINE).str.split_exact(str(self.separator), len(self.names) - 1)
        return lines.select(cells.struct.rename_fields(self.names).alias(LINE)).unnest(LINE)

    @override
    def at(self, row: int) -> str:
        return f"{self.label}, line {self._row(row).line}"

    @override
    def missing(self, row: int, column: str) -> str:
        cells = len(self._row(row).cells)
        if cells < len(self.names):
            return f"{self.at(row)}: {cells} columns where the first line has {len(self.names)}: mend the line"
        return super().missing(row, column)

    def _row(self, row: int) -> Row:
        return next(islice(self._rows(), row, None))

    @override
    def broken(self, error: BaseException) -> DataError:
        for content in self._rows():
            if len(content.cells) > len(self.names):
                return DataError(
                    f"{self.label}, line {content.line}: {len(content.cells)} columns where the first line has {len(self.names)}: put "
                    f"quotes around a text that holds the separator, or mend the line"
                )
        return DataError(f"{self.label}: cannot be read as text in columns ({first_line(error)}): write the file again")

    def _rows(self) -> Iterator[Row]:
        """Every row of data with the number of its line, blank lines left out. Slow: for messages only."""
        rows = _rows(self._path, str(self.separator), self._quoted)
        if self.header:
            next(rows)
        return rows


def _rows(path: Path, separator: str, quoted: bool) -> Iterator[Row]:
    """The rows of a text file as Python's own reader sees them, blank lines left out."""
    with open_text(path) as file:
        if quoted and len(separator) == 1:
            reader, last = csv_reader(file, separator), 0
            for cells in reader:
                if any(cells):
                    yield Row(last + 1, cells)
                last = reader.line_num
            return
        for number, line in enumerate(file, start=1):
            cells = line.rstrip("\r\n").split(separator)
            if any(cells):
                yield Row(number, cells)


def _sample(path: Path) -> list[tuple[int, str]]:
    """The first lines that are not blank, each with how many lines stand before it."""
    with open_text(path) as file:
        lines = [
            (number, line.rstrip("\r\n")) for number, line in enumerate(islice(file, 10 * SAMPLE_LINES)) if line.strip()
        ]
    return lines[:SAMPLE_LINES]


def _split(line: str, separator: str, quoted: bool) -> list[str]:
    if quoted and len(separator) == 1:
        return [cell.strip() for cell in next(csv_reader([line], separator), [])]
    return [cell.strip() for cell in line.split(separator)]


def _sniff_separator(lines: list[str], label: str) -> str:
    """The separator that cuts most lines into as many cells as the first one; of equals, the one with most cells."""

    def score(separator: str) -> tuple[float, int]:
        counts = [len(_split(line, separator, quoted=True)) for line in lines]
        return (sum(count == counts[0] for count in counts) / len(lines) if counts[0] > 1 else 0.0, counts[0])

    best = max(SEPARATORS, key=score)
    if score(best)[0] < 0.5:
        raise DataError(
            f"{label}, line 1: no separator (tab, comma, semicolon, bar, blank, '::') cuts it into columns: give separator=..."
        )
    return best


def _is_header(first: list[str], others: list[list[str]], named: list[str]) -> bool:
    """Whether the first line names the columns: it has a known name, or words where the next line has numbers."""
    if any(name in first for name in named):
        return True
    if any(NUMBER.match(cell) for cell in first):
        return False
    return any(is_known(cell) for cell in first) or any(NUMBER.match(cell) for cell in (others or [[]])[0])


def _without_types(header: list[str], label: str) -> list[str]:
    """RecBole's header ``user_id:token`` without the types."""
    names = []
    for cell in header:
        name, colon, kind = cell.rpartition(":")
        if not colon or kind not in RECBOLE_TYPES:
            raise DataError(
                f"{label}, line 1: {cell!r} has no RecBole type: write it like 'user_id:token', or rename the file to .tsv"
            )
        names.append(name)
    return names
