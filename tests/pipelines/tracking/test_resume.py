import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import mlflow
import pytest

from persona.errors import ConfigError, DataError
from pipelines import tracking
from pipelines.tracking import resume, runs
from tests.pipelines.small import SMALL
from tests.recsys.toy import write_walks


@pytest.fixture
def client(workplace, monkeypatch):
    monkeypatch.setattr(runs, "command_line", ["recsys", "prepare", "--data", "my films.csv"])
    tracking.connect("films")
    return mlflow.MlflowClient()


def interrupted():
    """A run that failed; returns its id."""
    with pytest.raises(DataError), tracking.run("prepare") as run:
        raise DataError("no space")
    return run.info.run_id


def test_a_run_knows_how_it_was_started(client, workplace):
    with tracking.run("prepare") as run, tracking.run("inner") as inner:
        pass
    tags = client.get_run(run.info.run_id).data.tags
    assert tags["command"] == "recsys prepare --data 'my films.csv'"
    assert tags["folder"] == str(workplace)
    assert tags["process"] == tracking.process_name()
    assert str(os.getpid()) in tags["process"]
    assert "command" not in client.get_run(inner.info.run_id).data.tags


def test_a_failed_run_goes_on_with_its_command_in_its_folder(client, workplace, monkeypatch):
    run_id = interrupted()
    found = resume.plan(client, run_id)
    assert (found.run_id, found.name, found.status) == (run_id, "prepare", "FAILED")
    assert found.command == ["recsys", "prepare", "--data", "my films.csv"]
    assert found.folder == workplace
    assert resume.environment(found)["MLFLOW_RUN_ID"] == run_id
    assert resume.environment(found)["MLFLOW_TRACKING_URI"] == f"sqlite:///{workplace}/mlruns/mlflow.db"
    assert resume.command_of(found, "python")[:4] == ["python", "-m", "pipelines.cli", "recsys"]


def test_a_part_of_a_run_goes_on_with_the_whole(client):
    with pytest.raises(DataError), tracking.run("all") as outer, tracking.run("prepare") as inner:
        raise DataError("no space")
    assert resume.plan(client, inner.info.run_id).run_id == outer.info.run_id


def test_what_cannot_go_on_is_named(client, workplace, monkeypatch):
    with tracking.run("prepare") as run, pytest.raises(ConfigError, match=f"still at work in process {os.getpid()}"):
        resume.plan(client, run.info.run_id)
    with pytest.raises(ConfigError, match="is finished"):
        resume.plan(client, run.info.run_id)
    with pytest.raises(DataError, match=r"no run 'nothing' in sqlite:///"):
        resume.plan(client, "nothing")
    run_id = interrupted()
    client.set_tag(run_id, "folder", str(workplace / "gone"))
    with pytest.raises(ConfigError, match=r"worked in .*gone, which is not on this machine"):
        resume.plan(client, run_id)
    monkeypatch.setattr(runs, "command_line", [])
    with pytest.raises(ConfigError, match="does not say which command it was"):
        resume.plan(client, interrupted())


def test_a_killed_process_is_told_from_one_at_work(client):
    with tracking.run("prepare") as run:
        name = tracking.process_name()
        for gone in (
            name.rsplit(" ", 1)[0] + " 1",
            "elsewhere 1 1",
            "",
            f"{name.split(' ', maxsplit=1)[0]} 999999999 ",
        ):
            client.set_tag(run.info.run_id, "process", gone)
            assert resume.plan(client, run.info.run_id).status == "RUNNING", gone


def test_steps_of_a_continued_run_go_on_in_their_runs_and_repeat_nothing(client):
    def work(fail):
        for name in ("prepare", "method", "method"):
            with tracking.run(name):
                tracking.log_params({"seed": 1})
                tracking.log_metrics_batch({"users": 60.0, "items": 30.0})
                tracking.log_epochs([{"epoch": e, "loss": 1.0 / e} for e in range(1, 3 if fail else 5)])
        if fail:
            raise DataError("no space")

    with pytest.raises(DataError), tracking.run("all") as first:
        work(fail=True)
    with tracking.run("all", run_id=first.info.run_id) as again:
        work(fail=False)
        with tracking.run("release") as new:
            pass
    runs = client.search_runs([first.info.experiment_id])
    assert again.info.run_id == first.info.run_id
    assert sorted(run.info.run_name for run in runs) == ["all", "method", "method", "prepare", "release"]
    assert all(run.info.status == "FINISHED" for run in runs)
    assert all(run.data.tags.get("failure") is None for run in runs)
    for run in runs:
        if run.info.run_id in (first.info.run_id, new.info.run_id):
            continue
        assert run.data.tags["mlflow.parentRunId"] == first.info.run_id
        assert [m.value for m in client.get_metric_history(run.info.run_id, "users")] == [60.0]
        assert [m.step for m in client.get_metric_history(run.info.run_id, "loss")] == [1, 2, 3, 4]


def test_a_continued_run_still_takes_what_has_changed(client):
    run_id = interrupted()
    with tracking.run("prepare", run_id=run_id):
        tracking.log_metrics_batch({"uauc": 0.8})
        tracking.log_metrics_batch({"uauc": 0.9})
        tracking.log_metrics_batch({"uauc": 0.9}, step=1)
    history = client.get_metric_history(run_id, "uauc")
    assert [(m.step, m.value) for m in history] == [(0, 0.8), (0, 0.9), (1, 0.9)]


@pytest.mark.slow
def test_a_killed_pipeline_goes_on_to_its_end_as_if_nothing_had_happened(tmp_path, empty_database):
    """Killed while methods are trained, as the system does when memory runs out; the same numbers as undisturbed."""
    write_walks(tmp_path / "films.csv")
    (tmp_path / "mlruns").mkdir()
    shutil.copy(empty_database, tmp_path / "mlruns" / "mlflow.db")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment = {**clean, "MLFLOW_DISABLE_TELEMETRY": "true"}
    persona = [sys.executable, "-m", "pipelines.cli"]
    methods = ("--methods", "persona_held_back", "--json")

    def run(*arguments):
        return subprocess.run(
            [*persona, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    command = ["recsys", "run", "--data", "films.csv", *SMALL, *methods]
    process = subprocess.Popen([*persona, *command], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 180
    while not list((tmp_path / "work").rglob("checkpoint.safetensors")) and time.monotonic() < until:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait(60)

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    experiment = client.get_experiment_by_name("persona-recsys-films").experiment_id
    before = {run.info.run_name: run for run in client.search_runs([experiment])}
    assert before["recsys films gru4rec"].info.status == "RUNNING"
    done = run("resume", before["recsys films gru4rec"].info.run_id)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\$ persona recsys run --data films\.csv", done.stderr)
    resumed = json.loads(done.stdout)
    assert resumed["run_id"] == before["recsys films gru4rec"].info.run_id

    runs = client.search_runs([experiment])
    assert all(run.info.status == "FINISHED" for run in runs)
    names = [run.info.run_name for run in runs]
    assert len(names) == len(set(names)), "every step has one run"
    for each in runs:
        if each.info.run_name not in before:
            continue
        for key in each.data.metrics:
            logged = [metric.step for metric in client.get_metric_history(each.info.run_id, key)]
            assert len(logged) == len(set(logged)), (each.info.run_name, key)
    undisturbed = run("recsys", "run", "--data", "films.csv", "--work", "other", *SMALL, *methods)
    rows = [json.loads(text)["comparisons"][0]["rows"] for text in (done.stdout, undisturbed.stdout)]
    assert [row["metrics"] for row in rows[0]] == [row["metrics"] for row in rows[1]]
