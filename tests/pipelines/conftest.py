"""A fresh MLflow store for every test that asks for one, without the seconds that making its database takes each time."""

import shutil
from pathlib import Path

import pytest

from pipelines.tracking import store


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory) -> Path:
    """The path of a database as the first run makes it."""
    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    with store.prepared(f"sqlite:///{path}"):
        return path


@pytest.fixture
def workplace(tmp_path, monkeypatch, empty_database) -> Path:
    """A working directory whose default store exists and is empty; the environment names no other store."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlruns").mkdir()
    shutil.copy(empty_database, tmp_path / "mlruns" / "mlflow.db")
    return tmp_path
