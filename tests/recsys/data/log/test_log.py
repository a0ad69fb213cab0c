import gzip
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from persona.errors import DataError
from recsys.data.ids import canonical_id
from recsys.data.log import InteractionLog, read_log

# user, item, time: two users, ties, one exact duplicate, one repeat at another time, not in order.
EVENTS = [
    (2, 10, 881250950),
    (1, 12, 881250949),
    (1, 11, 881250949),
    (1, 12, 881250949),
    (2, 10, 881250990),
    (1, 10, 881250000),
]
SORTED = [
    ("1", "10", 881250000),
    ("1", "12", 881250949),
    ("1", "11", 881250949),
    ("2", "10", 881250950),
    ("2", "10", 881250990),
]
NAMES = ["user_id", "item_id", "timestamp"]


def rows(log: InteractionLog) -> list[tuple[Any, ...]]:
    return log.frame.with_columns(pl.col("user_id", "item_id").cast(pl.String)).rows()


def text(separator: str, header: str | None, events: list[tuple[Any, ...]] = EVENTS) -> str:
    lines = [] if header is None else [header]
    return "\n".join(lines + [separator.join(map(str, event)) for event in events]) + "\n"


TEXTS = {
    "CSV": ("a.csv", text(",", "user_id,item_id,timestamp"), ","),
    "TSV": ("a.tsv", text("\t", "userId\tmovieId\ttimestamp"), "\t"),
    "semicolons": ("a.txt", text(";", "customer;asin;unixReviewTime"), ";"),
    "bars": ("a.txt", text("|", "uid|product|time"), "|"),
    "blanks": ("a.txt", text(" ", "user item ts"), " "),
    "double colons": ("ratings.dat", text("::", None), "::"),
    "double colons with header": ("ratings.dat", text("::", "user::item::time"), "::"),
    "no header": ("u.data", text("\t", None), "\t"),
    "RecBole": ("a.inter", text("\t", "user_id:token\titem_id:token\ttimestamp:float"), "\t"),
    "odd case and blanks": ("a.csv", text(",", "User ID, Item ID ,Timestamp"), ","),
    "byte order mark": ("a.csv", "\ufeff" + text(",", "user_id,item_id,timestamp"), ","),
    "Windows line ends": ("a.csv", text(",", "user_id,item_id,timestamp").replace("\n", "\r\n"), ","),
    "blank lines": ("a.csv", "\n" + text(",", "user_id,item_id,timestamp").replace("\n", "\n\n"), ","),
    "unnamed row numbers": ("a.csv", text(",", ",user_id,item_id,timestamp", [("0", *event) for event in EVENTS]), ","),
    "trailing empty rows": ("a.csv", text(",", "user_id,item_id,timestamp") + ",,\n,,\n", ","),
    "blanks around values": ("a.csv", text(", ", "user_id, item_id, timestamp"), ","),
    "quotes": ("a.csv", text('","', 'user_id","item_id","timestamp').replace("\n", '"\n"').join(['"', ""])[:-1], ","),
}


@pytest.mark.parametrize(("name", "content", "separator"), TEXTS.values(), ids=TEXTS.keys())
@pytest.mark.parametrize("packed", [False, True])
def test_text_of_any_form_gives_the_same_events(
    name: str, content: str, separator: str, packed: bool, tmp_path: Path
) -> None:
    path = tmp_path / (name + ".gz" if packed else name)
    path.write_bytes(gzip.compress(content.encode()) if packed else content.encode())
    log = read_log(path)
    assert rows(log) == SORTED
    assert log.report.separator == separator
    assert (log.report.rows, log.report.events, log.report.duplicates_dropped) == (6, 5, 1)
    assert (log.report.users, log.report.items, log.report.ties_share) == (2, 3, 0.4)
    assert log.report.time_kind == "seconds since 1970"


def test_frames_and_parquet_give_the_same_events(tmp_path: Path) -> None:
    frame = pd.DataFrame(EVENTS, columns=NAMES)
    frame.to_parquet(tmp_path / "a.parquet")
    (tmp_path / "parts").mkdir()
    frame.iloc[:2].to_parquet(tmp_path / "parts" / "part-0.parquet")
    frame.iloc[2:].to_parquet(tmp_path / "parts" / "part-1.parquet")
    polars = pl.DataFrame(frame)
    sources = [frame, polars, polars.lazy(), tmp_path / "a.parquet", str(tmp_path / "a.parquet"), tmp_path / "parts"]
    sources += [frame.set_index(pd.Index([7] * 6)), frame.astype({"user_id": str, "item_id": "category"})]
    sources += [polars.cast({"item_id": pl.String}).cast({"item_id": pl.Categorical, "user_id": pl.UInt16})]
    for source in sources:
        assert rows(read_log(source)) == SORTED


