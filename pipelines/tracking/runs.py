"""Runs in MLflow: one experiment a task, runs that nest, and that tell how they ended. What they leave is in ``values``.

MLflow is imported where it is used: it costs seconds that ``persona --help`` should not. Every call to its database costs
tens of milliseconds, so values are logged in batches.

Example::

    tracking.connect("persona-recsys-movielens-small")
    with tracking.run("pretrain", tags={"protocol": "time"}):
        tracking.log_params({"host": {"name": "sasrec", "width": 64}})
        tracking.log_epochs(result.history)
        tracking.log_metrics_batch({"ndcg@10": 0.496})
"""

from __future__ import annotations

import logging
import os
import shlex
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from persona.errors import ConfigError
from pipelines.tracking.store import artifact_root, database_path, default_uri, prepared

if TYPE_CHECKING:
    from mlflow import ActiveRun, MlflowClient

LONGEST_VALUE = 500
NOTE_TAG = "mlflow.note.content"  # the description of an experiment
FAILURE_TAG, COMMAND_TAG, FOLDER_TAG, PROCESS_TAG = "failure", "command", "folder", "process"

logger = logging.getLogger(__name__)

# The command line of this process, set by ``cli.main``.
command_line: list[str] = []
# Of each continued run, the runs (name, id) that it had started and that were not continued yet.
_left: dict[str, list[tuple[str, str]]] = {}


@dataclass(frozen=True)
class Store:
    """A store that is ready for use, and the experiment in it."""

    uri: str
    experiment_id: str


def connect(experiment: str, about: str = "") -> Store:
    """Open the store, make it first if need be, and log to ``experiment`` from now on, described as ``about`` where it is not.

    A process started by ``mlflow run`` stays in the experiment that was chosen there, and inside a run its own.

    Raises:
        ConfigError: the store is a folder of files, cannot be opened, or has the experiment in its bin.
    """
    with _opened() as (uri, store):
        import mlflow

        active = mlflow.active_run()
        joined = active.info.run_id if active else os.environ.get("MLFLOW_RUN_ID")
        path = database_path(uri)
        chosen = store.get_run(joined).info.experiment_id if joined else _experiment(store, experiment, path, about)
        mlflow.set_experiment(experiment_id=chosen)
    return Store(uri, chosen)


def client() -> MlflowClient:
    """A client of the store in use, for commands that look at it and log nothing.

    Raises:
        ConfigError: as ``connect``.
    """
    with _opened() as (_, store):
        return store


