"""Classifiers in MLflow's model registry."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.tracking.registry import CANDIDATE, Registered, describe, hush, of_run, publish
from vision.serving.release import Release

MODEL = "persona-vision"
EXAMPLE_IMAGES = 5
REQUIREMENTS = ("onnxruntime", "safetensors", "numpy", "pandas", "polars", "pillow")


def register(bundle: Path, released: Release, tags: Mapping[str, Any], metrics: Mapping[str, float]) -> Registered:
    """Log ``bundle`` as a model of the active run, register it, once a run, and call it the candidate."""
    import mlflow

    hush()
    description = _description(released, metrics)
    if (known := of_run(MODEL)) is not None:
        return describe(known, description, [CANDIDATE])
    root = Path(__file__).parents[2]
    channels, height, width = released.image_shape
    example = np.zeros((EXAMPLE_IMAGES, height, width, channels), np.uint8)
    logged = mlflow.pyfunc.log_model(
        name="classifier",
        python_model=str(Path(__file__).with_name("pyfunc_classifier.py")),
        artifacts={"bundle": str(bundle)},
        code_paths=[str(root / "persona"), str(root / "vision")],
        signature=_signature(released.image_shape),
        input_example=example,
        pip_requirements=[f"{name}=={version(name)}" for name in REQUIREMENTS],
    )
    return publish(MODEL, logged.model_id, tags, metrics, description, [CANDIDATE])


def _signature(image_shape: tuple[int, int, int]) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec

    channels, height, width = image_shape
    return ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, height, width, channels))]),
        outputs=Schema(
            [
                ColSpec(DataType.string, "class"),
                ColSpec(DataType.double, "probability"),
                ColSpec(DataType.string, "level"),
                ColSpec(DataType.string, "fallback"),
            ]
        ),
        params=ParamSchema([ParamSpec("level", DataType.string, "edit")]),
    )


def _description(released: Release, metrics: Mapping[str, float]) -> str:
    host, bank = released.model.host.config, released.bank
    channels, height, width = released.image_shape
    lines = [
        f"{host.kind} host over {len(released.class_names)} classes, images of {height} x {width} pixels and {channels} "
        f"channel(s), with {'no prototypes' if bank is None else f'{len(bank)} prototypes'}; an edit changes: {host.adaptive}.",
        *(f"{name}: {value:.4f}" for name, value in sorted(metrics.items())),
    ]
    return "\n\n".join(lines)
