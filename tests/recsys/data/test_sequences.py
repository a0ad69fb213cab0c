import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from persona.errors import DataError, FormatError
from recsys.data.log import read_log
from recsys.data.sequences import SequenceData, build_sequences

# user, item, time
EVENTS = [(7, 30, 3), (7, 20, 1), (7, 9, 3), (10, 20, 5), (10, 30, 6), (10, 20, 7), (7, 20, 9), (2, 9, 4), (2, 9, 8)]
SCHEMA = ["user", "item", "time"]


def frame(events: list[tuple[int, int, int]] = EVENTS) -> pl.DataFrame:
    return pl.DataFrame(events, schema=SCHEMA, orient="row").with_columns(pl.col("time") + 881250000)


@pytest.fixture
def data() -> SequenceData:
    """With baskets: items 1, 2, 3 are 9, 20, 30; users 0, 1, 2 are 2, 7, 10."""
    return build_sequences(read_log(frame().with_columns(title=pl.col("item").cast(pl.String) + "!")), baskets=True)


def test_layout(data: SequenceData) -> None:
    assert data.user_ids.to_list() == ["2", "7", "10"]
    assert data.item_ids.to_list() == ["9", "20", "30"]
    assert data.titles is not None
    assert data.titles.to_list() == ["9!", "20!", "30!"]
    assert data.items.tolist() == [1, 1, 2, 3, 1, 2, 2, 3, 2]
    assert (data.times - 881250000).tolist() == [4, 8, 1, 3, 3, 9, 5, 6, 7]
    assert data.offsets.tolist() == [0, 2, 6, 9]
    assert data.basket_start.tolist() == [0, 1, 2, 3, 3, 5, 6, 7, 8]
    assert (data.n_users, data.n_items, data.n_events) == (3, 3, 9)
    assert (data.items.dtype, data.times.dtype, data.offsets.dtype) == (np.int32, np.int64, np.int64)
    assert data.user_of(np.array([0, 1, 2, 5, 6, 8])).tolist() == [0, 0, 1, 1, 2, 2]


def test_contexts_end_before_the_basket(data: SequenceData) -> None:
    items, lengths = data.contexts(np.array([0, 3, 4, 5, 8]), 2)
    assert items.tolist() == [[0, 0], [2, 0], [2, 0], [3, 1], [2, 3]]
    assert lengths.tolist() == [0, 1, 1, 2, 2]
    assert items.dtype == lengths.dtype == np.int64
    without = build_sequences(read_log(frame()), baskets=False)
    assert without.basket_start.tolist() == list(range(9))
    assert without.contexts(np.array([4]), 2)[0].tolist() == [[2, 3]]


def test_histories(data: SequenceData) -> None:
    assert data.history_of(7).tolist() == data.history_of("7").tolist() == [2, 3, 1, 2]
    with pytest.raises(DataError, match=r"user 8 is not in the data .3 users, for example 2, 7, 10"):
        data.history_of(8)


def test_seen_items_are_distinct_and_ascending(data: SequenceData) -> None:
    indptr, items = data.seen_items()
    assert indptr.tolist() == [0, 1, 4, 6]
    assert items.tolist() == [1, 1, 2, 3, 2, 3]
    indptr, items = data.seen_items(np.array([2, 0]))
    assert indptr.tolist() == [0, 2, 3]
    assert items.tolist() == [2, 3, 1]
    indptr, items = data.seen_items(np.array([], dtype=np.int64))
    assert (indptr.tolist(), items.tolist()) == ([0], [])


def test_minimum_counts_are_taken_once_on_the_whole_log() -> None:
    # Item 9 has 3 events, user 2 has 2: with user 2 gone, item 9 has 1 event left and stays.
    data = build_sequences(read_log(frame()), min_user_events=3, min_item_events=3)
    assert data.user_ids.to_list() == ["7", "10"]
    assert data.item_ids.to_list() == ["9", "20"]
    assert data.items.tolist() == [2, 1, 2, 2, 2]
    assert data.offsets.tolist() == [0, 3, 5]
    assert data.meta["min_user_events"] == 3
    with pytest.raises(DataError, match=r"no two users and two items .* >= 100 .*lower the minimum"):
        build_sequences(read_log(frame()), min_user_events=100)


