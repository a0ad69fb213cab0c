"""Commands under torchrun: every process does the work, rank 0 speaks, and a restarted run goes on in the MLflow run it had."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from persona.errors import ConfigError, PersonaError
from persona.training.ranks import Ranks
from pipelines import tracking

LAUNCHER_TAG = "launcher"


@contextmanager
def joined() -> Iterator[Ranks]:
    """This process among those that torchrun started, if it did.

    What a user can mend, all ranks meet alike, for it lies in settings and data: rank 0 tells it, the others just end.

    Raises:
        ConfigError: the processes do not find each other.
    """
    from recsys.distributed import group

    with group.joined() as ranks:
        try:
            yield ranks
        except PersonaError as error:
            if ranks.main:
                raise
            raise SystemExit(error.exit_code) from error


def refuse() -> None:
    """For commands that one process does.

    Raises:
        ConfigError: torchrun started several.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ:
        return
    if os.environ["RANK"] != "0":
        raise SystemExit(ConfigError.exit_code)
    raise ConfigError(
        "only `recsys pretrain` and `recsys edit` run on several processes: start this command without torchrun"
    )


def tags() -> dict[str, str]:
    """By what a restarted process finds its MLflow run."""
    return {LAUNCHER_TAG: _launcher()} if "TORCHELASTIC_RESTART_COUNT" in os.environ else {}


def run_before(step: str, experiment_id: str) -> str | None:
    """The run of ``step`` that this process had before torchrun restarted it."""
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) == 0 or "MLFLOW_RUN_ID" in os.environ:
        return None
    found = tracking.client().search_runs(
        [experiment_id],
        f"tags.{LAUNCHER_TAG} = '{_launcher()}' and tags.step = '{step}'",
        max_results=1,
        order_by=["attributes.start_time DESC"],
    )
    return found[0].info.run_id if found else None


def _launcher() -> str:
    return tracking.process_name(os.getppid())
