import json

import mlflow
import numpy as np
import polars as pl
import pytest

from persona.errors import DataError, FormatError
from pipelines import tracking
from pipelines.versions import snapshots
from tests.pipelines.made_versions import snapshot


def test_a_snapshot_survives_its_files(tmp_path):
    made = snapshot(prototypes=[0, 1, 0, 1, 0, 1, 0, 1, 0])
    snapshots.write(made, tmp_path / "snapshot")
    found = snapshots.read(tmp_path / "snapshot")
    assert found.units.equals(made.units)
    assert found.answers.equals(made.answers)
    assert (found.kind, found.protocol, found.rows, found.summary) == ("user", "time", "rows", made.summary)


def test_thirds_by_activity_keep_equal_counts_together():
    assert snapshots.activity_segments([1, 2, 3, 4, 5, 6]) == ["light", "light", "medium", "medium", "heavy", "heavy"]
    assert snapshots.activity_segments([5, 5, 5, 9]) == ["light", "light", "light", "heavy"]
    assert set(snapshots.activity_segments([7] * 5)) == {"light"}
    assert snapshots.activity_segments([0, 1, 0, 2, 3]) == ["new", "light", "new", "medium", "heavy"]
    assert snapshots.activity_segments([]) == []


def test_means_by_segment_are_those_of_its_units():
    made = snapshot(ndcg=np.arange(9.0))
    rows = {row["segment"]: row for row in made.by_segment()}
    assert list(rows) == ["light", "medium", "heavy"]
    assert rows["medium"] == {"segment": "medium", "users": 3, "time/ndcg_10": 4.0}
    assert snapshots.segment_metrics(made)["time/heavy/ndcg_10"] == 7.0


def test_what_makes_no_snapshot_is_named():
    with pytest.raises(DataError, match="a user occurs twice"):
        snapshot(units=["a"] * 9)
    with pytest.raises(DataError, match="differ in length"):
        snapshot(ndcg=np.arange(4.0))
    with pytest.raises(DataError, match="lacks the columns prototype, segment"):
        snapshots.Snapshot("user", "time", "rows", pl.DataFrame({"unit": ["a"]}))


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("snapshot.json", '{"format": "snapshot", "format_version": 99}', "no snapshot of format 1"),
        ("units.parquet", "not parquet", "is damaged"),
        ("answers.parquet", None, "is damaged"),
    ],
)
def test_damaged_files_are_refused(tmp_path, file, content, sentence):
    snapshots.write(snapshot(), tmp_path)
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_text(content)
    with pytest.raises(FormatError, match=sentence):
        snapshots.read(tmp_path)


def test_a_run_keeps_its_snapshot_its_segments_and_their_table(workplace):
    tracking.connect("films")
    made = snapshot(ndcg=np.arange(9.0))
    with tracking.run("release") as run:
        snapshots.log(made)
        snapshots.log(made)
    with tracking.run("other") as other:
        pass
    client = mlflow.MlflowClient()
    assert snapshots.of_run(client, run.info.run_id).units.equals(made.units)
    assert snapshots.of_run(client, other.info.run_id) is None
    done = client.get_run(run.info.run_id)
    assert done.data.metrics == {"time/light/ndcg_10": 1.0, "time/medium/ndcg_10": 4.0, "time/heavy/ndcg_10": 7.0}
    assert json.loads(done.data.tags["mlflow.loggedArtifacts"]) == [{"path": "tables/segments.json", "type": "table"}]
    assert mlflow.load_table("tables/segments.json", [run.info.run_id])["segment"].tolist() == [
        "light",
        "medium",
        "heavy",
    ]


@pytest.mark.parametrize(("metric", "less"), [("time/logloss", True), ("time/ndcg_10", False), ("error", True)])
def test_which_way_is_better(metric, less):
    assert snapshots.less_is_better(metric) is less
