"""A user is forgotten as whoever runs a service does it: after a bank was released, refined and collected for."""

import json
import os
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import mlflow
import polars as pl
import pytest

from persona.prototypes import load_statistics
from persona.storage import load_tensors
from pipelines.cli import main
from pipelines.steps.workspace import Workspace
from pipelines.tracking import personal
from recsys.prototypes import user_numbers
from recsys.task import RECSYS
from tests.recsys.toy import write_walks

SMALL = ("--host", "gru4rec", "--dim", "8", "--max-length", "5", "--width", "8", "--epochs", "1", "--batch-size", "64")


@pytest.fixture(scope="module")
def place(tmp_path_factory, empty_database):
    import shutil

    folder = tmp_path_factory.mktemp("forget")
    (folder / "mlruns").mkdir()
    shutil.copy(empty_database, folder / "mlruns" / "mlflow.db")
    write_walks(folder / "log.csv")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
            patch.delenv(name)
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))  # MLflow loads what it registers, and leaves its code there
        yield folder


def _persona(*arguments):
    with redirect_stdout(StringIO()) as out:
        code = main(["recsys", *arguments, "--json"])
    assert code == 0, out.getvalue()
    return json.loads(out.getvalue())


@pytest.fixture(scope="module")
def user(place):
    """The id of a user who left traces everywhere."""
    _persona("prepare", "--data", "log.csv")
    _persona("evaluate", *SMALL, "--methods", "host")
    _persona("prototypes", *SMALL, "--prototypes", "2")
    _persona("release")
    _persona("collect", "--last", "10000", "--out", "work/stats/1.safetensors")
    _persona("collect", "--last", "10000", "--out", "elsewhere/2.safetensors")
    return Workspace(place / "work").data(RECSYS).user_ids[7]


def _registered():
    """Names in the snapshots, and in the sampled edits, of all runs and models."""
    folders = [personal.local(address) for _, address in personal.artifact_folders(mlflow.MlflowClient())]
    units = [pl.read_parquet(p)["unit"] for f in folders for p in f.rglob("units.parquet")]
    edits = [pl.read_parquet(p)["user"] for f in folders for p in f.rglob("edits.parquet")]
    shown = [json.loads(p.read_text()) for f in folders for p in f.rglob("tables/edits.json")]
    names = [pl.Series([row[t["columns"].index("user")] for row in t["data"]]) for t in shown]
    assert units
    assert edits
    assert names
    return set(pl.concat([column.cast(pl.String) for column in [*units, *edits, *names]]).to_list())


def _units(work):
    return [load_tensors(path)[0]["units"].numpy() for path in work.cells.rglob("results/*.safetensors")]


@pytest.mark.slow
def test_a_forgotten_user_is_nowhere_and_the_rest_is_as_it_was(place, user):
    work, number = Workspace(place / "work"), int(user_numbers([user])[0])
    before, index = work.data(RECSYS), work.data(RECSYS).user_index[user]
    (folder,) = work.prototypes.iterdir()
    lineage = work.lineage(load_statistics(place / "elsewhere" / "2.safetensors").host)
    assert lineage.root == folder
    first = lineage.history()[0].version
    assert lineage.statistics(first).has(number)
    assert user in _registered()
    assert all(index in units for units in _units(work))
    assert _units(work)

    done = _persona("forget", user, "--statistics", "elsewhere")

    after = work.data(RECSYS)
    assert after.user_ids.to_list() == [name for name in before.user_ids.to_list() if name != user]
    for name in after.user_ids.to_list():
        mine = [after.item_ids[int(i) - 1] for i in after.history_of(name)]
        assert mine == [before.item_ids[int(i) - 1] for i in before.history_of(name)]
    assert all(not lineage.statistics(r.version).has(number) for r in lineage.history())
    assert lineage.load().version == lineage.head
    assert not (folder / first).exists()
    for shard in ("work/stats/1.safetensors", "elsewhere/2.safetensors"):
        assert not load_statistics(place / shard).statistics.has(number)
    assert user not in _registered()
    assert not any(index in units for units in _units(work))

    assert done["user"] == user
    assert done["left"] == []
    where = " ".join(found["where"] for found in done["reached"])
    for part in ("prepared", "prototypes", "stats/1", "elsewhere/2", "results", "run ", "model "):
        assert part in where
    made = {Path(found["where"]).name: found["what"] for found in done["rebuild"]}
    assert {"cells", "bundle", "prototypes"} <= set(made)
    assert "persona recsys release" in made["bundle"]

    _persona("release", *SMALL)  # what is to be made again can be made


@pytest.mark.slow
@pytest.mark.parametrize("json_option", [(), ("--json",)])
def test_an_unknown_user_is_one_sentence(user, capsys, json_option):
    assert main(["recsys", "forget", "nobody at all", *json_option]) == 2
    shown = capsys.readouterr()
    assert "user 'nobody at all' is not in the data" in " ".join((shown.err + shown.out).split())


def test_nothing_prepared_is_one_sentence(tmp_path, capsys):
    assert main(["recsys", "forget", "7", "--work", str(tmp_path)]) == 2
    assert "nothing was prepared" in capsys.readouterr().err
