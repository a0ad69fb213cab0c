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

if TYPE_CHECKING:
    from persona.task import Interface, Task

CANDIDATE = "candidate"


@dataclass(frozen=True)
class Registered:
    """A version in the registry."""

    name: str
    version: int
    uri: str


def register(
    task: Task,
    bundle: Path,
    release: Any,
    tags: Mapping[str, Any],
    metrics: Mapping[str, float],
    remarks: Iterable[str] = (),
    candidate: bool = True,
    *,
    data: str = "",
) -> Registered:
    """Log ``bundle`` as a model of the active run, register it, once a run, and call it the candidate unless it may not be.

    Args:
        task: of the model.
        bundle: the folder of the ``release``.
        release: what was saved there.
        tags: what comparison pages show as text.
        metrics: what they show as numbers.
        remarks: paragraphs of the description.
        candidate: whether the alias goes to it.
        data: what the data is called that the model learned from.
    """
    import mlflow

    hush()
    called, model = task.interface, task.registered(data)
    values = [f"{name}: {value:.4f}" for name, value in sorted(metrics.items())]
    description = "\n\n".join([called.describe(release, tags), *remarks, *values])
    aliases = [CANDIDATE] if candidate else []
    if (known := of_run(model)) is not None:
        return describe(known, description, aliases)
    root = Path(__file__).parents[2]
    example = called.example(release)
    logged = mlflow.pyfunc.log_model(
        name=called.artifact,
        python_model=str(Path(__file__).with_name(f"pyfunc_{called.artifact}.py")),
        artifacts={"bundle": str(bundle)},
        code_paths=[str(root / "persona"), str(root / task.name)],
        signature=signature(called, example, release.info),
        input_example=example,
        pip_requirements=[f"{name}=={version(name)}" for name in called.requirements],
    )
    return publish(model, logged.model_id, tags, metrics, description, aliases)


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
    _introduce(model)
    return describe(Registered(model, number, f"models:/{model}/{number}"), description, aliases)


def describe(registered: Registered, description: str, aliases: Iterable[str]) -> Registered:
    """Give a version its description and aliases."""
    import mlflow

    client = mlflow.MlflowClient()
    client.update_model_version(registered.name, str(registered.version), description=description)
    for alias in aliases:
        client.set_registered_model_alias(registered.name, alias, str(registered.version))
    return registered


def _introduce(model: str) -> None:
    """Say what a registered model is, where nobody has said it yet."""
    import mlflow

    client = mlflow.MlflowClient()
    if not client.get_registered_model(model).description:
        what = "prototype bank" if model.endswith("-prototypes") else "bundle that `persona serve` answers with"
        text = (
            f"Each version is a {what}. `candidate` is the latest that is worth being promoted, `champion` what is served: "
            f"`persona promote {model}@candidate` moves it, `persona compare {model}@champion {model}@candidate` shows why."
        )
        client.update_registered_model(model, description=text)


def of_run(model: str) -> Registered | None:
    """The version of a registered model that the active run has made already, as one does that was killed and goes on."""
    import mlflow

    active = mlflow.active_run()
    assert active is not None, "a version is registered inside a run"
    for entry in mlflow.MlflowClient().search_model_versions(f"name = '{model}' and run_id = '{active.info.run_id}'"):
        return Registered(model, int(entry.version), f"models:/{model}/{entry.version}")
    return None


def download(uri: str, into: Path | None = None) -> Path:
    """The bundle folder of a registered model, for example ``models:/persona-recsys-movielens-small@candidate``.

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
    raise DataError(
        f"{uri} holds no bundle of this project: name a version of a released model, as `persona ui` shows them"
    )


def hush() -> None:
    """Keep MLflow from reporting its own steps, and from warning of a missing pip, which nothing here needs."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)
    logging.getLogger("mlflow.utils.environment").setLevel(logging.ERROR)


def signature(called: Interface, example: Any, info: Mapping[str, Any]) -> Any:
    """What a registered model reads and answers, and its parameters, as MLflow wants to know it."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec

    parameters = {name: info.get(name, usual) for name, usual in called.parameters.items()}
    inputs: list[Any] = [ColSpec(_type(kind), name) for name, kind in called.inputs.items()]
    return ModelSignature(
        inputs=Schema(inputs or [TensorSpec(example.dtype, (-1, *example.shape[1:]))]),
        outputs=Schema([ColSpec(_type(kind), name) for name, kind in called.outputs.items()]),
        params=ParamSchema([ParamSpec(name, _type(type(usual)), usual) for name, usual in parameters.items()]),
    )


def _type(kind: Any) -> Any:
    """MLflow's name of a type, or of a list of one."""
    from mlflow.types import DataType
    from mlflow.types.schema import Array

    if isinstance(kind, list):
        return Array(_type(kind[0]))
    return {str: DataType.string, float: DataType.double, int: DataType.long, bool: DataType.boolean}[kind]
