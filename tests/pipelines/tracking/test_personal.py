import json
from pathlib import Path

import polars as pl
import pytest
import torch

from persona.edit_format import load_edit, save_edit
from pipelines.tracking import personal
from pipelines.versions import snapshots
from tests.persona.toy import random_edit


def _edits(folder, names, column="user"):
    folder.mkdir(parents=True)
    edit = random_edit(len(names), seed=3)
    pl.DataFrame({column: names, "norm": edit.norm().tolist()}).write_parquet(folder / "edits.parquet")
    save_edit(folder / "edits.safetensors", edit[slice(2)])
    return edit


def test_an_address_on_this_machine_is_a_folder():
    assert personal.local("file:///a/b%20c") == personal.local("/a/b c") == Path("/a/b c")
    assert personal.local("mlflow-artifacts:/1/2") is None
    assert personal.local("s3://bucket/1") is None


@pytest.mark.parametrize("killed", [False, True])
def test_sampled_edits_lose_the_matrices_of_the_user_alone(tmp_path, killed):
    edit = _edits(tmp_path / "model", ["a", "b", "c"])
    if killed:  # after the matrices were written, before the table was
        save_edit(tmp_path / "model" / "edits.safetensors", edit[slice(1, 2)])
    assert personal.take_out(tmp_path, {"a"}) == [tmp_path / "model" / "edits.parquet"]
    assert pl.read_parquet(tmp_path / "model" / "edits.parquet")["user"].to_list() == ["b", "c"]
    assert torch.equal(load_edit(tmp_path / "model" / "edits.safetensors").flat(), edit[1].flat())
    assert personal.take_out(tmp_path, {"a"}) == []
    personal.take_out(tmp_path, {"b"})
    assert not (tmp_path / "model" / "edits.safetensors").exists()


def test_devices_of_the_same_name_stay(tmp_path):
    _edits(tmp_path / "model", ["a", "b", "c"], column="device")
    taken = snapshots.from_columns("device", "time", "rows", units=["a"], metrics={"x": [1.0]}, segments=["new"])
    snapshots.write(taken, tmp_path / "snapshot")
    assert personal.take_out(tmp_path, {"a"}) == []


def test_snapshots_lose_the_rows_and_answers_of_the_user_alone(tmp_path):
    answers = [{"unit": unit, "input": "x", "rank": 1, "item": "i", "title": None} for unit in "ab"]
    taken = snapshots.from_columns(
        "user", "time", "rows", units=["a", "b"], metrics={"x": [1.0, 2.0]}, segments=["new"] * 2, answers=answers
    )
    snapshots.write(taken, tmp_path / "snapshot")
    assert personal.take_out(tmp_path, {"a"}) == [tmp_path / "snapshot" / "snapshot.json"]
    left = snapshots.read(tmp_path / "snapshot")
    assert left.units["unit"].to_list() == left.answers["unit"].to_list() == ["b"]


def test_what_one_user_was_recommended_goes(tmp_path):
    path = tmp_path / "recommendations.json"
    path.write_text(json.dumps({"user": "a", "before": {}}))
    assert personal.take_out(tmp_path, {"b"}) == []
    assert personal.take_out(tmp_path, {"a"}) == [path]
    assert not path.exists()
