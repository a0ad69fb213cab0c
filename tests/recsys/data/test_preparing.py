"""A log that is prepared block by block gives the same sequences as one that is read at once, and the same errors."""

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from persona.errors import DataError, FormatError
from recsys.data import preparing
from recsys.data.log import read_log
from recsys.data.log.mapping import map_columns
from recsys.data.log.reading import open_table
from recsys.data.log.streaming import NotStreamable, stream_log
from recsys.data.preparing import prepare_log
from recsys.data.sequences import SequenceData, build_sequences

NOBODY = {"user": None, "item": None, "time": None, "title": None}


def events(n=300, seed=0, users=25, items=40):
    rng = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "user_id": (users * rng.random(n) ** 2).astype(np.int64),
            "item_id": (items * rng.random(n) ** 2).astype(np.int64),
            "timestamp": 1_600_000_000 + rng.integers(0, 40, n),
        }
    )


def write_parts(frame, folder, rows):
    folder.mkdir(parents=True)
    for i, start in enumerate(range(0, frame.height, rows)):
        frame.slice(start, rows).write_parquet(folder / f"part-{i:03}.parquet")
    return folder


def both(folder, tmp_path, block=37, bucket=50, **limits):
    """The sequences read at once and streamed, after checking that what the stream tells is what it wrote."""
    built = build_sequences(read_log(folder), **limits)
    built.save(tmp_path / "whole")
    table = open_table(folder, named=[])
    told = stream_log(table, map_columns(table, NOBODY), tmp_path / "streamed", block=block, bucket=bucket, **limits)
    streamed = SequenceData.load(tmp_path / "streamed")
    assert (told.digest, told.meta, told.baskets) == (streamed.digest, streamed.meta, streamed.baskets)
    assert told.counts.tolist() == np.diff(streamed.offsets).tolist()
    assert (told.user_ids.to_list(), told.items) == (streamed.user_ids.to_list(), streamed.n_items)
    assert told.report == read_log(folder).report
    return SequenceData.load(tmp_path / "whole"), streamed


def assert_same(a, b):
    assert a.digest == b.digest
    assert a.meta == b.meta
    for name in ("items", "times", "offsets", "basket_start"):
        assert getattr(a, name).tolist() == getattr(b, name).tolist()
    assert (a.baskets, a.ordered_only) == (b.baskets, b.ordered_only)
    assert (a.titles is None) == (b.titles is None)
    if a.titles is not None:
        assert a.titles.to_list() == b.titles.to_list()


FORMS = {
    "integers": lambda f: f,
    "text": lambda f: f.with_columns(("u" + pl.col("user_id").cast(pl.String)), pl.col("item_id").cast(pl.String)),
    "text of floats": lambda f: f.with_columns(pl.col("user_id").cast(pl.Float64).cast(pl.String)),
    "categories": lambda f: f.with_columns(pl.col("item_id").cast(pl.String).cast(pl.Categorical)),
    "floats": lambda f: f.with_columns(pl.all().cast(pl.Float64)),
    "milliseconds": lambda f: f.with_columns(pl.col("timestamp") * 1000 + pl.col("item_id")),
    # Only some blocks have fractions.
    "fractions": lambda f: f.with_columns(
        pl.when(pl.int_range(pl.len()) > 250).then(pl.col("timestamp") + 0.25).otherwise(pl.col("timestamp") * 1.0)
    ),
    "small steps": lambda f: f.with_columns(pl.col("timestamp") - 1_600_000_000),
    "dates": lambda f: f.with_columns(pl.from_epoch("timestamp")),
    "numbers of dates": lambda f: f.with_columns(20240101 + pl.col("timestamp") % 20),
    "row order": lambda f: f.drop("timestamp"),
    "positions": lambda f: f.rename({"timestamp": "position"}),
    "titles": lambda f: f.with_columns(
        pl.when(pl.col("timestamp") % 2 == 0).then("Film " + pl.col("item_id").cast(pl.String)).alias("title")
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_stream_gives_the_same_sequences_as_one_reading(form, tmp_path):
    folder = write_parts(FORMS[form](events()), tmp_path / "log", 90)
    assert_same(*both(folder, tmp_path))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 1000),
    part=st.integers(20, 400),
    block=st.integers(10, 400),
    bucket=st.integers(1, 400),
    minimum=st.integers(1, 8),
)
def test_the_sizes_of_parts_blocks_and_buckets_do_not_matter(seed, part, block, bucket, minimum, tmp_path_factory):
    place = tmp_path_factory.mktemp("sizes")
    folder = write_parts(events(seed=seed), place / "log", part)
    limits = {"min_user_events": minimum, "min_item_events": minimum}
    assert_same(*both(folder, place, block=block, bucket=bucket, **limits))


