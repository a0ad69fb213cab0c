"""The database file of a local MLflow store: where it is, what state it is in, and how it comes into being.

A store that several processes touch first at the same time breaks MLflow's migrations, and a process killed half-way leaves
a database that no migration can mend. So the database is made under a file lock, beside its place, and put there whole.
Databases that hold runs are never changed here: an outdated one is refused with the line that upgrades it.
"""

import logging
import os
import shlex
import socket
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from enum import Enum, auto
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from persona.errors import ConfigError

if TYPE_CHECKING:
    from mlflow import MlflowClient

LOCK_SECONDS = 120.0
LEASE_SECONDS = 30.0
LEASE_POLL_SECONDS = 0.1


class State(Enum):
    """What a database file is to this release of MLflow."""

    MISSING = auto()
    CURRENT = auto()
    OLDER = auto()
    NEWER = auto()
    FOREIGN = auto()
    UNREADABLE = auto()
    LOCKED = auto()


def default_uri() -> str:
    """The store in use: ``MLFLOW_TRACKING_URI``, or ``mlruns/mlflow.db`` under the working directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd() / 'mlruns' / 'mlflow.db'}"


def is_file_store(uri: str) -> bool:
    """Whether ``uri`` names a folder of files, the kind of store that MLflow has given up."""
    return urlsplit(uri).scheme in ("", "file") and not uri.startswith("databricks")


def database_path(uri: str) -> Path | None:
    """The absolute path of the SQLite database that ``uri`` names; None for a server or another database.

    Raises:
        ConfigError: ``uri`` names a folder of files, or a database in memory, which no other process could read.
    """
    if is_file_store(uri):
        mend = "unset MLFLOW_TRACKING_URI" if os.environ.get("MLFLOW_TRACKING_URI") == uri else "use sqlite:///PATH"
        raise ConfigError(
            f"the tracking URI {uri!r} names a folder of files, which MLflow no longer takes as a store: {mend}"
        )
    if not uri.startswith("sqlite:"):
        return None
    name = uri.partition(":///")[2].partition("?")[0]
    if name in ("", ":memory:"):
        raise ConfigError(f"the tracking URI {uri!r} keeps its runs in memory: name a file, as in sqlite:///mlflow.db")
    return Path(name).absolute()


def artifact_root(path: Path) -> Path:
    """The folder beside the database ``path`` that holds the files of its runs."""
    return path.parent / "artifacts"


def state(path: Path, patience: float = 5.0) -> State:
    """What the file at ``path`` is; waits up to ``patience`` seconds for whoever has it locked."""
    if not path.exists() or (path.is_file() and path.stat().st_size == 0):
        return State.MISSING
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=patience)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            rows = connection.execute("SELECT version_num FROM alembic_version") if "alembic_version" in tables else []
            found = {revision for (revision,) in rows}
    except sqlite3.DatabaseError as error:
        return State.LOCKED if "locked" in str(error) else State.UNREADABLE
    if not tables:
        return State.MISSING
    if not found:
        return State.OLDER if "experiments" in tables else State.FOREIGN
    head, known = _revisions()
    if found == {head}:
        return State.CURRENT
    return State.OLDER if found <= known else State.NEWER


@cache
def _revisions() -> tuple[str, set[str]]:
    """The schema revision of the installed MLflow, and all those it knows how to upgrade."""
    from alembic.script import ScriptDirectory

    spec = find_spec("mlflow")
    if spec is None or spec.origin is None:
        raise ConfigError("mlflow is not installed: run 'make setup'")
    scripts = ScriptDirectory(Path(spec.origin).parent / "store" / "db_migrations")
    return str(scripts.get_current_head()), {script.revision for script in scripts.walk_revisions()}


def problem(path: Path, found: State) -> tuple[str, str] | None:
    """Why the database at ``path`` cannot be used in the state ``found``, and the line that mends it; None if it can."""
    file = shlex.quote(str(path))
    away = f"mv {file} {file}.old"
    match found:
        case State.OLDER:
            upgrade = f"{shlex.quote(sys.executable)} -m mlflow db upgrade {shlex.quote(f'sqlite:///{path}')}"
            return f"{path} has the schema of an older MLflow", f"cp {file} {file}.backup && {upgrade}"
        case State.NEWER:
            return f"{path} was written by a newer MLflow than the installed one", away
        case State.FOREIGN:
            return f"{path} is the database of another program", "export MLFLOW_TRACKING_URI=sqlite:///other.db"
        case State.UNREADABLE:
            return f"{path} cannot be read as an SQLite database", away
        case State.LOCKED:
            return locked(path)
        case _:
            return None


def holders(path: Path) -> list[int]:
    """The processes that keep others from writing to the database at ``path``, as far as the system tells."""
    files = {str(file.stat().st_ino) for file in (path, Path(f"{path}-shm")) if file.exists()}
    try:
        locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    except OSError:
        return []
    # number, class, advisory or mandatory, mode, process, device:inode, first and last byte
    owners = {int(lock[4]) for lock in locks if lock[3] == "WRITE" and lock[5].rpartition(":")[2] in files}
    return sorted(owner for owner in owners if owner > 0)


def locked(path: Path) -> tuple[str, str]:
    """Who has locked the database at ``path``, and the line that ends it."""
    pids = holders(path)
    if not pids:
        return f"{path} is locked by another process", "wait until the other process has ended, or end it"
    names = ", ".join(f"{pid} ({_command(pid)})" for pid in pids)
    return f"{path} is locked by process {names}: let it finish or end it", f"kill {' '.join(map(str, pids))}"


def _command(pid: int) -> str:
    """The beginning of the command line of a process."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:  # gone meanwhile, or not ours to see
        return "unknown"
    return " ".join(words).strip()[:60]


