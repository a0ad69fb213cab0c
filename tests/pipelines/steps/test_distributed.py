"""`persona recsys pretrain` and `edit` under torchrun: a worker is killed, one process reads what two have trained."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest

from recsys.task import RECSYS
from tests.pipelines.small import SMALL
from tests.recsys.toy import write_walks

pytestmark = pytest.mark.slow

SECONDS = 1200  # for what takes ten on a machine that does nothing else
SHARDED = (
    *SMALL,
    "--batch-size",
    "16",
    "--table-optimizer",
    "rowwise_adagrad",
    "--table-learning-rate",
    "0.1",
    "--checkpoint-steps",
    "2",
)


class Place:
    """A folder with a store and a prepared log."""

    def __init__(self, folder, database):
        self.folder = folder
        (folder / "mlruns").mkdir(parents=True)
        shutil.copy(database, folder / "mlruns" / "mlflow.db")
        write_walks(folder / "films.csv")
        gone = ("MLFLOW_", "RANK", "WORLD_SIZE", "MASTER_", "TORCHELASTIC_")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(gone)}
        self.environment["MLFLOW_DISABLE_TELEMETRY"] = "true"

    def start(self, *arguments, torchrun=None):
        launcher = ["-m", "torch.distributed.run", "--standalone", *torchrun] if torchrun else []
        command = [sys.executable, *launcher, "-m", "pipelines.cli", "recsys", *arguments]
        return subprocess.Popen(
            command, cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def run(self, *arguments, **options):
        process = self.start(*arguments, **options)
        out, err = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, err[-3000:]
        return out

    def checkpoints(self):
        return {path: path.stat().st_mtime_ns for path in (self.folder / "work").rglob("*.safetensors")}

    def losses(self, training):
        (folder,) = (self.folder / "work").rglob(f"{training}/checkpoints")
        newest = max(folder.glob("0*"))
        return [epoch["loss"] for epoch in json.loads((newest / "header.json").read_text())["history"]]


def kill_a_worker(process, folder):
    """Kill one of the processes that torchrun started, once there is a checkpoint."""
    until = time.monotonic() + SECONDS
    while not list(folder.rglob("checkpoints/0*/header.json")):
        assert process.poll() is None, "it ended before a worker could be killed"
        assert time.monotonic() < until
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)


@pytest.fixture(scope="module")
def place(tmp_path_factory, empty_database):
    """Host and editor trained on two processes, one of which was killed on the way."""
    made = Place(tmp_path_factory.mktemp("two"), empty_database)
    made.run("prepare", "--data", "films.csv")
    longer = (*SHARDED, "--epochs", "6", "--patience", "6")
    process = made.start("pretrain", *longer, "--json", torchrun=("--nproc-per-node=2", "--max-restarts=1"))
    kill_a_worker(process, made.folder)
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, err[-3000:]
    assert "-9" in err, "torchrun has seen the kill"
    made.pretrained = json.loads(out)
    made.edited = json.loads(made.run("edit", "--json", torchrun=("--nproc-per-node=2",)))
    return made


def test_one_rank_speaks_and_its_run_goes_on(place):
    assert place.pretrained["name"] == "host"
    assert place.pretrained["epochs"] == 6
    assert place.edited["name"] == "persona_held_back"
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{place.folder}/mlruns/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("persona-recsys-films").experiment_id])
    assert sorted(run.info.run_name for run in runs) == ["edit", "prepare", "pretrain"]
    assert all(run.info.status == "FINISHED" for run in runs)


def test_the_losses_are_those_of_one_process_that_nobody_disturbed(place, tmp_path, empty_database):
    alone = Place(tmp_path / "one", empty_database)
    alone.run("prepare", "--data", "films.csv")
    alone.run("pretrain", *SHARDED, "--epochs", "6", "--patience", "6")
    assert place.losses("host") == pytest.approx(alone.losses("host"), rel=1e-6)


def test_one_process_goes_on_with_what_two_have_trained(place):
    before = place.checkpoints()
    (comparison,) = json.loads(place.run("evaluate", "--methods", "persona_held_back", "--json"))
    assert {row["method"] for row in comparison["rows"]} == {"host", "persona_held_back", *RECSYS.rivals}
    after = place.checkpoints()
    trained = [path for path in after if "host" in path.parts or "persona_held_back" in path.parts]
    assert trained
    assert all(after[path] == before.get(path) for path in trained), "nothing is trained again"
