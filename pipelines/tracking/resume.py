"""A run that was killed or failed goes on where it stopped: the same command, in the same folder, in the same runs.

The steps keep their checkpoints and results in the workspace, so nothing is trained twice; the runs are continued, so that no
metric is logged twice (see ``tracking.run``).
"""

from __future__ import annotations

import os
import shlex
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from persona.errors import ConfigError, DataError
from pipelines import tracking
from pipelines.tracking import store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

PARENT_TAG = "mlflow.parentRunId"


@dataclass(frozen=True)
class Plan:
    """What has to be done to go on with a run.

    Attributes:
        run_id: the outermost run, which the command joins.
        name: of that run.
        status: it had, ``RUNNING`` if its process was killed.
        command: arguments of ``persona``.
        folder: where to.
    """

    run_id: str
    name: str
    status: str
    command: list[str]
    folder: Path


def plan(client: MlflowClient, run_id: str) -> Plan:
    """See whether and how a run can go on; a run that is part of another one means that one.

    Raises:
        DataError: there is no such run.
        ConfigError: it is finished or still running, it does not say how it was started, or its folder is gone.
    """
    run = _outermost(client, run_id)
    tags, name = run.data.tags, f"the run {run.info.run_name} ({run.info.run_id})"
    if run.info.status == "FINISHED":
        raise ConfigError(f"{name} is finished: there is nothing to go on with")
    if run.info.status in ("RUNNING", "SCHEDULED") and (process := _alive(tags.get(tracking.PROCESS_TAG, ""))):
        raise ConfigError(f"{name} is still at work in process {process}: let it finish, or end it first")
    if tracking.COMMAND_TAG not in tags:
        raise ConfigError(f"{name} does not say which command it was: it was not started by the command persona")
    folder = Path(tags[tracking.FOLDER_TAG])
    if not folder.is_dir():
        raise ConfigError(f"{name} worked in {folder}, which is not on this machine: go on where that folder is")
    return Plan(run.info.run_id, run.info.run_name, run.info.status, shlex.split(tags[tracking.COMMAND_TAG]), folder)


def environment(found: Plan) -> dict[str, str]:
    """The variables with which the command of a plan joins its run in the store in use."""
    return {**os.environ, "MLFLOW_RUN_ID": found.run_id, "MLFLOW_TRACKING_URI": store.default_uri()}


def _outermost(client: MlflowClient, run_id: str) -> Run:
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
        while PARENT_TAG in run.data.tags:
            run = client.get_run(run.data.tags[PARENT_TAG])
    except MlflowException as error:
        raise DataError(
            f"there is no run {run_id!r} in {store.default_uri()}: copy its id from the MLflow UI"
        ) from error
    return run


def _alive(process: str) -> int | None:
    """The number of a process of this machine that is still at work; one of another machine cannot be asked."""
    host, number, started = [*process.split(" "), "", "", ""][:3]
    if host != socket.gethostname() or not number.isdigit() or not started:
        return None
    return int(number) if tracking.process_name(int(number)) == process else None


def command_of(found: Plan, python: str) -> list[str]:
    """The command of a plan as the system takes it."""
    return [python, "-m", "pipelines.cli", *found.command]
