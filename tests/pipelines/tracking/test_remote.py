"""The same against an MLflow server, and with several writers: what one machine does alone, several do together."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager, suppress

import mlflow
import numpy as np
import pytest

from pipelines import tracking
from pipelines.doctor import free_port
from pipelines.versions import comparing, comparison_log, lineage_view, promotion
from pipelines.versions import names as versions
from tests.pipelines.made_versions import MODEL, register, snapshot
from tests.pipelines.small import SMALL
from tests.recsys.toy import write_walks

pytestmark = pytest.mark.slow

PERSONA = [sys.executable, "-m", "pipelines.cli"]


def environment(**more):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    return {**kept, "MLFLOW_DISABLE_TELEMETRY": "true", **more}


@contextmanager
def running(folder, *options, **variables):
    """The address of a server with a database and artifacts of its own in ``folder``."""
    port = free_port(23000)
    arguments = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    stores = ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", str(folder / "files")]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *arguments, *stores, *options],
        env=environment(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false", **variables),
        cwd=folder,
        stdout=(folder / "log").open("w"),
        stderr=subprocess.STDOUT,
    )
    address, until = f"http://127.0.0.1:{port}", time.monotonic() + 180
    while time.monotonic() < until:
        assert process.poll() is None, (folder / "log").read_text()
        with suppress(OSError):
            urllib.request.urlopen(f"{address}/health", timeout=2)
            break
        time.sleep(0.2)
    try:
        yield address
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server, which clients reach through its address alone, and its folder."""
    folder = tmp_path_factory.mktemp("server")
    with running(folder) as address:
        yield address, folder


def test_versions_are_compared_promoted_and_drawn_on_a_server(server, tmp_path, monkeypatch):
    address, folder = server
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.chdir(tmp_path)
    for ndcg in (0.5, 0.6, 0.4):
        register(snapshot(np.full(30, ndcg), 30))
    client = tracking.client()
    assert promotion.promote(client, f"{MODEL}/1").moved
    assert promotion.promote(client, f"{MODEL}/2", why="better").moved
    assert promotion.promote(client, f"{MODEL}/3").gate == "failed"
    assert versions.models(client) == [MODEL], "the lock is gone"
    a, b = comparing.sides(client, f"{MODEL}/1", f"{MODEL}/2")
    run_id = comparison_log.log(client, a, b, comparing.compare(a, b))
    assert mlflow.load_table("tables/gains.json", [run_id])["better"].tolist() == ["B"] * 4
    assert client.get_run(run_id).info.artifact_uri.startswith("mlflow-artifacts:/")
    nodes = lineage_view.chain(client, MODEL)
    assert [len(node.reigns) for node in nodes] == [1, 1, 0]
    lineage_view.log(client, MODEL, nodes)
    assert promotion.rollback(client, MODEL).version == 1
    assert not list(tmp_path.iterdir()), "nothing is left beside the server"
    assert list((folder / "files").rglob("comparison.html"))


def test_commands_at_the_same_time_write_to_one_server(server, tmp_path):
    address, _ = server
    write_walks(tmp_path / "films.csv")
    command = [*PERSONA, "recsys", "prepare", "--data", "films.csv", "--json"]
    processes = [
        subprocess.Popen(
            [*command, "--work", f"work{i}"],
            cwd=tmp_path,
            env=environment(MLFLOW_TRACKING_URI=address),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(3)
    ]
    said = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], "\n".join(error[-3000:] for _, error in said)
    assert all(json.loads(out)["users"] == 60 for out, _ in said), "nothing but the document on stdout"
    client = mlflow.MlflowClient(tracking_uri=address)
    runs = client.search_runs([client.get_experiment_by_name("persona-recsys-films").experiment_id])
    assert [(run.info.status, run.data.metrics["users"]) for run in runs] == [("FINISHED", 60.0)] * 3
    assert all([file.path for file in client.list_artifacts(run.info.run_id)] == ["data"] for run in runs)
    assert not (tmp_path / "mlruns").exists()


def test_a_server_with_passwords_serves_those_who_have_one(tmp_path):
    """And tells the others in one sentence what to set."""
    (tmp_path / "server").mkdir()
    write_walks(tmp_path / "films.csv")
    secrets = {"MLFLOW_FLASK_SERVER_SECRET_KEY": "a key", "MLFLOW_AUTH_ADMIN_PASSWORD": "a long password"}

    def persona(*arguments, **login):
        given = environment(MLFLOW_TRACKING_URI=address, **login)
        command = [*PERSONA, *arguments]
        return subprocess.run(command, cwd=tmp_path, env=given, capture_output=True, text=True, check=False)

    prepare = ("recsys", "prepare", "--data", "films.csv")
    admin = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": "a long password"}
    with running(tmp_path / "server", "--app-name", "basic-auth", **secrets) as address:
        for login in ({}, {**admin, "MLFLOW_TRACKING_PASSWORD": "wrong"}):
            refused = persona(*prepare, **login)
            assert refused.returncode == 2, refused.stderr
            assert "MLFLOW_TRACKING_USERNAME" in refused.stderr
            assert refused.stderr.count("\n") == 1, "one sentence"
        done = persona(*prepare, **admin)
        assert done.returncode == 0, done.stderr
        with pytest.MonkeyPatch.context() as patch:
            for name, value in admin.items():
                patch.setenv(name, value)
            client = mlflow.MlflowClient(tracking_uri=address)
            [run] = client.search_runs([client.get_experiment_by_name("persona-recsys-films").experiment_id])
            assert run.info.status == "FINISHED"


def test_four_pipelines_at_once_on_one_fresh_database_lose_nothing(tmp_path):
    write_walks(tmp_path / "films.csv")
    command = [*PERSONA, "recsys", "run", "--data", "films.csv", *SMALL, "--methods", "host", "--json"]
    processes = [
        subprocess.Popen(
            [*command, "--work", f"work{seed}", "--seed", str(seed)],
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in range(4)
    ]
    said = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, "\n".join(error[-3000:] for _, error in said)
    results = [json.loads(out) for out, _ in said]
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    experiment = client.get_experiment_by_name("persona-recsys-films").experiment_id
    runs = {run.info.run_id: run for run in client.search_runs([experiment])}
    assert all(run.info.status == "FINISHED" for run in runs.values())
    steps = []
    for seed, result in enumerate(results):
        assert runs[result["run_id"]].data.params["seed"] == str(seed)
        children = [run for run in runs.values() if run.data.tags.get("mlflow.parentRunId") == result["run_id"]]
        steps.append(sorted(run.info.run_name for run in children))
        evaluated = next(run for run in children if run.info.run_name == "evaluate")
        assert client.list_artifacts(evaluated.info.run_id, "figures")
        number = result["released"]["model"]["version"]
        version = client.get_model_version("persona-recsys-films", str(number))
        assert version.tags["seed"] == str(seed)
        released = runs[version.run_id]
        assert released.data.tags["mlflow.parentRunId"] == result["run_id"]
        assert released.data.metrics["time/uauc"] == result["released"]["metrics"]["time/uauc"]
    assert steps == [steps[0]] * 4
    assert {"prepare", "evaluate", "release"} <= set(steps[0])
    assert sorted(result["released"]["model"]["version"] for result in results) == [1, 2, 3, 4]