def test_quoted_titles_may_hold_separators_and_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        'user,item,title,time\n1,10,"American President, The",881250949\n1,11,"Two\nlines",881250950\n2,10,,881250951\n'
    )
    log = read_log(path)
    assert log.titles is not None
    assert log.titles.sort("item_id").rows() == [("10", "American President, The"), ("11", "Two\nlines")]
    assert log.report.columns.title == "title"


def test_quotes_inside_of_cells_are_plain_text(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text(
        'user\titem\ttitle\ttime\n1\t10\t7" vinyl\t881250949\n1\t11\tb\t881250950\n2\t10\t7" vinyl\t881250951\n'
    )
    titles = read_log(path).titles
    assert titles is not None
    assert titles.sort("item_id")["title"].to_list() == ['7" vinyl', "b"]


def test_the_first_title_of_an_item_counts() -> None:
    frame = pd.DataFrame(EVENTS, columns=NAMES).assign(title=[None, "a", "b", "c", "d", "e"])
    titles = read_log(frame).titles
    assert titles is not None
    assert dict(titles.rows()) == {"12": "a", "11": "b", "10": "d"}


def test_explicit_columns_override_names(tmp_path: Path) -> None:
    frame = pd.DataFrame(EVENTS, columns=["a", "user_id", "b"])
    assert rows(read_log(frame, user="a", item="user_id", time="b")) == SORTED
    path = tmp_path / "a.csv"
    path.write_text(text(",", "kunde,ware,wann"))
    log = read_log(path, user="kunde", item="ware", time="wann")
    assert rows(log) == SORTED
    assert log.report.columns.as_dict() == {
        "user": "kunde",
        "item": "ware",
        "time": "wann",
        "order": None,
        "title": None,
    }
    path.write_text(text(",", None))
    assert rows(read_log(path, user="column 1", item="column 2")) == SORTED


@pytest.mark.parametrize(
    "names", [["user_id", "itemId", "ts"], ["reviewerID", "asin", "unixReviewTime"], ["session", "item", "time"]]
)
def test_column_names_of_well_known_data_sets(names: list[str]) -> None:
    log = read_log(pd.DataFrame(EVENTS, columns=names).assign(rating=3, helpful=1, reviewTime="09 13, 2009"))
    assert [log.report.columns.user, log.report.columns.item, log.report.columns.time] == names


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


TIMES = {
    "integers": lambda s: s,
    "floats": float,
    "milliseconds": lambda s: s * 1000,
    "microseconds": lambda s: s * 10**6,
    "nanoseconds": lambda s: s * 10**9,
    "text of floats": lambda s: f"{s}.0",
    "ISO": lambda s: at(s).strftime("%Y-%m-%dT%H:%M:%S"),
    "ISO with Z": lambda s: at(s).strftime("%Y-%m-%dT%H:%M:%SZ"),
    "ISO with fraction": lambda s: at(s).strftime("%Y-%m-%d %H:%M:%S.25"),
    "ISO with zone": lambda s: at(s + 7200).strftime("%Y-%m-%dT%H:%M:%S+02:00"),
    "UTC": lambda s: at(s).strftime("%Y-%m-%d %H:%M:%S UTC"),
    "slashes": lambda s: at(s).strftime("%Y/%m/%d %H:%M:%S"),
    "datetimes": lambda s: at(s).replace(tzinfo=None),
    "datetimes with zone": lambda s: pd.Timestamp(at(s)).tz_convert("Asia/Tokyo"),
}


@pytest.mark.parametrize("form", TIMES.values(), ids=TIMES.keys())
def test_times_of_any_kind_give_the_same_seconds(form: Any) -> None:
    log = read_log(pd.DataFrame([(user, item, form(time)) for user, item, time in EVENTS], columns=NAMES))
    assert rows(log) == SORTED
    assert not log.report.ordered_only
    assert log.report.first_time == "1997-12-04 15:40:00 UTC"


DAYS = {
    "ISO": ("2024-05-30", "2024-05-31"),
    "compact": ("20240530", "20240531"),
    "compact number": (20240530, 20240531),
    "day first": ("30.05.2024", "31/05/2024"),
    "month first": ("05/30/2024", "5/31/2024"),
    "dates": (datetime(2024, 5, 30).date(), datetime(2024, 5, 31).date()),
}


@pytest.mark.parametrize(("first", "second"), DAYS.values(), ids=DAYS.keys())
def test_days_of_any_kind(first: Any, second: Any) -> None:
    log = read_log(pl.DataFrame({"user": [1, 1, 2], "item": [1, 2, 1], "date": [second, first, first]}))
    assert [row[2] for row in rows(log)] == [1717027200, 1717113600, 1717027200]
    assert log.report.first_time == "2024-05-30 00:00:00 UTC"


def test_a_fraction_of_a_second_orders_but_does_not_separate() -> None:
    frame = pd.DataFrame(
        {"user": [1, 1, 1, 2], "item": [1, 2, 2, 1], "time": [881250949.75, 881250949.25, 881250949.5, 881250000.0]}
    )
    log = read_log(frame)
    assert rows(log) == [("1", "2", 881250949), ("1", "2", 881250949), ("1", "1", 881250949), ("2", "1", 881250000)]
    assert (log.report.duplicates_dropped, log.report.ties_share) == (0, 0.75)


def test_small_numbers_are_steps_of_a_common_clock() -> None:
    report = read_log(pd.DataFrame({"user": [1, 1, 2], "item": [1, 2, 1], "time": [3, 1, 0]})).report
    assert "steps" in report.time_kind
    assert (report.ordered_only, report.first_time, report.last_time) == (False, "0", "3")


def test_an_order_column_serves_where_there_is_no_time() -> None:
    frame = pd.DataFrame({"user": [1, 1, 2, 2], "item": [1, 2, 1, 2], "position": [1, 0, 0, 1]})
    for log in (read_log(frame), read_log(frame, time="position")):
        assert rows(log) == [("1", "2", 0), ("1", "1", 1), ("2", "1", 0), ("2", "2", 1)]
        assert log.report.ordered_only
        assert (log.report.columns.time, log.report.columns.order) == (None, "position")
    assert read_log(frame.assign(time=[1, 2, 3, 4])).report.columns.order is None


def test_row_order_serves_last_and_is_reported() -> None:
    log = read_log(pd.DataFrame({"user": [2, 1, 2, 1], "item": [1, 2, 1, 1]}))
    assert [row[:2] for row in rows(log)] == [("1", "2"), ("1", "1"), ("2", "1"), ("2", "1")]
    assert log.report.ordered_only
    assert any("row order" in line for line in log.report.lines())


def test_one_time_for_all_is_read_but_reported() -> None:
    report = read_log(pd.DataFrame({"user": [1, 1, 2], "item": [1, 2, 1], "time": [881250949] * 3})).report
    assert any("one and the same time" in note for note in report.notes)
    assert report.ties_share == pytest.approx(2 / 3)


def test_ids_that_look_like_gaps_are_noted() -> None:
    report = read_log(pd.DataFrame({"user": ["nan", "1", "1"], "item": ["a", "b", "NULL"]})).report
    assert [note for note in report.notes if "'nan'" in note or "'NULL'" in note] == list(report.notes[:2])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([10, 9, 2**40], ["9", "10", str(2**40)]),
        ([10.0, 9.0, 100.0], ["9", "10", "100"]),
        (["10", "9", "-1"], ["-1", "9", "10"]),
        (["10.0", "9.0", "100.0"], ["9", "10", "100"]),
        (["010", "9", "1"], ["010", "1", "9"]),
        (["b", "a", "10"], ["10", "a", "b"]),
        ([" b", "a ", "ß"], ["a", "b", "ß"]),
        (np.array([2**64 - 1, 1, 2], dtype=np.uint64), ["1", "18446744073709551615", "2"]),
    ],
)
def test_ids_become_text_in_numerical_or_alphabetical_order(given: Any, expected: list[str]) -> None:
    log = read_log(pd.DataFrame({"user": [1, 1, 2], "item": given}))
    assert isinstance(log.frame["item_id"].dtype, pl.Enum)
    assert log.frame["item_id"].dtype.categories.to_list() == expected