def write_locked(path: Path, patience: float = 1.0) -> bool:
    """Whether another process has kept others from writing to the database at ``path`` for ``patience`` seconds."""
    try:
        with closing(sqlite3.connect(path, timeout=patience, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
    except sqlite3.OperationalError as error:
        return "locked" in str(error)
    return False


@contextmanager
def prepared(uri: str) -> Iterator[None]:
    """Hold the store's lock with its database in place: what is done inside, no other process of Persona does meanwhile.

    A server, or a database other than SQLite, takes care of itself: nothing is locked or prepared.

    Raises:
        ConfigError: the database is locked, outdated, damaged, of another program, or its folder cannot be written.
    """
    path = database_path(uri)
    if path is None:
        yield
        return
    lock = _acquire(path)
    try:
        _ensure(path)
        yield
    finally:
        lock.release()


@contextmanager
def exclusive(client: "MlflowClient", model: str) -> Iterator[None]:
    """Let one process at a time decide on a registered model, whichever store it is in.

    On this machine a lock of the file system does it, which ends with its process. A server has no locks, but the names of
    its models are unique: whoever makes the model ``<model>.lock`` may go on, and deletes it in the end.

    Raises:
        ConfigError: another process did not come to its end in time.
    """
    path = database_path(client.tracking_uri)
    if path is not None:
        lock = _acquire(path, f"{path.name}.{model}")
        try:
            yield
        finally:
            lock.release()
        return
    _lease(client, f"{model}.lock")
    try:
        yield
    finally:
        client.delete_registered_model(f"{model}.lock")


def _lease(client: "MlflowClient", name: str) -> None:
    """Make the registered model ``name``, as soon as there is none."""
    from mlflow.exceptions import MlflowException

    until = time.monotonic() + LEASE_SECONDS
    while True:
        try:
            client.create_registered_model(name, description=f"Held by process {os.getpid()} of {socket.gethostname()}")
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            if time.monotonic() > until:
                raise ConfigError(
                    f"somebody has held {name} for {LEASE_SECONDS:.0f} s: if that process is gone, delete the registered "
                    f"model {name} and try again"
                ) from None
            time.sleep(LEASE_POLL_SECONDS)
        else:
            return


def _acquire(path: Path, name: str = "") -> FileLock:
    """The held lock of the store whose database is ``path``, or of a part of it."""
    lock = FileLock(path.with_name(f".{name or path.name}.lock"), timeout=LOCK_SECONDS)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):  # some file systems let the lock wait for ever instead of failing
            lock.acquire()
    except Timeout:
        raise ConfigError(
            f"another process has been at work on {path} for {LOCK_SECONDS:.0f} s: see if it hangs"
        ) from None
    except OSError as error:
        raise ConfigError(f"the MLflow store {path.parent} cannot be written: {error.strerror or error}") from error
    return lock


def _ensure(path: Path) -> None:
    """Make the database at ``path`` if there is none, and refuse one that cannot be used. Needs the store's lock."""
    found = state(path)
    if trouble := problem(path, found):
        raise ConfigError(f"{trouble[0]}: {trouble[1]}")
    if found is State.MISSING:
        _create(path)
    _use_journal(path)


def _create(path: Path) -> None:
    """Put an empty, current database at ``path``, all at once."""
    from mlflow.db import upgrade

    draft = path.with_name(f".{path.name}.draft")
    for leftover in (draft, draft.with_name(f"{draft.name}-journal")):
        leftover.unlink(missing_ok=True)
    log = logging.getLogger("mlflow.store.db.utils")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        assert upgrade.callback is not None
        upgrade.callback(f"sqlite:///{draft}")
    finally:
        log.setLevel(level)
    os.replace(draft, path)


def _use_journal(path: Path) -> None:
    """Let readers and writers of the database at ``path`` no longer block each other; the file remembers it."""
    with closing(sqlite3.connect(path, timeout=1.0)) as connection, suppress(sqlite3.OperationalError):
        connection.execute("PRAGMA journal_mode = wal")  # in use just now: the next process will do it
