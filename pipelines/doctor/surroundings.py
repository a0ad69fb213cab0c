"""Whether the MLflow store, the disk, the port and the threads will do."""

import os
import shlex
import shutil
import socket
import sqlite3
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from persona.errors import ConfigError
from pipelines.doctor.finding import Finding
from pipelines.tracking.store import (
    State,
    database_path,
    default_uri,
    is_file_store,
    locked,
    problem,
    state,
    write_locked,
)

HOST = "127.0.0.1"
LEAST_SPACE = 200_000_000
GOOD_SPACE = 2_000_000_000


def check_uri() -> Finding:
    """The tracking URI has to name a database or a server, not a folder of files."""
    uri = default_uri()
    try:
        database_path(uri)
    except ConfigError as error:
        return Finding("tracking URI", "fail", str(error), "unset MLFLOW_TRACKING_URI")
    if uri.startswith(("http://", "https://")):
        return _server(uri)
    return Finding("tracking URI", "ok", uri)


def _server(uri: str) -> Finding:
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=2):
            return Finding("tracking URI", "ok", f"the server {uri} answers")
    except urllib.error.HTTPError as error:
        return Finding(
            "tracking URI", "warn", f"the server {uri} answers with status {error.code}", f"curl -i {uri}/health"
        )
    except (OSError, ValueError) as error:
        detail = f"the tracking server {uri} does not answer ({error})"
        return Finding("tracking URI", "fail", detail, "unset MLFLOW_TRACKING_URI")


def check_database() -> Finding:
    """The local database has to be readable, of the installed MLflow's schema, and not locked."""
    path = _database()
    if path is None:
        return Finding("database", "ok", "no database on this machine")
    found = state(path, patience=1.0)
    trouble = problem(path, found)
    if trouble is None and found is State.CURRENT:
        try:
            trouble = locked(path) if write_locked(path) else None
        except sqlite3.Error as error:
            trouble = f"{path} cannot be written ({error})", f"ls -l {shlex.quote(str(path))}"
    if trouble:
        return Finding("database", "fail", *trouble)
    return Finding(
        "database", "ok", f"{path} {'will be made by the first run' if found is State.MISSING else 'is in order'}"
    )


def check_folder(least: int = LEAST_SPACE, good: int = GOOD_SPACE) -> Finding:
    """The folder of the store has to be writable, with some bytes to spare: ``least`` to work, ``good`` to work well."""
    path = _database()
    if path is None:
        return Finding("store folder", "ok", "no store on this machine")
    folder = path.parent
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            free = shutil.disk_usage(there).free
    except OSError as error:
        mend = f"export MLFLOW_TRACKING_URI=sqlite:///{Path.home() / 'mlflow.db'}"
        return Finding("store folder", "fail", f"{there} cannot be written ({error.strerror})", mend)
    if free < good:
        detail = f"{free / 1e9:.1f} GB are free at {there}"
        return Finding("store folder", "fail" if free < least else "warn", detail, f"du -xh {there} | sort -h | tail")
    return Finding("store folder", "ok", f"{folder}, {free / 1e9:.0f} GB free")


def _database() -> Path | None:
    uri = default_uri()
    return None if is_file_store(uri) or uri.startswith("sqlite:///:memory:") else database_path(uri)


def port_taken(port: int) -> bool:
    """Whether a program of this machine listens on ``port``."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return True
    return False


def free_port(after: int) -> int:
    """The first free port from ``after`` on."""
    return next(port for port in range(after, 65536) if not port_taken(port))


def check_port(port: int) -> Finding:
    """The port of the MLflow UI has to be free, unless it is the MLflow UI that has it."""
    if not port_taken(port):
        return Finding("port", "ok", f"port {port} is free")
    if _server(f"http://{HOST}:{port}").status == "ok":
        return Finding("port", "ok", f"port {port} is served by MLflow")
    return Finding(
        "port",
        "warn",
        f"port {port} is taken by another program",
        f"persona ui --port {free_port(min(port + 1, 65535))}",
    )


def check_threads(environment: Mapping[str, str] = os.environ) -> Finding:
    """Threads that spin, or more of them than processors, make torch up to 100 times slower."""
    policy = environment.get("OMP_WAIT_POLICY", "")
    if policy.upper() != "PASSIVE":
        detail = f"OMP_WAIT_POLICY is {policy or 'not set'}: any other busy process slows torch down 100 times"
        return Finding("threads", "warn", detail, "export OMP_WAIT_POLICY=PASSIVE")
    threads, processors = environment.get("OMP_NUM_THREADS", "1"), len(os.sched_getaffinity(0))
    if not threads.isdigit() or not 1 <= int(threads) <= processors:
        detail = f"OMP_NUM_THREADS is {threads}, this machine has {processors} processors"
        return Finding("threads", "warn", detail, "export OMP_NUM_THREADS=1")
    return Finding("threads", "ok", f"{threads} OpenMP threads a process, waiting passively")
