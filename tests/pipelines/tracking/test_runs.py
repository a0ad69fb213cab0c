import json
import shutil
import subprocess
import sys

import mlflow
import numpy as np
import polars as pl
import pytest
from matplotlib.figure import Figure
from mlflow.data.polars_dataset import from_polars
from mlflow.exceptions import MlflowException

from persona.errors import ConfigError, DataError
from pipelines import tracking
from pipelines.tracking import store


@pytest.fixture
def films(workplace):
    return tracking.connect("films")


def fetch(run_id):
    return mlflow.MlflowClient().get_run(run_id)


def steps(run_id, key):
    return [(metric.step, metric.value) for metric in mlflow.MlflowClient().get_metric_history(run_id, key)]


def test_files_lie_beside_the_database_of_the_default_store(workplace, films):
    assert films.uri == f"sqlite:///{workplace}/mlruns/mlflow.db"
    with tracking.run("pretrain") as run:
        tracking.log_json({"uauc": 0.9}, "scores/comparison.json")
    stored = workplace / "mlruns" / "artifacts" / "films" / run.info.run_id / "artifacts" / "scores" / "comparison.json"
    assert json.loads(stored.read_text()) == {"uauc": 0.9}


def test_connecting_leaves_the_default_store_to_the_working_directory(workplace, films, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert str(workplace) not in store.default_uri()


def test_connecting_again_gives_the_same_experiment(films):
    assert tracking.connect("films") == films
    assert tracking.connect("books").experiment_id != films.experiment_id


def test_a_deleted_experiment_is_refused_with_the_line_that_restores_it(films):
    mlflow.MlflowClient().delete_experiment(films.experiment_id)
    with pytest.raises(ConfigError, match=f"mlflow experiments restore --experiment-id {films.experiment_id}"):
        tracking.connect("films")


def test_the_tracking_uri_of_the_environment_is_used(workplace, monkeypatch):
    shutil.copytree("mlruns", "other")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other/mlflow.db")
    tracking.connect("films")
    with tracking.run("pretrain") as run:
        tracking.log_json({}, "x.json")
    assert (workplace / "other" / "artifacts" / "films" / run.info.run_id).is_dir()
    assert not (workplace / "mlruns" / "artifacts").exists()


def test_a_finished_run_has_its_commit_and_tags(films):
    with tracking.run("pretrain", tags={"protocol": "time"}) as run:
        assert fetch(run.info.run_id).info.status == "RUNNING"
    done = fetch(run.info.run_id)
    assert done.info.status == "FINISHED"
    assert done.info.run_name == "pretrain"
    assert done.data.tags["protocol"] == "time"
    assert tracking.commit_tags().items() <= done.data.tags.items()


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_only_files_of_a_checkout_have_a_commit(tmp_path, monkeypatch):
    code = tmp_path / "code.py"
    code.write_text("x = 1\n")
    assert tracking.commit_tags(code) == {}
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for arguments in (["init", "-q"], ["add", "code.py"], [*identity, "commit", "-q", "-m", "a"]):
        subprocess.run(["git", "-C", tmp_path, *arguments], check=True)
    assert tracking.commit_tags(code)["git.changed"] == "false"
    code.write_text("x = 2\n")
    tags = tracking.commit_tags(code)
    assert tags["git.changed"] == "true"
    assert len(tags["mlflow.source.git.commit"]) == 40
    assert tracking.commit_tags(tmp_path / "installed.py") == {}
    monkeypatch.setenv("PATH", "")
    assert tracking.commit_tags(code) == {}


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (DataError("ratings.csv is empty"), "FAILED", "DataError: ratings.csv is empty"),
        (ValueError("x" * 9000), "FAILED", "ValueError: xxx"),
        (KeyboardInterrupt(), "KILLED", None),
        (SystemExit(3), "FAILED", "SystemExit: 3"),
        (SystemExit(0), "FINISHED", None),
    ],
)
def test_a_run_tells_how_it_ended(films, error, status, reason):
    with pytest.raises(type(error)), tracking.run("pretrain") as run:
        raise error
    done = fetch(run.info.run_id)
    assert done.info.status == status
    assert done.data.tags.get("failure", "").startswith(reason or "")
    assert ("failure" in done.data.tags) == (reason is not None)
    assert mlflow.active_run() is None