def test_ids_spelled_with_blanks_are_one_id() -> None:
    log = read_log(pd.DataFrame({"user": ["1", " 1", "2"], "item": ["a", "b", "a"]}))
    assert log.report.users == 2


@given(st.one_of(st.integers(-(10**17), 10**17), st.integers(-(2**52), 2**52).map(float)))
def test_the_scalar_spelling_agrees_with_the_one_of_columns(value: float) -> None:
    log = read_log(pl.DataFrame({"user": [1, 1, 2], "item": pl.Series([value, value + 1, value], strict=False)}))
    assert canonical_id(value) in log.frame["item_id"].to_list()


events = st.lists(
    st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(881250000, 881250006)), min_size=4, max_size=40
).filter(lambda rows: len({row[0] for row in rows}) > 1 and len({row[1] for row in rows}) > 1)


@given(events)
def test_the_stated_rules_against_plain_python(given_rows: list[tuple[int, int, int]]) -> None:
    kept = list(dict.fromkeys(given_rows))
    expected = [(str(user), str(item), time) for user, item, time in sorted(kept, key=lambda row: (row[0], row[2]))]
    ties = sum(sum(other[0] == row[0] and other[2] == row[2] for other in kept) > 1 for row in kept)
    if len({row[0] for row in kept}) == len(kept):
        with pytest.raises(DataError, match="too few events"):
            read_log(pl.DataFrame(given_rows, schema=NAMES, orient="row"))
        return
    log = read_log(pl.DataFrame(given_rows, schema=NAMES, orient="row"))
    assert rows(log) == expected
    assert log.report.duplicates_dropped == len(given_rows) - len(kept)
    assert log.report.ties_share == pytest.approx(ties / len(kept))
    again = len(kept) - len({row[:2] for row in kept})
    assert log.report.repeats_share == pytest.approx(again / (len(kept) - len({row[0] for row in kept})))


