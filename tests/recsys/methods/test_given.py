"""Files of scores of others are judged on the very rows and negatives that methods are."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from persona.errors import ConfigError, DataError
from persona.storage import read_json
from recsys.methods import METHODS, Problem, measure, train_method
from recsys.methods.given import read_scores, rows_to_score
from recsys.task import RECSYS
from tests.recsys.toy import SMALL, sequences, walks
from vision.methods import METHODS as VISION_METHODS
from vision.task import VISION

DATA = walks(users=30, events=10)
LOG = sequences([[1, 2, 3], [4, 5, 6, 7]], [[1, 1, 2], [1, 2, 3, 3]])


def problem(protocol, **settings):
    return Problem(DATA, replace(SMALL, protocol=protocol, monitor="ndcg_10", **settings))


def scored(rows, score, column="position"):
    """A row an item that is ranked: the candidates, and the whole catalogue where it is asked for."""
    items = DATA.item_ids.to_list()
    found = []
    for row in rows.iter_rows(named=True):
        asked = items if row["catalogue"] else row["candidates"]
        found += [(row["user"], row[column], item, score(item)) for item in asked]
    return pl.DataFrame(found, schema=["user", column, "item", "score"], orient="row")


@pytest.mark.parametrize("protocol", ["paper", "full", "time"])
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_scores_of_popularity_are_judged_like_popularity(protocol, kind, tmp_path):
    wanted = problem(protocol)
    method = train_method("popularity", wanted)
    counts = next(iter(method.model.stream.counts(np.array([len(method.model.stream)]), None)))[1]
    frame = scored(rows_to_score([wanted]), lambda item: float(counts[DATA.item_index[item]]))
    path = tmp_path / f"counts.{kind}"
    frame.sample(fraction=1, shuffle=True, seed=1).pipe(
        lambda f: f.write_csv(path) if kind == "csv" else f.write_parquet(path)
    )
    found, expected = measure(wanted, f"scores:{path}"), measure(wanted, "popularity")
    assert found.method == "counts"
    assert found.summary.keys() == expected.summary.keys()
    for name, values in expected.per_unit.items():
        if "logloss" not in name:
            np.testing.assert_allclose(found.per_unit[name], values, err_msg=name)


def test_rows_of_several_seeds_hold_the_candidates_of_all_and_do_not_tell_the_target():
    one, other = problem("time"), problem("time", seed=1)
    both, alone = rows_to_score([one, other]), rows_to_score([one])
    assert both["position"].to_list() == alone["position"].to_list()
    for row, few in zip(both.iter_rows(named=True), alone.iter_rows(named=True), strict=True):
        assert set(few["candidates"]) <= set(row["candidates"])
        assert row["candidates"] == sorted(set(row["candidates"]), key=int), "in the order of the catalogue"
        history = DATA.history_of(row["user"]).tolist()
        target = DATA.item_ids[history[row["position"]] - 1]
        assert target in few["candidates"]
        before = history[max(0, row["position"] - 5) : row["position"]]
        assert row["context"] == [DATA.item_ids[i - 1] for i in before]


def test_what_has_no_score_stands_below_all_that_have_one(tmp_path):
    path = tmp_path / "some.csv"
    path.write_text("user,position,item,score\nu0,2,103,-5\nu0,2,101,-7\n")
    given = read_scores(path, LOG)
    scores = given.at(np.array([2, 3])).score_catalogue(None)
    assert scores[0, :5].tolist() == [-np.inf, -7, -8, -5, -8]
    assert (scores[1, 1:] == -8).all(), "another event has no scores at all"


def test_a_time_means_all_events_of_the_user_at_it(tmp_path):
    path = tmp_path / "times.csv"
    path.write_text("user,time,item,score\nu1,3,101,1.5\nu0,2,102,0.5\n")
    given = read_scores(path, LOG)
    assert (given.keys // 31).tolist() == [2, 5, 6]
    assert given.scores.tolist() == [0.5, 1.5, 1.5]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("user,item,score\nu0,101,1\n", "has no column 'position': give user, position"),
        ("user,position,item\nu0,1,101\n", "has no column 'score'"),
        ("user,position,item,score\n", "has no row"),
        ("user,position,item,score\nu9,1,101,1\n", "row 0 has the user 'u9', which the log lacks"),
        ("user,position,item,score\nu0,1,101,1\nu0,1,x,1\n", "row 1 has the item 'x', which the log lacks"),
        ("user,position,item,score\nu0,3,101,1\n", "row 0 has position 3, but its user has 3 events, from 0"),
        ("user,position,item,score\nu0,1,101,high\n", "row 0 has no number in column 'score', but 'high'"),
        ("user,position,item,score\nu0,1,101,inf\n", "row 0 has a score that is not finite"),
        ("user,position,item,score\nu0,1,101,1\nu0,1,101,2\n", "row 1 scores an item of an event again"),
        ("user,time,item,score\nu0,9,101,1\n", "row 0 has the time 9, at which its user has no event"),
    ],
)
def test_a_file_that_does_not_fit_is_one_sentence(tmp_path, text, sentence):
    path = tmp_path / "mine.csv"
    path.write_text(text)
    with pytest.raises((ConfigError, DataError), match=f"--scores .*mine.csv.*{sentence}"):
        read_scores(path, LOG)


def test_a_file_without_any_row_under_test_is_refused(tmp_path):
    path = tmp_path / "early.csv"
    path.write_text(f"user,position,item,score\nu0,1,{DATA.item_ids[0]},1\n")
    with pytest.raises(DataError, match=r"none of its events is tested under protocol paper: .*--rows-out"):
        measure(problem("paper"), f"scores:{path}")


def test_a_file_that_changed_is_judged_again(tmp_path):
    kept = Problem(DATA, replace(SMALL, protocol="paper"), folder=tmp_path / "cells")
    rows = rows_to_score([kept])
    values = []
    for sign in (1, -1):
        scored(rows, lambda item, sign=sign: sign * float(item)).write_csv(tmp_path / "mine.csv")
        values.append(measure(kept, f"scores:{tmp_path}/mine.csv").summary["uauc"])
    assert values[0] != values[1]
    results = sorted((tmp_path / "cells").rglob("mine.json"))
    assert len(results) == 2
    assert {read_json(path)["method"] for path in results} == {"mine"}


def test_help_names_all_methods():
    assert RECSYS.named == tuple(METHODS)
    assert VISION.named == tuple(VISION_METHODS)
