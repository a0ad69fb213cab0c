import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import mlflow
import pytest

from persona.errors import ConfigError
from pipelines.tracking import store
from pipelines.tracking.store import State

HOLD = (
    "import sqlite3, sys\nc = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
    "c.execute('BEGIN ' + sys.argv[2])\nprint('held', flush=True)\nsys.stdin.read()\n"
)


@pytest.fixture
def database(workplace) -> Path:
    return workplace / "mlruns" / "mlflow.db"


@pytest.fixture
def hold(database):
    """Another process that holds a lock of the database; gives its id."""
    started = []

    def start(mode):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, database, mode], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process.pid

    yield start
    for process in started:
        process.communicate()


def execute(path, statement):
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(statement)
        connection.commit()


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("sqlite:////data/mlflow.db", "/data/mlflow.db"),
        ("sqlite:////data/mlflow.db?timeout=5", "/data/mlflow.db"),
        ("http://tracking.example:5000", None),
        ("postgresql://user@host/db", None),
        ("databricks", None),
    ],
)
def test_the_database_that_a_uri_names(uri, path):
    assert store.database_path(uri) == (Path(path) if path else None)


def test_a_relative_database_lies_under_the_working_directory(workplace):
    assert store.database_path("sqlite:///mlruns/mlflow.db") == workplace / "mlruns" / "mlflow.db"


@pytest.mark.parametrize("uri", ["./mlruns", "mlruns", "/data/mlruns", "file:///data/mlruns", "file:mlruns"])
def test_folders_of_files_are_refused(uri, monkeypatch):
    with pytest.raises(ConfigError, match="folder of files"):
        store.database_path(uri)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ConfigError, match="unset MLFLOW_TRACKING_URI"), store.prepared(store.default_uri()):
        pass


@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///:memory:"])
def test_databases_in_memory_are_refused(uri):
    with pytest.raises(ConfigError, match="in memory"):
        store.database_path(uri)


def test_a_new_database_is_current_and_lets_readers_and_writers_be(empty_database):
    assert store.state(empty_database) is State.CURRENT
    with closing(sqlite3.connect(empty_database)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert not list(empty_database.parent.glob(".*draft*"))


def test_a_database_half_made_by_a_killed_process_is_made_anew(tmp_path):
    (tmp_path / ".mlflow.db.draft").write_bytes(b"half")
    with store.prepared(f"sqlite:///{tmp_path}/mlflow.db"):
        assert store.state(tmp_path / "mlflow.db") is State.CURRENT


def test_the_log_mode_of_an_existing_database_is_set(database):
    execute(database, "PRAGMA journal_mode = delete")
    with store.prepared(f"sqlite:///{database}"), closing(sqlite3.connect(database)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def break_nothing(path):
    pass


def remove(path):
    path.unlink()


def empty(path):
    path.write_bytes(b"")


def older(path):
    execute(path, "UPDATE alembic_version SET version_num = '451aebb31d03'")


def unversioned(path):
    execute(path, "DELETE FROM alembic_version")


def newer(path):
    execute(path, "UPDATE alembic_version SET version_num = 'f00f00f00f00'")


def foreign(path):
    path.unlink()
    execute(path, "CREATE TABLE songs (title TEXT)")


def text(path):
    path.write_text("run,loss\n1,0.5\n" * 100)


def folder(path):
    path.unlink()
    path.mkdir()


STATES = [
    (break_nothing, State.CURRENT, None),
    (remove, State.MISSING, None),
    (empty, State.MISSING, None),
    (older, State.OLDER, r"older MLflow: cp \S+ \S+backup && \S+ -m mlflow db upgrade sqlite:///\S+mlflow.db"),
    (unversioned, State.OLDER, "mlflow db upgrade"),
    (newer, State.NEWER, "newer MLflow"),
    (foreign, State.FOREIGN, "another program"),
    (text, State.UNREADABLE, r"cannot be read as an SQLite database: mv \S+ \S+old"),
    (folder, State.UNREADABLE, "cannot be read"),
]


@pytest.mark.parametrize(("damage", "expected", "sentence"), STATES)
def test_the_state_of_a_database_and_what_mends_it(database, damage, expected, sentence):
    damage(database)
    assert store.state(database) is expected
    if sentence is None:
        assert store.problem(database, expected) is None
        return
    before = database.read_bytes() if database.is_file() else None
    with pytest.raises(ConfigError, match=sentence), store.prepared(f"sqlite:///{database}"):
        pass
    assert before == (database.read_bytes() if database.is_file() else None)


@pytest.mark.slow
def test_the_line_given_for_an_older_database_upgrades_it(database):
    from alembic import command
    from alembic.config import Config
    from mlflow.store.tracking.dbmodels.initial_models import Base
    from sqlalchemy import create_engine

    database.unlink()
    config = Config()
    config.set_main_option("script_location", str(Path(mlflow.__file__).parent / "store" / "db_migrations"))
    with create_engine(f"sqlite:///{database}").begin() as connection:
        Base.metadata.create_all(connection)
        config.attributes["connection"] = connection
        command.upgrade(config, "451aebb31d03")
    assert store.state(database) is State.OLDER
    _, mend = store.problem(database, State.OLDER)
    subprocess.run(mend, shell=True, check=True, capture_output=True)
    assert store.state(database) is State.CURRENT
    assert database.with_name("mlflow.db.backup").exists()


def test_a_write_lock_names_the_process_that_holds_it(database, hold):
    assert not store.write_locked(database)
    pid = hold("IMMEDIATE")
    assert store.write_locked(database, patience=0.1)
    assert store.state(database, patience=0.1) is State.CURRENT
    assert store.holders(database) == [pid]
    detail, mend = store.locked(database)
    assert f"process {pid} ({sys.executable}" in detail
    assert mend == f"kill {pid}"


def test_an_exclusive_lock_shuts_readers_out(database, hold):
    execute(database, "PRAGMA journal_mode = delete")
    pid = hold("EXCLUSIVE")
    assert store.state(database, patience=0.1) is State.LOCKED
    assert store.problem(database, State.LOCKED)[1] == f"kill {pid}"


def test_a_store_that_cannot_be_written_is_refused():
    with pytest.raises(ConfigError, match="/proc cannot be written"), store.prepared("sqlite:////proc/mlflow.db"):
        pass


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "mlruns").write_text("")
    with (
        pytest.raises(ConfigError, match="cannot be written"),
        store.prepared(f"sqlite:///{tmp_path}/mlruns/mlflow.db"),
    ):
        pass


def test_a_server_needs_no_preparation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with store.prepared("http://127.0.0.1:1"):
        assert os.listdir() == []


def test_a_path_with_spaces(tmp_path, empty_database):
    path = tmp_path / "my runs" / "mlflow.db"
    path.parent.mkdir()
    shutil.copy(empty_database, path)
    with store.prepared(f"sqlite:///{path}"):
        assert store.state(path) is State.CURRENT
    older(path)
    assert f"cp '{path}' " in store.problem(path, store.state(path))[1]