def test_runs_nest_in_the_active_one_or_in_the_one_named(films):
    with tracking.run("all") as parent, tracking.run("pretrain") as child:
        pass
    with tracking.run("edit", parent=parent.info.run_id) as late:
        pass
    for run in (child, late):
        assert fetch(run.info.run_id).data.tags["mlflow.parentRunId"] == parent.info.run_id


def test_a_project_run_is_joined_once_and_nested_in(films, monkeypatch):
    client = mlflow.MlflowClient()
    chosen = client.create_experiment("chosen")
    project = client.create_run(chosen, run_name="by mlflow run").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", project)
    assert tracking.connect("films").experiment_id == chosen
    with tracking.run("all") as joined, tracking.run("pretrain") as child:
        assert joined.info.run_id == project
        assert child.info.run_id != project
    assert fetch(project).info.run_name == "by mlflow run"
    assert fetch(child.info.run_id).data.tags["mlflow.parentRunId"] == project


def test_a_failed_run_is_continued_without_repeating_epochs(films):
    history = [{"epoch": e, "loss": 1.0 / e, "uauc@10": 0.1 * e} for e in range(1, 6)]
    started = []

    def fail():
        with tracking.run("pretrain") as run:
            started.append(run)
            tracking.log_epochs(history[:3], prefix="host/")
            raise DataError("no space")

    with pytest.raises(DataError):
        fail()
    run = started[0]
    with tracking.run("pretrain", run_id=run.info.run_id) as again:
        tracking.log_epochs(history, prefix="host/")
        tracking.log_epochs(history, prefix="host/")
    assert again.info.run_id == run.info.run_id
    assert steps(run.info.run_id, "host/loss") == [(e, 1.0 / e) for e in range(1, 6)]
    assert [step for step, _ in steps(run.info.run_id, "host/uauc_10")] == [1, 2, 3, 4, 5]
    assert fetch(run.info.run_id).info.status == "FINISHED"
    assert "failure" not in fetch(run.info.run_id).data.tags


def test_more_metrics_than_mlflow_takes_at_once(films):
    with tracking.run("pretrain") as run:
        tracking.log_epochs([{"epoch": e, "a": e, "b": -e} for e in range(700)])
        tracking.log_metrics_batch({f"ndcg@{k}": k / 1000 for k in range(1001)})
    assert steps(run.info.run_id, "b") == [(e, -float(e)) for e in range(700)]
    assert len(fetch(run.info.run_id).data.metrics) == 1003


def test_one_call_for_all_epochs(films, monkeypatch):
    batches = []
    log_batch = mlflow.MlflowClient.log_batch
    monkeypatch.setattr(
        mlflow.MlflowClient, "log_batch", lambda *a, **k: (batches.append(len(k["metrics"])), log_batch(*a, **k))[1]
    )
    with tracking.run("pretrain"):
        tracking.log_epochs([{"epoch": e, "loss": 1.0, "auc": 0.5} for e in range(20)])
        tracking.log_metrics_batch({"a": 1.0, "b": 2.0})
    assert batches == [40, 2]


def test_metrics_may_be_logged_anew(films):
    with tracking.run("evaluate") as run:
        tracking.log_metrics_batch({"uauc": 0.8})
        tracking.log_metrics_batch({"uauc": 0.9, "n": np.int64(3)})
    assert fetch(run.info.run_id).data.metrics == {"uauc": 0.9, "n": 3.0}


def test_parameters_are_flattened_and_long_ones_cut(films):
    with tracking.run("pretrain") as run:
        tracking.log_params({"host": {"name": "sasrec", "fit": {"epochs": 50}, "none": {}}, "titles": "x" * 9000})
        tracking.log_params({f"p{i}": i for i in range(150)})
    params = fetch(run.info.run_id).data.params
    assert params["host.name"] == "sasrec"
    assert params["host.fit.epochs"] == "50"
    assert params["host.none"] == "{}"
    assert len(params["titles"]) == 500
    assert params["titles"].endswith("x ... (cut, 9000 characters)")
    assert params["p149"] == "149"