def test_asking_for_baskets_is_heeded(tmp_path):
    folder = write_parts(events(), tmp_path / "log", 90)
    assert_same(*both(folder, tmp_path, baskets=False))


def test_large_parquet_logs_are_streamed_and_others_read(tmp_path, monkeypatch):
    folder = write_parts(events(), tmp_path / "log", 90)
    streamed = prepare_log(folder, tmp_path / "a", at_once=100)
    for name, source in {"b": folder, "c": str(folder / "part-*.parquet")}.items():
        whole = prepare_log(source, tmp_path / name)
        assert whole.digest == streamed.digest
        assert whole.counts.tolist() == streamed.counts.tolist()
    events().write_csv(tmp_path / "log.csv")
    assert prepare_log(tmp_path / "log.csv", tmp_path / "d", at_once=100).digest == streamed.digest
    monkeypatch.setattr(preparing, "read_log", None)  # the stream must not need it
    assert prepare_log(folder, tmp_path / "e", columns={"user": "user_id"}, at_once=100).digest == streamed.digest


def test_times_that_no_block_tells_alone_are_read_at_once(tmp_path):
    """Text is never streamed; neither is a log whose first part alone looks like numbers of dates."""
    steps = events().with_columns(pl.when(pl.int_range(pl.len()) < 90).then(20240101).otherwise(5).alias("timestamp"))
    text = events().with_columns(pl.from_epoch("timestamp").cast(pl.String))
    for name, frame in {"steps": steps, "text": text}.items():
        folder = write_parts(frame, tmp_path / name, 90)
        table = open_table(folder, named=[])
        with pytest.raises(NotStreamable):
            stream_log(table, map_columns(table, NOBODY), tmp_path / "x", block=90)
        made = prepare_log(folder, tmp_path / f"{name}-prepared", at_once=100)
        assert made.digest == build_sequences(read_log(folder)).digest


BROKEN = {
    "gap": lambda f: f.with_columns(
        pl.when(pl.int_range(pl.len()) == 217).then(None).otherwise("item_id").alias("item_id")
    ),
    "blank": lambda f: f.with_columns(
        pl.when(pl.int_range(pl.len()) == 217)
        .then(pl.lit(" "))
        .otherwise(pl.col("user_id").cast(pl.String))
        .alias("user_id")
    ),
    "fraction": lambda f: f.with_columns(
        pl.when(pl.int_range(pl.len()) == 217).then(0.5).otherwise(pl.col("user_id") * 1.0).alias("user_id")
    ),
    "negative time": lambda f: f.with_columns(
        pl.when(pl.int_range(pl.len()) == 217).then(-5).otherwise("timestamp").alias("timestamp")
    ),
    "one user": lambda f: f.with_columns(user_id=pl.lit(1)),
    "nobody twice": lambda f: f.with_columns(user_id=pl.int_range(pl.len())),
    "nothing": lambda f: f.head(0),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_logs_are_refused_in_the_same_words(fault, tmp_path):
    folder = write_parts(BROKEN[fault](events()), tmp_path / "log", 90) if fault != "nothing" else tmp_path / "log"
    if fault == "nothing":
        folder.mkdir()
        events().head(0).write_parquet(folder / "part.parquet")
    with pytest.raises(DataError) as whole:
        read_log(folder)
    table = open_table(folder, named=[])
    with pytest.raises(DataError) as streamed:
        stream_log(table, map_columns(table, NOBODY), tmp_path / "out", block=37, bucket=50)
    assert str(streamed.value) == str(whole.value)
    assert [p.name for p in tmp_path.iterdir()] == ["log"], "nothing is left behind"


def test_what_else_is_refused(tmp_path):
    folder = write_parts(events(), tmp_path / "log", 90)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "letter.txt").write_text("mine")
    with pytest.raises(FormatError, match="choose another folder"):
        prepare_log(folder, tmp_path / "taken", at_once=100)
    with pytest.raises(DataError, match="lower the minimum"):
        stream_log(
            table := open_table(folder, named=[]), map_columns(table, NOBODY), tmp_path / "out", min_user_events=10_000
        )
    with pytest.raises(DataError, match="no file matches"):
        read_log(tmp_path / "other-*.parquet")
    events().write_csv(tmp_path / "log" / "part.csv")
    with pytest.raises(DataError, match="no Parquet"):
        read_log(tmp_path / "log" / "part*")
