"""What a run leaves in MLflow: parameters, metrics per epoch, data sets, tables, files, figures.

Every call to MLflow's database costs tens of milliseconds, so values are logged in batches.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from persona.errors import ConfigError
from pipelines.console import to_json
from pipelines.tracking.runs import cut, is_continued

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient
    from mlflow.data.dataset import Dataset

METRICS_PER_BATCH = 1000
PARAMS_PER_BATCH = 100
DATASET_ATTEMPTS = 5


def _active() -> tuple[MlflowClient, str]:
    """A client and the id of the active run, which MLflow would silently start if there was none."""
    import mlflow

    active = mlflow.active_run()
    if active is None:
        raise RuntimeError("there is no active run: log inside `with tracking.run(...)`")
    return mlflow.MlflowClient(), active.info.run_id


def log_params(params: Mapping[str, Any]) -> None:
    """Log nested settings as ``outer.inner``; values longer than 500 characters are cut, and say so.

    Raises:
        ConfigError: the run, which is being continued, was started with another value.
    """
    from mlflow.entities import Param

    client, run_id = _active()
    wanted = {_key(key): cut(str(value)) for key, value in _flatten(params)}
    known = client.get_run(run_id).data.params
    for key, value in wanted.items():
        if not _same(known.get(key, value), value):
            raise ConfigError(
                f"the run was started with {key} = {known[key]}, not {value}: start a new one to change it"
            )
    new = [Param(key, value) for key, value in wanted.items() if key not in known]
    for batch in _batches(new, PARAMS_PER_BATCH):
        client.log_batch(run_id, params=batch)


def _same(one: str, other: str) -> bool:
    """Whether two spellings are one value: ``mlflow run -P tau=1`` logs 1 before the settings log 1.0."""
    try:
        return one == other or float(one) == float(other)
    except ValueError:
        return False


def log_metrics_batch(metrics: Mapping[str, float], step: int = 0) -> None:
    """Log all ``metrics`` at ``step`` in one go; names are changed where MLflow does not allow them: ``ndcg@10``, ``ndcg_10``.

    What a continued run has already is left out, so that no value is there twice.
    """
    from mlflow.entities import Metric

    client, run_id = _active()
    now = time.time_ns() // 1_000_000
    values = {_key(name): float(value) for name, value in metrics.items()}
    if is_continued(run_id):
        known = client.get_run(run_id).data.metrics
        values = {
            key: value
            for key, value in values.items()
            if key not in known
            or all((m.step, m.value) != (step, value) for m in client.get_metric_history(run_id, key))
        }
    for batch in _batches([Metric(key, value, now, step) for key, value in values.items()], METRICS_PER_BATCH):
        client.log_batch(run_id, metrics=batch)


def log_epochs(history: Sequence[Mapping[str, float]], prefix: str = "") -> None:
    """Log the metrics of many epochs in one go, at the step ``epoch`` of each row.

    Epochs at or before the last one that the run has of a metric are left out, so that a whole history can be logged
    again and again, also by a run that is continued.

    Args:
        history: a row an epoch; ``epoch`` says which, the rest are its metrics.
        prefix: put before every name, for example ``host/``.
    """
    from mlflow.entities import Metric

    client, run_id = _active()
    rows = [
        (_key(f"{prefix}{name}"), float(value), int(row["epoch"]))
        for row in history
        for name, value in row.items()
        if name != "epoch"
    ]
    last = _last_steps(client, run_id, {key for key, _, _ in rows})
    now = time.time_ns() // 1_000_000
    new = [Metric(key, value, now, step) for key, value, step in rows if step > last.get(key, -math.inf)]
    for batch in _batches(new, METRICS_PER_BATCH):
        client.log_batch(run_id, metrics=batch)


def _last_steps(client: MlflowClient, run_id: str, keys: set[str]) -> dict[str, int]:
    """The last step that the run has of each of its metrics ``keys``."""
    logged = keys & client.get_run(run_id).data.metrics.keys()
    return {key: max(metric.step for metric in client.get_metric_history(run_id, key)) for key in logged}


def log_dataset(dataset: Dataset, context: str = "training") -> None:
    """Show a data set beside the active run, and beside the one that this is a part of.

    MLflow looks for the data set and then inserts it, so that of processes that bring the same one at the same time all but
    the first fail; they find it when they look again.
    """
    from mlflow.entities import DatasetInput, InputTag
    from mlflow.exceptions import MlflowException
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_PARENT_RUN_ID

    client, active = _active()
    parent = client.get_run(active).data.tags.get(MLFLOW_PARENT_RUN_ID)
    runs = [active, *([parent] if parent else [])]
    shown = DatasetInput(dataset._to_mlflow_entity(), [InputTag(MLFLOW_DATASET_CONTEXT, context)])
    for left in reversed(range(DATASET_ATTEMPTS)):
        try:
            for run_id in runs:
                client.log_inputs(run_id, datasets=[shown])
        except MlflowException as error:
            if not left or "unique" not in str(error).lower():
                raise
            time.sleep(0.05)
        else:
            return


def log_json(value: Any, path: str) -> None:
    """Store ``value`` as a JSON file at ``path`` among the run's artifacts; numbers that are not finite become null."""
    client, run_id = _active()
    client.log_text(run_id, to_json(value), path)


def log_table(rows: Sequence[Mapping[str, Any]], path: str) -> None:
    """Store ``rows`` as a table at ``path`` (.json), which MLflow's artifact comparison shows side by side over runs.

    A table that is there already is replaced, where MLflow's own function would append to it.
    """
    import pandas as pd
    from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS

    client, run_id = _active()
    client.log_text(run_id, pd.DataFrame(list(rows)).to_json(orient="split", index=False), path)
    logged = json.loads(client.get_run(run_id).data.tags.get(MLFLOW_LOGGED_ARTIFACTS, "[]"))
    if (entry := {"path": path, "type": "table"}) not in logged:
        client.set_tag(run_id, MLFLOW_LOGGED_ARTIFACTS, json.dumps([*logged, entry]))


def log_figure(figure: Figure, path: str) -> None:
    """Store a figure at ``path``, whose ending (.png, .svg, .html) says how."""
    client, run_id = _active()
    client.log_figure(run_id, figure, path)


def _flatten(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in params.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _key(name: str) -> str:
    """``name`` with what MLflow does not allow in names replaced by an underscore."""
    return re.sub(r"[^/\w.\- :]", "_", name)


def _batches(items: Sequence[Any], size: int) -> Iterable[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))