@contextmanager
def _opened() -> Iterator[tuple[str, MlflowClient]]:
    """The store in use and a client of it, held by nobody else; what MLflow has against it becomes a sentence."""
    uri = default_uri()
    database_path(uri)  # refuses what is no store, before MLflow takes its seconds to be imported
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # a machine without git is no reason for a warning
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # which belongs to --json
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        with prepared(uri):
            _use(uri)
            yield uri, mlflow.MlflowClient()
    except MlflowException as error:
        sentence = str(error).partition("\n")[0]
        if "error code 401" in sentence:
            raise ConfigError(
                f"the MLflow server {uri} does not know you: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            ) from error
        raise ConfigError(f"the MLflow store {uri} cannot be used ({sentence}): run 'persona doctor'") from error


def _use(uri: str) -> None:
    """Point MLflow to ``uri``, without its side effect of changing what the default store is from now on."""
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    if before is None:
        os.environ.pop("MLFLOW_TRACKING_URI", None)


def _experiment(client: MlflowClient, name: str, database: Path | None, about: str) -> str:
    """The id of the experiment ``name``, made if there is none; it is told what it is about, if nothing was said before."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        location = (artifact_root(database) / name).as_uri() if database else None
        try:
            client.create_experiment(name, artifact_location=location)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # a server, on which another process was faster
                raise
        found = client.get_experiment_by_name(name)
    assert found is not None
    if found.lifecycle_stage != "active":
        raise ConfigError(
            f"the experiment {name!r} was deleted: bring it back with 'mlflow experiments restore --experiment-id "
            f"{found.experiment_id}', or choose another name"
        )
    if about and NOTE_TAG not in found.tags:
        client.set_experiment_tag(found.experiment_id, NOTE_TAG, about)
    return str(found.experiment_id)


@contextmanager
def run(
    name: str, *, parent: str | None = None, run_id: str | None = None, tags: Mapping[str, str] | None = None
) -> Iterator[ActiveRun]:
    """A run that tells how it ended: FINISHED, FAILED with the reason in the tag ``failure``, or KILLED by Ctrl-C.

    Args:
        name: shown in the UI; a run that is joined or continued keeps its own.
        parent: the run this one is a part of; without it, the active run, if there is one. A process started by
            ``mlflow run`` joins the run that was made for it instead.
        run_id: continue this run, which was killed or failed; so do the runs nested in it.
        tags: set besides the git commit.
    """
    import mlflow

    outer = mlflow.active_run()
    existing = run_id or os.environ.get("MLFLOW_RUN_ID") or _take_left(outer, name)
    active = mlflow.start_run(
        run_id=existing,
        run_name=None if existing else name,
        nested=outer is not None,
        parent_run_id=None if existing else parent,
        tags={**commit_tags(), **(origin_tags() if outer is None else {}), **(tags or {})},
    )
    if existing:
        if existing == os.environ.get("MLFLOW_RUN_ID"):
            del os.environ["MLFLOW_RUN_ID"]  # or the runs nested in this one would join it, too
        _continue(active)
    try:
        yield active
    except BaseException as error:
        _close_failed(active.info.run_id, error)
        raise
    mlflow.end_run("FINISHED")


def origin_tags() -> dict[str, str]:
    """How this process was started, as ``persona resume`` needs it; nothing where it was not by the command line."""
    if not command_line:
        return {}
    return {COMMAND_TAG: shlex.join(command_line), FOLDER_TAG: str(Path.cwd()), PROCESS_TAG: process_name()}


def process_name(pid: int | None = None) -> str:
    """Host, number and start of a process, this one by default: no other has the same three, even after a reboot.

    The start is empty where the process is gone, or the system does not tell.
    """
    number = os.getpid() if pid is None else pid
    try:
        started = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        started = ""
    return f"{socket.gethostname()} {number} {started}"


def _continue(active: ActiveRun) -> None:
    """A run that goes on has not failed yet, and the steps that it had started go on in their runs."""
    import mlflow

    client, run_id = mlflow.MlflowClient(), active.info.run_id
    if FAILURE_TAG in active.data.tags:
        client.delete_tag(run_id, FAILURE_TAG)
    children = client.search_runs(
        [active.info.experiment_id], f"tags.mlflow.parentRunId = '{run_id}'", order_by=["attributes.start_time ASC"]
    )
    _left[run_id] = [(child.info.run_name, child.info.run_id) for child in children]


def _take_left(outer: ActiveRun | None, name: str) -> str | None:
    """The run ``name`` that ``outer``, if it is continued, had started before; once each."""
    left = _left.get(outer.info.run_id, []) if outer else []
    for entry in left:
        if entry[0] == name:
            left.remove(entry)
            return entry[1]
    return None


def note_failure(sentence: str) -> None:
    """Tell the run that ``mlflow run`` made for this process why it ended before it could join that run."""
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if not run_id:
        return
    try:
        client().set_tag(run_id, FAILURE_TAG, cut(sentence))
    except ConfigError as error:
        logger.warning("the run %s could not be told why it failed: %s", run_id, error)


def _close_failed(run_id: str, error: BaseException) -> None:
    """End the run because of ``error``, which must reach the user even where the store no longer answers."""
    import mlflow
    from mlflow.exceptions import MlflowException

    if isinstance(error, SystemExit) and not error.code:
        mlflow.end_run("FINISHED")
        return
    try:
        if not isinstance(error, KeyboardInterrupt):
            mlflow.MlflowClient().set_tag(run_id, FAILURE_TAG, cut(f"{type(error).__name__}: {error}"))
        mlflow.end_run("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
    except MlflowException as second:
        logger.warning("the run %s could not be closed: %s", run_id, second)


def commit_tags(here: Path = Path(__file__)) -> dict[str, str]:
    """The git commit of the file ``here``, and whether any was changed since; nothing outside a checkout or without git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # installed into somebody else's checkout: not our commit
        changed = git("status", "--porcelain", "--untracked-files=no")
        return {"mlflow.source.git.commit": git("rev-parse", "HEAD"), "git.changed": str(bool(changed)).lower()}
    except (OSError, subprocess.SubprocessError):
        return {}


def is_continued(run_id: str) -> bool:
    """Whether a run was started before, so that it may have what is about to be logged."""
    return run_id in _left


def cut(text: str) -> str:
    """``text``, at most as long as MLflow keeps it; what is cut says so."""
    if len(text) <= LONGEST_VALUE:
        return text
    notice = f" ... (cut, {len(text)} characters)"
    return text[: LONGEST_VALUE - len(notice)] + notice
