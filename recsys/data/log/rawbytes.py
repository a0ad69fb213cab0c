"""What the bytes of a file say before it is parsed: its real kind, and faults with the number of their line."""

from __future__ import annotations

import codecs
import csv
import gzip
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from persona.errors import DataError

BLOCK = 4 * 2**20

# What a file really is, by its first bytes; the advice goes after "save it as".
MAGIC = {
    b"PK\x03\x04": "a zip archive or an Excel workbook",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"BZh": "compressed with bzip2",
    b"\x28\xb5\x2f\xfd": "compressed with zstandard",
    b"\xfd7zXZ": "compressed with xz",
    b"7z\xbc\xaf": "a 7z archive",
    b"SQLite format 3": "an SQLite database",
    b"\x89HDF": "HDF5",
    b"ARROW1": "Arrow or Feather",
    b"\xff\xfe": "text in UTF-16",
    b"\xfe\xff": "text in UTF-16",
}
SUFFIXES = {
    ".xlsx": "an Excel workbook",
    ".xls": "an Excel workbook",
    ".json": "JSON",
    ".jsonl": "JSON lines",
    ".ndjson": "JSON lines",
    ".feather": "Feather",
    ".arrow": "Arrow",
    ".h5": "HDF5",
    ".pkl": "a pickle",
    ".npz": "NumPy arrays",
    ".npy": "a NumPy array",
    ".db": "a database",
    ".zip": "a zip archive",
}
ADVICE = "save it as UTF-8 CSV or as Parquet"


def is_gzip(path: Path) -> bool:
    """Whether the first bytes are those of gz."""
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def check_kind(path: Path, label: str) -> None:
    """Refuse what is neither Parquet nor text, by the name's ending and the first bytes.

    Raises:
        DataError: the file is empty, or of a kind that is not read.
    """
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        raise DataError(f"{label} is {SUFFIXES[suffix]}, which is not read: {ADVICE}")
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise DataError(f"{label} is empty (0 bytes): give a file with events")
    for magic, kind in MAGIC.items():
        if head.startswith(magic):
            raise DataError(f"{label} is {kind}, which is not read: {ADVICE}")
    if suffix == ".gz" and not is_gzip(path):
        raise DataError(f"{label} is not gz-compressed although its name says so: rename it, or compress it again")
    if head.removeprefix(codecs.BOM_UTF8).lstrip()[:1] in (b"{", b"["):
        raise DataError(f"{label} is JSON, which is not read: {ADVICE}")


def blocks(path: Path, label: str) -> Iterator[bytes]:
    """The unpacked bytes of a plain or gz-compressed file."""
    try:
        with gzip.open(path) if is_gzip(path) else path.open("rb") as file:
            while block := file.read(BLOCK):
                yield block
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{label} is damaged gz data ({error}): copy or compress it again") from error


def check_start(path: Path, label: str) -> None:
    """Refuse a text file that holds nothing, or whose first bytes are not text."""
    first = next(blocks(path, label), b"")
    if not first.strip():
        raise DataError(f"{label} is empty: give a file with events")
    _check_block(first, codecs.getincrementaldecoder("utf-8")(), label, 1)
    if b"\n" not in first and b"\r" in first.rstrip():
        raise DataError(f"{label}, line 1: lines end with carriage returns only: save the file with line feeds")


def check_bytes(path: Path, label: str, separator: str) -> bool:
    """One pass over a text file for faults that a parser reports without a line.

    Returns:
        whether the file uses double quotes around cells. Quotes inside of cells only, as in ``7" vinyl``, are plain text.

    Raises:
        DataError: zero bytes, bytes that are not UTF-8, or a quote that is never closed.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    opening = re.compile(rb"(?:^|[\r\n]|" + re.escape(separator.encode()) + rb')"')
    line, quotes, quoted, last = 1, 0, False, b"\n"
    for block in blocks(path, label):
        _check_block(block, decoder, label, line)
        here = block.count(b'"')
        quotes += here
        quoted = quoted or (here > 0 and opening.search(last + block) is not None)
        line += block.count(b"\n")
        last = block[-len(separator.encode()) :]
    if quoted and quotes % 2:
        raise DataError(f"{label}, line {_unclosed_line(path, separator)}: a quote opens and never closes: close it")
    return quoted


def _check_block(block: bytes, decoder: codecs.IncrementalDecoder, label: str, line: int) -> None:
    """Refuse zero bytes and what is not UTF-8. ``line`` is the number of the block's first line."""
    zero = block.find(b"\0")
    if zero >= 0:
        line += block.count(b"\n", 0, zero)
        raise DataError(f"{label}, line {line}: binary data, not text: {ADVICE}")
    if block.isascii() and not decoder.getstate()[0]:
        return
    try:
        decoder.decode(block)
    except UnicodeDecodeError as error:
        line += error.object.count(b"\n", 0, error.start)
        byte = error.object[error.start]
        raise DataError(f"{label}, line {line}: byte 0x{byte:02x} is not UTF-8: save the file as UTF-8") from error


def _unclosed_line(path: Path, separator: str) -> int:
    """The line on which the last row starts, which runs to the end of the file."""
    start = previous = 0
    with open_text(path) as file:
        reader = csv_reader(file, separator[0])
        for _ in reader:
            start, previous = previous, reader.line_num
    return start + 1


def open_text(path: Path) -> IO[str]:
    """Open a plain or gz-compressed text file; bytes that are not UTF-8 are replaced, ``check_bytes`` reports them."""
    if is_gzip(path):
        return gzip.open(path, "rt", encoding="utf-8-sig", errors="replace", newline="\n")
    return path.open(encoding="utf-8-sig", errors="replace", newline="\n")


def csv_reader(lines: Iterable[str], separator: str) -> Any:
    """Python's reader with ``line_num``, without its limit on the size of cells and its dislike of carriage returns."""
    csv.field_size_limit(2**31 - 1)
    return csv.reader((line.replace("\r", "") for line in lines), delimiter=separator)