def test_titles_follow_the_filtered_vocabulary() -> None:
    titled = frame().with_columns(title=pl.when(pl.col("item") > 9).then(pl.col("item").cast(pl.String)))
    data = build_sequences(read_log(titled), min_item_events=3)
    assert data.titles is not None
    assert list(zip(data.item_ids, data.titles, strict=True)) == [("9", None), ("20", "20")]


@pytest.mark.parametrize(("ties", "automatic"), [(0, False), (2, True)])
def test_baskets_are_decided_by_the_share_of_ties(ties: int, automatic: bool) -> None:
    events = [(user, item, 10 * item) for user in (1, 2) for item in range(5)]
    events[1] = (1, 1, 0 if ties else 10)
    log = read_log(frame(events))
    assert log.report.ties_share == ties / 10
    data = build_sequences(log)
    assert data.baskets is automatic
    assert data.meta["baskets"].startswith("on" if automatic else "off")
    assert build_sequences(log, baskets=not automatic).baskets is not automatic


def test_an_order_is_no_time_so_baskets_stay_off() -> None:
    positions = pl.DataFrame({"user": [1, 1, 2, 2], "item": [1, 2, 1, 2], "position": [0, 0, 0, 0]})
    data = build_sequences(read_log(positions))
    assert data.ordered_only
    assert not data.baskets
    assert "no time" in data.meta["baskets"]


events_strategy = st.lists(
    st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(0, 6)), min_size=30, max_size=60, unique=True
).filter(lambda rows: len({row[0] for row in rows}) < len(rows))


@given(events_strategy, st.integers(1, 4), st.booleans(), st.randoms())
def test_contexts_against_plain_python(
    events: list[tuple[int, int, int]], length: int, baskets: bool, random: np.random.Generator
) -> None:
    data = build_sequences(read_log(frame(events)), baskets=baskets)
    items, lengths = data.contexts(np.arange(data.n_events), length)
    users = data.user_of(np.arange(data.n_events))
    for position in range(data.n_events):
        earlier = [p for p in range(position) if users[p] == users[position]]
        if baskets:
            earlier = [p for p in earlier if data.times[p] < data.times[position]]
        expected = data.items[earlier[-length:]].tolist()
        assert items[position].tolist() == expected + [0] * (length - len(expected))
        assert lengths[position] == len(expected)
    for user in range(data.n_users):
        indptr, seen = data.seen_items(np.array([user]))
        assert seen.tolist() == sorted(set(data.items[data.offsets[user] : data.offsets[user + 1]].tolist()))
        assert indptr.tolist() == [0, len(seen)]


@given(events_strategy, st.randoms())
def test_the_vocabulary_does_not_depend_on_the_order_of_rows(
    events: list[tuple[int, int, int]], random: object
) -> None:
    one = build_sequences(read_log(frame(events)), baskets=True)
    shuffled = list(events)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    other = build_sequences(read_log(frame(shuffled)), baskets=True)
    assert one.item_ids.to_list() == other.item_ids.to_list() == [str(item) for item in sorted({e[1] for e in events})]
    assert one.user_ids.to_list() == other.user_ids.to_list()
    assert (one.times == other.times).all()
    assert (one.basket_start == other.basket_start).all()


def test_saved_data_comes_back_whole(data: SequenceData, tmp_path: Path) -> None:
    data.save(tmp_path / "prepared")
    data.save(tmp_path / "prepared")
    other = SequenceData.load(tmp_path / "prepared")
    for name in ("items", "times", "offsets", "basket_start"):
        assert (getattr(other, name) == getattr(data, name)).all()
        assert getattr(other, name).dtype == getattr(data, name).dtype
    assert other.user_ids.equals(data.user_ids)
    assert other.item_ids.equals(data.item_ids)
    assert other.titles is not None
    assert other.titles.equals(data.titles)
    assert (other.baskets, other.ordered_only, other.meta) == (data.baskets, data.ordered_only, data.meta)
    assert other.digest == data.digest
    assert [path.name for path in tmp_path.iterdir()] == ["prepared"]


