"""Bundles in MLflow's model registry: registered from code, with signature, input example, tags and the alias ``candidate``."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona.errors import DataError

if TYPE_CHECKING:  # a service downloads bundles without torch
    from recsys.serving.release import Release

MODEL = "persona-recsys"
CANDIDATE = "candidate"
EXAMPLE_LENGTH = 5
# What a server of the model needs; the code itself travels with it.
REQUIREMENTS = ("onnxruntime", "safetensors", "polars", "numpy", "pandas")


@dataclass(frozen=True)
class Registered:
    """A version in the registry."""

    name: str
    version: int
    uri: str


def register(bundle: Path, released: Release, tags: dict[str, Any], metrics: dict[str, float]) -> Registered:
    """Log ``bundle`` as a model of the active run, register it, once a run, and call it the candidate."""
    import mlflow
    import pandas as pd

    hush()
    description = _description(released, tags, metrics)
    if (known := of_run(MODEL)) is not None:
        return describe(known, description, [CANDIDATE])
    root = Path(__file__).parents[2]
    example = pd.DataFrame({"history": [released.item_ids[:EXAMPLE_LENGTH]]})
    logged = mlflow.pyfunc.log_model(
        name="recommender",
        python_model=str(Path(__file__).with_name("pyfunc_recommender.py")),
        artifacts={"bundle": str(bundle)},
        code_paths=[str(root / "persona"), str(root / "recsys")],
        signature=signature(),
        input_example=example,
        pip_requirements=[f"{name}=={version(name)}" for name in REQUIREMENTS],
    )
    return publish(MODEL, logged.model_id, tags, metrics, description, [CANDIDATE])


def publish(
    model: str,
    logged_model: str,
    tags: Mapping[str, Any],
    metrics: Mapping[str, float],
    description: str,
    aliases: Iterable[str],
) -> Registered:
    """Make a logged model the next version of a registered one. Its tags come with it, so that nobody sees it without them.

    Args:
        model: name of the registered model.
        logged_model: id of the logged one.
        tags: what comparison pages show as text.
        metrics: what they show as numbers.
        description: for people.
        aliases: that point to the version from now on.
    """
    import mlflow

    if metrics:
        mlflow.log_metrics(dict(metrics), model_id=logged_model)
    text = {key: str(value) for key, value in tags.items()}
    number = int(mlflow.register_model(f"models:/{logged_model}", model, tags=text).version)
    return describe(Registered(model, number, f"models:/{model}/{number}"), description, aliases)


def describe(registered: Registered, description: str, aliases: Iterable[str]) -> Registered:
    """Give a version its description and aliases."""
    import mlflow

    client = mlflow.MlflowClient()
    client.update_model_version(registered.name, str(registered.version), description=description)
    for alias in aliases:
        client.set_registered_model_alias(registered.name, alias, str(registered.version))
    return registered


def of_run(model: str) -> Registered | None:
    """The version of a registered model that the active run has made already, as one does that was killed and goes on."""
    import mlflow

    active = mlflow.active_run()
    assert active is not None, "a version is registered inside a run"
    for entry in mlflow.MlflowClient().search_model_versions(f"name = '{model}' and run_id = '{active.info.run_id}'"):
        return Registered(model, int(entry.version), f"models:/{model}/{entry.version}")
    return None


def download(uri: str, into: Path | None = None) -> Path:
    """The bundle folder of a registered model, for example ``models:/persona-recsys@candidate``.

    Args:
        uri: of the model.
        into: where its files are put; by default where MLflow sees fit.

    Raises:
        DataError: there is no such model, or it holds no bundle.
    """
    hush()
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        folder = Path(mlflow.artifacts.download_artifacts(uri, dst_path=None if into is None else str(into)))
    except MlflowException as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{uri} cannot be fetched ({reason}): see `persona ui` for the registered models") from error
    for header in folder.rglob("bundle.json"):
        return header.parent
    raise DataError(f"{uri} holds no bundle of this project: name a version of {MODEL}")


def hush() -> None:
    """Keep MLflow from reporting its own steps, and from warning of a missing pip, which nothing here needs."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)
    logging.getLogger("mlflow.utils.environment").setLevel(logging.ERROR)


def signature() -> Any:
    """What the registered recommender reads and answers, and its parameters, as MLflow wants to know it."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Array

    strings = Array(DataType.string)
    return ModelSignature(
        inputs=Schema([ColSpec(strings, "history")]),
        outputs=Schema(
            [
                ColSpec(strings, "items"),
                ColSpec(Array(DataType.double), "scores"),
                ColSpec(strings, "titles"),
                ColSpec(DataType.string, "level"),
                ColSpec(DataType.string, "fallback"),
            ]
        ),
        params=ParamSchema([ParamSpec("k", DataType.long, 10), ParamSpec("level", DataType.string, "edit")]),
    )


def _description(released: Release, tags: dict[str, Any], metrics: dict[str, float]) -> str:
    host = released.model.host.config
    lines = [
        f"{host.kind} host ({host.variant}, d = {host.dim}, T = {host.max_length}) over {len(released.item_ids):,} items, "
        f"with an editor trained in mode {tags.get('mode', '?')}.",
        *(f"{name}: {value:.4f}" for name, value in sorted(metrics.items())),
    ]
    return "\n\n".join(lines)
