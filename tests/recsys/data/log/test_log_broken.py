"""Every kind of broken input gives one clear sentence that names the file and the line or column."""

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from persona.errors import DataError
from recsys.data.log import read_log

HEADER = "user_id,item_id,rating,timestamp\n"
ROWS = [f"{user},{item},4,{881250900 + 60 * user + item}\n" for user in (1, 2, 3) for item in (10, 11, 12)]
GOOD = HEADER + "".join(ROWS)


def with_line(number: int, text: str) -> str:
    """The good file with another line ``number`` (1 is the header)."""
    lines = GOOD.splitlines(keepends=True)
    lines[number - 1] = text + "\n"
    return "".join(lines)


def frame(**columns: Any) -> pd.DataFrame:
    """A good pandas frame with some columns replaced."""
    good = {
        "user_id": [1, 1, 2, 2],
        "item_id": [10, 11, 10, 12],
        "timestamp": [881250949, 881250950, 881250951, 881250952],
    }
    return pd.DataFrame({**good, **columns})


def parquet(damage: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Write a good Parquet file with its bytes damaged."""

    def write(path: Path) -> None:
        frame().to_parquet(path)
        path.write_bytes(damage(path.read_bytes()))

    return write


def folder(files: dict[str, pd.DataFrame | bytes]) -> Callable[[Path], None]:
    """Write a folder of Parquet frames and other files."""

    def write(path: Path) -> None:
        path.mkdir()
        for name, content in files.items():
            if isinstance(content, bytes):
                (path / name).write_bytes(content)
            else:
                content.to_parquet(path / name)

    return write


@dataclass
class File:
    """A broken file: its name, its content, the options it is read with, and what the message has to say besides its path."""

    name: str
    content: str | bytes | Callable[[Path], None]
    says: tuple[str, ...]
    options: dict[str, str] | None = None

    def write(self, root: Path) -> Path:
        path = root / self.name
        if callable(self.content):
            self.content(path)
        else:
            path.write_bytes(self.content.encode() if isinstance(self.content, str) else self.content)
        return path


FILES = {
    "no user column": File("a.csv", GOOD.replace("user_id", "who"), ("user", "who, item_id, rating")),
    "no item column": File("a.csv", GOOD.replace("item_id", "thing"), ("item", "item=")),
    "unknown explicit column": File("a.csv", GOOD, ("'usr_id'", "did you mean 'user_id'"), {"user": "usr_id"}),
    "user is also item": File("a.csv", GOOD, ("'item_id'", "both user and item"), {"user": "item_id"}),
    "item is also time": File("a.csv", GOOD, ("'item_id'", "both item and time"), {"time": "item_id"}),
    "ambiguous columns": File("a.csv", GOOD.replace("rating", "User"), ("'user_id' and 'User'", "user=")),
    "two columns of one name": File("a.csv", GOOD.replace("rating", "item_id"), ("line 1", "'item_id'")),
    "text in the time column": File(
        "a.csv", with_line(5, "2,11,4,yesterday"), ("line 5", "'timestamp'", "'yesterday'")
    ),
    "text in all times": File(
        "a.csv", HEADER + "1,10,4,soon\n1,11,4,late\n2,10,4,later\n", ("line 2", "'timestamp'", "'soon'", "ISO")
    ),
    "NaN as a time": File("a.csv", with_line(3, "1,11,4,NaN"), ("line 3", "'timestamp'", "NaN")),
    "infinite time": File("a.csv", with_line(3, "1,11,4,inf"), ("line 3", "'timestamp'", "inf")),
    "negative time": File("a.csv", with_line(6, "2,11,4,-881250900"), ("line 6", "'timestamp'", "-881250900")),
    "milliseconds among seconds": File(
        "a.csv", with_line(7, "2,12,4,881251032000"), ("line 7", "milliseconds", "seconds")
    ),
    "zero among seconds": File("a.csv", with_line(7, "2,12,4,0"), ("line 7", "'timestamp'", "holds 0", "too small")),
    "year 5000": File("a.csv", with_line(7, "2,12,4,95617584000"), ("line 7", "'timestamp'", "2100")),
    "time beyond 64 bits": File("a.csv", with_line(4, "1,12,4,99999999999999999999"), ("line 4", "'timestamp'")),
    "broken ISO date": File(
        "a.csv",
        "user,item,time\n1,10,2024-05-30T10:00:00\n1,11,2024-05-31T10:00:00\n2,10,2024-05-32T10:00:00\n",
        ("line 4", "'time'", "2024-05-32"),
    ),
    "date before 1970": File(
        "a.csv", "user,item,date\n1,10,2024-05-30\n1,11,1923-05-31\n2,10,2024-06-01\n", ("line 3", "'date'", "1923")
    ),
    "day or month first": File(
        "a.csv",
        "user,item,date\n1,10,03/04/2024\n1,11,05/06/2024\n2,10,07/08/2024\n",
        ("line 2", "'date'", "YYYY-MM-DD"),
    ),
    "fraction as a position": File(
        "a.csv", "user,item,position\n1,10,1\n1,11,1.5\n2,10,1\n", ("line 3", "'position'", "'1.5'", "integers")
    ),
    "empty file": File("a.csv", "", ("empty",)),
    "blank lines only": File("a.csv", "\n\n \n", ("empty",)),
    "header only": File("a.csv", HEADER, ("line 1", "no row")),
    "one user": File("a.csv", HEADER + "".join(ROWS[:3]), ("only one user", "'1'")),
    "one item": File("a.csv", HEADER + "".join(ROWS[::3]), ("only one item", "'10'")),
    "one event a user": File("a.csv", HEADER + "1,10,4,881250949\n2,11,4,881250950\n", ("too few events",)),
    "no user in a line": File("a.csv", with_line(5, ",11,4,881251000"), ("line 5", "'user_id'")),
    "empty quoted item": File("a.csv", with_line(5, '2,"",4,881251000'), ("line 5", "'item_id'")),
    "no time in a line": File("a.csv", with_line(9, "3,11,4,"), ("line 9", "'timestamp'")),
    "missing value after blank lines": File("a.csv", with_line(4, "\n\n2,,4,881251000"), ("line 6", "'item_id'")),
    "missing value after a quoted line end": File(
        "a.csv", with_line(4, '1,"a\nb",4,881251000\n2,,4,881251000'), ("line 6",)
    ),
    "line too short": File("a.csv", with_line(6, "2,11"), ("line 6", "2 columns", "has 4")),
    "first line too short": File("a.csv", with_line(2, "1,10"), ("line 2", "2 columns", "has 4")),
    "first line too long": File("a.csv", with_line(2, "1,10,4,881251000,7"), ("line 2", "5 columns", "has 4")),
    "line too long": File("a.csv", with_line(6, "2,11,4,881251000,7"), ("line 6", "5 columns", "has 4")),
    "line too long after '::'": File("a.dat", GOOD.replace(",", "::") + "1::2\n", ("line 11", "2 columns")),
    "quote never closed": File("a.csv", with_line(5, '2,"11,4,881251000'), ("line 5", "quote")),
    "latin-1": File("a.csv", with_line(6, "2,caf\xe9,4,881251000").encode("latin-1"), ("line 6", "0xe9", "UTF-8")),
    "UTF-16": File("a.csv", GOOD.encode("utf-16"), ("UTF-16", "UTF-8")),
    "binary junk": File("a.csv", GOOD.encode() + b"\x00\x01\x02", ("line 11", "binary")),
    "random bytes": File("a.dat", np.random.default_rng(0).bytes(5000), ("binary",)),
    "carriage returns only": File("a.csv", GOOD.replace("\n", "\r"), ("line 1", "carriage returns")),
    "one column": File("a.csv", "user_id\n1\n2\n", ("line 1", "separator=")),
    "wrong separator": File("a.csv", GOOD, ("line 1", "';'"), {"separator": ";"}),
    "Excel by name": File("a.xlsx", b"PK\x03\x04junk", ("Excel", "CSV")),
    "Excel named CSV": File("a.csv", b"PK\x03\x04junk", ("Excel", "CSV")),
    "JSON by name": File("a.json", '[{"user_id": 1}]', ("JSON", "CSV")),
    "JSON named CSV": File("a.csv", '{"user_id": 1}\n', ("JSON", "CSV")),
    "bzip2": File("a.csv.bz2", b"BZh91AY", ("bzip2",)),
    "zero-byte gz": File("a.csv.gz", b"", ("empty",)),
    "gz of nothing": File("a.csv.gz", gzip.compress(b""), ("empty",)),
    "gz by name only": File("a.csv.gz", GOOD, ("not gz-compressed",)),
    "truncated gz": File("a.csv.gz", gzip.compress(GOOD.encode())[:-12], ("damaged gz",)),
    "corrupt gz": File("a.csv.gz", gzip.compress(GOOD.encode())[:20] + b"\xff" * 40, ("damaged gz",)),
    "line fault in gz": File("a.csv.gz", gzip.compress(with_line(5, "2,11,4,never").encode()), ("line 5", "'never'")),
    ".inter without types": File("a.inter", GOOD.replace(",", "\t"), ("line 1", "'user_id'", "user_id:token")),
    "Parquet of zero bytes": File("a.parquet", b"", ("empty",)),
    "Parquet with wrong magic": File("a.parquet", GOOD, ("not Parquet", "PAR1")),
    "truncated Parquet": File("a.parquet", parquet(lambda data: data[: len(data) // 2]), ("truncated", "byte")),
    "Parquet with a damaged footer": File(
        "a.parquet", parquet(lambda data: data[:-40] + b"\xff" * 32 + data[-8:]), ("damaged Parquet",)
    ),
    "Parquet with damaged pages": File(
        "a.parquet", parquet(lambda data: data[:4] + b"\xff" * 200 + data[204:]), ("Parquet",)
    ),
    "folder without Parquet": File("parts", folder({"readme.txt": b"hello"}), ("no .parquet",)),
    "truncated part": File("parts", folder({"0.parquet": frame(), "1.parquet": b"PAR1"}), ("1.parquet", "truncated")),
    "parts of other types": File(
        "parts",
        folder({"0.parquet": frame(), "1.parquet": frame(user_id=list("abcd"))}),
        ("1.parquet", "'user_id'", "Int64"),
    ),
    "part without a column": File(
        "parts", folder({"0.parquet": frame(), "1.parquet": frame().drop(columns="item_id")}), ("1.parquet", "missing")
    ),
    "null id in a part": File(
        "parts",
        folder({"0.parquet": frame(), "1.parquet": frame(item_id=pd.Series([1, 2, None, 2], dtype="Int64"))}),
        ("1.parquet, row 2",),
    ),
}


@pytest.mark.parametrize("case", FILES.values(), ids=FILES.keys())
def test_broken_file(case: File, tmp_path: Path) -> None:
    path = case.write(tmp_path)
    with pytest.raises(DataError) as caught:
        read_log(path, **(case.options or {}))
    check_sentence(str(caught.value), (str(path), *case.says))


FRAMES = {
    "mixed id types": (frame(user_id=pd.Series([1, "1", 2, 2], dtype=object)), ("'user_id'", "row 1", "str", "int")),
    "null id": (frame(item_id=pd.Series([10, None, 10, 12], dtype="Int64")), ("'item_id'", "row 1", "no value")),
    "None among text": (frame(user_id=["a", "a", None, "b"]), ("'user_id'", "row 2", "no value")),
    "NaN among numbers": (frame(user_id=[1.0, 1.0, 2.0, np.nan]), ("'user_id'", "row 3", "no value")),
    "boolean ids": (frame(user_id=[True, True, False, False]), ("'user_id'", "Boolean")),
    "list ids": (pl.DataFrame(frame()).with_columns(item_id=pl.lit([1, 2])), ("'item_id'", "List")),
    "fractional ids": (frame(item_id=[1.0, 2.0, 2.5, 1.0]), ("'item_id'", "row 2", "2.5")),
    "infinite id": (frame(item_id=[1.0, np.inf, 2.0, 1.0]), ("'item_id'", "row 1", "inf")),
    "boolean time": (frame(timestamp=[True, False, True, True]), ("'timestamp'", "Boolean")),
    "NaN time in polars": (
        pl.DataFrame(frame()).with_columns(timestamp=pl.Series([881250949.0, float("nan"), 881250949.5, 881250950.0])),
        ("'timestamp'", "row 1", "nan"),
    ),
    "missing time": (frame(timestamp=pd.to_datetime(["2024-01-01", None, "2024-01-02", "2024-01-03"])), ("row 1",)),
    "two columns of one name": (pd.concat([frame(), frame()[["user_id"]]], axis=1), ("'user_id'",)),
    "no rows": (frame().head(0), ("no events",)),
    "no columns": (pd.DataFrame(), ("user=",)),
    "column gone from a lazy frame": (pl.LazyFrame({"a": [1]}).select("b"), ("cannot be collected",)),
}


@pytest.mark.parametrize(("source", "says"), FRAMES.values(), ids=FRAMES.keys())
def test_broken_frame(source: Any, says: tuple[str, ...]) -> None:
    with pytest.raises(DataError) as caught:
        read_log(source, name="ratings")
    check_sentence(str(caught.value), ("ratings", *says))


def check_sentence(message: str, says: tuple[str, ...]) -> None:
    """One line that says all it has to, and ends without a full stop, as all errors of the project do."""
    assert "\n" not in message
    assert not message.endswith(".") or message.endswith("...")
    assert len(message) < 400
    for words in says:
        assert words in message


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text(GOOD)
    with pytest.raises(DataError, match=r"rating\.csv does not exist: did you mean 'ratings\.csv'"):
        read_log(tmp_path / "rating.csv")
    with pytest.raises(DataError, match="there is no folder"):
        read_log(tmp_path / "no" / "ratings.csv")


def test_other_kinds_of_source_are_refused() -> None:
    with pytest.raises(DataError, match="cannot be read from a dict"):
        read_log({"user_id": [1]})  # type: ignore[arg-type]


def test_the_good_file_is_good(tmp_path: Path) -> None:
    """Else the cases above could fail for another reason than the one they are about."""
    path = tmp_path / "a.csv"
    path.write_text(GOOD)
    assert read_log(path).report.events == len(ROWS)
    assert read_log(frame()).report.events == 4