def test_the_digest_depends_on_everything_that_counts(data: SequenceData) -> None:
    others = [
        replace(data, items=data.items[::-1].copy()),
        replace(data, times=data.times + 1),
        replace(data, user_ids=data.user_ids.reverse()),
        replace(data, item_ids=data.item_ids.reverse()),
        replace(data, baskets=False),
        replace(data, ordered_only=True),
    ]
    digests = {data.digest, *(other.digest for other in others)}
    assert len(digests) == 1 + len(others)
    assert replace(data, titles=None, meta={}).digest == data.digest


def test_a_folder_of_something_else_is_left_alone(data: SequenceData, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("irreplaceable")
    with pytest.raises(FormatError, match="does not hold sequence data"):
        data.save(tmp_path)
    with pytest.raises(FormatError, match="does not hold sequence data"):
        data.save(tmp_path / "thesis.txt")
    assert (tmp_path / "thesis.txt").read_text() == "irreplaceable"


def test_damaged_and_foreign_folders_are_refused(data: SequenceData, tmp_path: Path) -> None:
    folder = tmp_path / "prepared"

    def refused(match: str) -> None:
        with pytest.raises(FormatError, match=match) as caught:
            SequenceData.load(folder)
        assert str(folder) in str(caught.value)
        assert "\n" not in str(caught.value)
        shutil.rmtree(folder, ignore_errors=True)
        data.save(folder)

    def header(**changes: object) -> None:
        path = folder / "sequences.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    refused("holds no sequence data")
    (folder / "sequences.json").write_text("{")
    refused("not valid JSON")
    (folder / "sequences.json").write_text("[]")
    refused("not written by this project")
    header(format="other")
    refused("not written by this project")
    header(version=99)
    refused("version 99, this release reads version 1")
    header(digest="0" * 64)
    refused("digest does not fit")
    header(baskets=False)
    refused("digest does not fit")
    (folder / "sequences.json").write_text(json.dumps({"format": "persona-sequences", "version": 1}))
    refused("no 'baskets'")
    (folder / "items.parquet").unlink()
    refused("damaged")
    (folder / "events.parquet").write_bytes((folder / "events.parquet").read_bytes()[:-20])
    refused("damaged")
    pl.read_parquet(folder / "events.parquet").drop("item").write_parquet(folder / "events.parquet")
    refused("damaged")
    pl.read_parquet(folder / "events.parquet").head(3).write_parquet(folder / "events.parquet")
    refused("do not add up")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["events", "users", "items"]), st.floats(0, 1), st.integers(1, 255))
def test_no_damaged_byte_changes_the_data(tmp_path: Path, name: str, place: float, change: int) -> None:
    data = build_sequences(read_log(frame()))
    data.save(tmp_path / "prepared")
    path = tmp_path / "prepared" / f"{name}.parquet"
    content = bytearray(path.read_bytes())
    content[min(int(place * len(content)), len(content) - 1)] ^= change
    path.write_bytes(content)
    loaded = loaded_or_none(tmp_path / "prepared")
    assert loaded is None or loaded.digest == data.digest


def loaded_or_none(folder: Path) -> SequenceData | None:
    """What is in ``folder``, or None where it is refused."""
    try:
        return SequenceData.load(folder)
    except FormatError:
        return None


def test_frames_not_made_by_read_log_are_refused(data: SequenceData) -> None:
    log = read_log(frame())
    with pytest.raises(TypeError, match="expected Enum"):
        build_sequences(replace(log, frame=log.frame.with_columns(pl.col("item_id").to_physical())))


def test_without_a_user_it_is_the_log_that_never_had_them(tmp_path):
    rows = {
        "user": ["a", "b", "c", "a", "b", "c", "c"],
        "item": ["x", "x", "y", "only", "z", "z", "x"],
        "time": [1, 2, 3, 4, 5, 6, 7],
    }
    whole = pl.DataFrame(rows)
    whole.write_csv(tmp_path / "whole.csv")
    whole.filter(pl.col("user") != "a").write_csv(tmp_path / "rest.csv")
    rest = build_sequences(read_log(tmp_path / "whole.csv"), baskets=False).without("a")
    assert rest.digest == build_sequences(read_log(tmp_path / "rest.csv"), baskets=False).digest
    rest.save(tmp_path / "saved")
    assert SequenceData.load(tmp_path / "saved").digest == rest.digest
    with pytest.raises(DataError, match="fewer than two users"):
        rest.without("b")
    with pytest.raises(DataError, match="is not in the data"):
        rest.without("a")
