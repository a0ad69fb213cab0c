"""The task of classifying images under device shift: what the steps of every pipeline call, for devices and their streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona.task import Interface, Task, at_home, later
from vision.config import VisionConfig

if TYPE_CHECKING:  # the command line reads a task without waiting for torch
    from persona.comparison import Measured
    from persona.prototypes import PrototypeBank
    from persona.training.objective import FitResult
    from vision.evaluation import Evaluation
    from vision.methods import Problem, Trained
    from vision.personalised import Personalised
    from vision.serving.release import Release

# Images of an example of what the registered model reads.
EXAMPLE_IMAGES = 5


def _train_host(problem: Problem) -> tuple[str, FitResult]:
    problem.base_host()
    return problem.trainings.results.popitem()


def _model(trained: Trained) -> Personalised:
    from persona.methods import editor_of
    from vision.methods import personalised

    model = personalised(trained)
    editor_of(model)
    return model


def _levels(
    problem: Problem, evaluation: Evaluation, model: Personalised, bank: PrototypeBank, levels: Sequence[str]
) -> dict[str, Measured]:
    from persona.comparison import Measured
    from vision.objectives import batched_logits
    from vision.prototypes import at_level

    features, found = problem.features_of(model.host), {}
    for level in levels:
        positions, logits = batched_logits(at_level(model, bank, level), evaluation, features)
        e = evaluation.judge(logits, positions)
        found[level] = Measured(level, e.summary, e.per_device, e.devices)
    return found


def _release(problem: Problem, model: Personalised, info: Mapping[str, Any]) -> Release:
    from persona.torch_device import on_cpu
    from vision.serving.release import Release

    return Release(on_cpu(model), problem.data.class_names, problem.data.image_shape, info)


def _save(release: Release, folder: Path) -> None:
    release.compile().save(folder)


def _example(release: Release) -> Any:
    import numpy as np

    channels, height, width = release.image_shape
    return np.zeros((EXAMPLE_IMAGES, height, width, channels), np.uint8)


def _describe(release: Release, tags: Mapping[str, Any]) -> str:
    host, bank = release.model.host.config, release.bank
    channels, height, width = release.image_shape
    return (
        f"{host.kind} host over {len(release.class_names)} classes, images of {height} x {width} pixels and {channels} "
        f"channel(s), with {'no prototypes' if bank is None else f'{len(bank)} prototypes'}; an edit changes: {host.adaptive}."
    )


# Those of ``vision.methods``, which takes seconds to import.
METHODS = (
    "host",
    "trained_longer",
    "finetune_all",
    "finetune_adaptive",
    "finetune_interpolated",
    "host_refreshed",
    "joint_body",
    "finetune_device",
    "batch_norm",
    "tent",
    "t3a",
    "lame",
    "duet",
    "persona_frozen",
    "persona_joint",
    "persona_cross_fitted",
    "persona_prototypes",
    "persona_refined",
    "persona_basis",
    "persona_held_back",
    "persona_tuned",
    "persona_gated",
    "persona",
)

VISION = Task(
    **at_home("vision"),
    name="vision",
    named=METHODS,
    place="vision.task:VISION",
    unit="device",
    context="window",
    work=Path("work/vision"),
    config=VisionConfig,
    protocols=("stream",),
    compared=("accuracy", "logloss"),
    deciding=("accuracy",),
    tagged=("host", "adaptive", "seed"),
    interface=Interface(
        artifact="classifier",
        inputs={},
        outputs={"class": str, "probability": float, "level": str, "fallback": str},
        parameters={"level": "edit"},
        requirements=("onnxruntime", "safetensors", "numpy", "pandas", "polars", "pillow"),
        example=_example,
        describe=_describe,
    ),
    load=later("vision.data.images:DeviceImages.load"),
    rivals=(),
    untrained=("batch_norm", "tent", "t3a", "lame"),
    headlines=lambda protocol: ("accuracy", "logloss"),
    train_host=_train_host,
    model=_model,
    bank_config=attrgetter("bank_config"),
    fit_bank=later("vision.prototypes:fit_bank"),
    levels=_levels,
    release=_release,
    save=_save,
)