def test_wide_times_sort_without_a_packed_key() -> None:
    """User times nanoseconds does not fit 63 bits here."""
    users = 50
    base = 10**18
    frame = pl.DataFrame(
        {
            "user": [u for u in range(users) for _ in "ab"],
            "item": [1, 2] * users,
            "time": [base + 8 * 10**17, base] * users,
        }
    )
    assert [row[2] for row in rows(read_log(frame))[:2]] == [10**9, 18 * 10**8]


def test_the_report_says_what_was_understood(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text(text("\t", "userId\tmovieId\ttimestamp"))
    report = read_log(path).report
    lines = "\n".join(report.lines())
    for words in (
        "separated by tabs",
        "user = userId",
        "6 rows: 5 events",
        "1 exact duplicates",
        "40.0%",
        "33.3% of the next events are items that the user has had",
        "1997-12-04 15:40:00",
    ):
        assert words in lines
    values = report.as_dict()
    assert values["columns"]["item"] == "movieId"
    assert values["duplicates_dropped"] == 1
    assert values["notes"] == []


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["a.csv", "a.csv.gz", "a.parquet", "a.dat", "a.inter"]),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4),
    st.floats(0, 1),
)
def test_no_damage_gives_anything_but_a_clear_error(
    tmp_path: Path, name: str, changes: list[tuple[float, int]], keep: float
) -> None:
    data = bytearray(damageable(tmp_path, name))
    for place, byte in changes:
        data[min(int(place * len(data)), len(data) - 1)] = byte
    path = tmp_path / ("damaged-" + name)
    path.write_bytes(data[: int(len(data) * (1 if keep > 0.5 else 2 * keep))])
    message = failure(path)
    assert message is None or (str(path) in message and "\n" not in message)


def failure(path: Path) -> str | None:
    """The message of the error that a file gives, or None where it is read."""
    try:
        read_log(path)
    except DataError as error:
        return str(error)
    return None


def damageable(folder: Path, name: str) -> bytes:
    """A good file of this kind."""
    if name.endswith("parquet"):
        pl.DataFrame(EVENTS, schema=NAMES, orient="row").write_parquet(folder / name)
        return (folder / name).read_bytes()
    content = text(",", 'user_id,item_id,timestamp,"title"', [(*event, '"a, b"') for event in EVENTS]).encode()
    if name.endswith("dat"):
        return text("::", None).encode()
    if name.endswith("inter"):
        return text("\t", "user_id:token\titem_id:token\ttimestamp:float").encode()
    return gzip.compress(content) if name.endswith("gz") else content