def test_a_continued_run_keeps_its_parameters(films):
    with tracking.run("pretrain") as run:
        tracking.log_params({"seed": 1})
    with tracking.run("pretrain", run_id=run.info.run_id):
        tracking.log_params({"seed": 1, "width": 64})
        with pytest.raises(ConfigError, match="started with seed = 1, not 2"):
            tracking.log_params({"seed": 2})
    assert fetch(run.info.run_id).data.params == {"seed": "1", "width": "64"}


def test_json_of_numbers_that_are_not_finite_and_figures(workplace, films):
    figure = Figure()
    figure.subplots().plot([1, 2])
    with tracking.run("evaluate") as run:
        tracking.log_json({"x": float("nan"), "y": np.float32(0.5)}, "x.json")
        tracking.log_figure(figure, "figures/curve.png")
    folder = workplace / "mlruns" / "artifacts" / "films" / run.info.run_id / "artifacts"
    assert json.loads((folder / "x.json").read_text()) == {"x": None, "y": 0.5}
    assert (folder / "figures" / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_logging_outside_a_run_is_a_bug_and_starts_none(films):
    with pytest.raises(RuntimeError, match="no active run"):
        tracking.log_params({"seed": 1})
    assert mlflow.active_run() is None


@pytest.mark.slow
def test_processes_that_first_touch_a_store_together_lose_nothing(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    code = (
        "import sys\nfrom pipelines import tracking\ntracking.connect('films')\n"
        "with tracking.run(sys.argv[1]):\n"
        "    for epoch in range(5):\n"
        "        tracking.log_epochs([{'epoch': epoch, 'loss': float(epoch)}])\n"
        "    tracking.log_params({'seed': sys.argv[1]})\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(seed)], stderr=subprocess.PIPE, text=True)
        for seed in range(4)
    ]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0, 0], errors
    experiment = tracking.connect("films").experiment_id
    runs = mlflow.MlflowClient().search_runs([experiment])
    assert sorted(run.data.params["seed"] for run in runs) == ["0", "1", "2", "3"]
    for run in runs:
        assert run.info.status == "FINISHED"
        assert steps(run.info.run_id, "loss") == [(epoch, float(epoch)) for epoch in range(5)]
    assert not any("error" in text.lower() for text in errors), errors


def test_a_data_set_that_another_process_brings_at_the_same_time_is_shown_all_the_same(films, monkeypatch):
    """MLflow inserts it after having looked for it, and fails where somebody was faster."""
    dataset = from_polars(pl.DataFrame({"user": ["a", "b"]}), name="films")
    log_inputs, failures = mlflow.MlflowClient.log_inputs, ["(IntegrityError) UNIQUE constraint failed: datasets.name"]

    def interrupted(*args, **kwargs):
        if failures:
            raise MlflowException(failures.pop())
        return log_inputs(*args, **kwargs)

    monkeypatch.setattr(mlflow.MlflowClient, "log_inputs", interrupted)
    with tracking.run("prepare") as run:
        tracking.log_dataset(dataset)
        failures.append("no space")
        with pytest.raises(MlflowException, match="no space"):
            tracking.log_dataset(dataset)
    assert [entry.dataset.name for entry in fetch(run.info.run_id).inputs.dataset_inputs] == ["films"]


def test_a_data_set_is_shown_beside_the_run_around_as_well(films):
    with tracking.run("recsys films") as whole, tracking.run("prepare"):
        tracking.log_dataset(from_polars(pl.DataFrame({"user": ["a", "b"]}), name="films"))
    assert [entry.dataset.name for entry in fetch(whole.info.run_id).inputs.dataset_inputs] == ["films"]


def test_an_experiment_is_described_once(workplace):
    store = tracking.connect("persona-recsys-films", "Runs on films.")
    client = mlflow.MlflowClient()
    assert client.get_experiment(store.experiment_id).tags["mlflow.note.content"] == "Runs on films."
    client.set_experiment_tag(store.experiment_id, "mlflow.note.content", "Ours.")
    tracking.connect("persona-recsys-films", "Runs on films.")
    assert client.get_experiment(store.experiment_id).tags["mlflow.note.content"] == "Ours."
