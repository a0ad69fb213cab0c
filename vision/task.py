"""The task of classifying images under device shift: what the steps of every pipeline call, for devices and their streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona.task import Interface, Notify, Task, at_home, later
from vision.config import VisionConfig

if TYPE_CHECKING:  # the command line reads a task without waiting for torch
    from torch import Tensor

    from persona.comparison import Measured
    from persona.prototypes import Choice, Partition, PrototypeBank
    from persona.training.objective import FitResult
    from vision.evaluation import Evaluation
    from vision.methods import Problem, Trained
    from vision.personalised import Personalised
    from vision.serving.classifier import Classifier

# Images of an example of what the registered model reads.
EXAMPLE_IMAGES = 5


@dataclass(frozen=True)
class BankConfig:
    """How a bank is made: of ``max_k`` prototypes at most."""

    max_k: int


@dataclass(frozen=True)
class Fitted:
    """A first bank, as ``persona.task.FittedBank`` describes it."""

    bank: PrototypeBank
    partition: Partition
    choice: Choice
    codes: Tensor
    users: list[str]
    levels: dict[str, float]
    specialised: None = None


def _train_host(problem: Problem) -> tuple[str, FitResult]:
    problem.base_host()
    return problem.trainings.results.popitem()


def _model(trained: Trained) -> Personalised:
    from vision.methods import personalised

    model = personalised(trained)
    assert model.editor is not None
    model.editor.host = model.host.digest()
    return model


def _fit_bank(problem: Problem, model: Personalised, settings: BankConfig, notify: Notify) -> Fitted:
    from vision.methods import fit_chosen

    made = fit_chosen(problem, model)
    names = [problem.data.device_ids[device] for device in made.owners]
    return Fitted(made.fitted.bank, made.fitted, made.choice, made.codes, names, {})


def _levels(
    problem: Problem, evaluation: Evaluation, model: Personalised, bank: PrototypeBank, levels: Sequence[str]
) -> dict[str, Measured]:
    from persona.comparison import Measured
    from persona.prototypes import Server
    from vision.objectives import batched_logits
    from vision.personalised import Personalised
    from vision.prototypes import ServedAtLevel

    assert model.editor is not None
    server, features, found = Server(model.editor, bank), problem.features_of(model.host), {}
    for level in levels:
        served = Personalised(model.host) if level == "host" else ServedAtLevel(model, server, level)
        positions, logits = batched_logits(served, evaluation, features)
        e = evaluation.judge(logits, positions)
        found[level] = Measured(level, e.summary, e.per_device, e.devices)
    return found


def _release(problem: Problem, model: Personalised, info: Mapping[str, Any]) -> Classifier:
    from vision.serving.classifier import Classifier

    return Classifier(model, problem.data.class_names, problem.data.image_shape, info)


def _with_bank(release: Classifier, bank: PrototypeBank) -> Classifier:
    from vision.serving.classifier import Classifier

    return Classifier(release.model, release.class_names, release.image_shape, release.info, bank)


def _save(release: Classifier, folder: Path) -> None:
    release.save(folder)


def _requirements() -> list[str]:
    return ["torch", "torchvision", "safetensors", "numpy", "pandas", "polars", "pillow"]


def _example(release: Classifier) -> Any:
    import numpy as np

    channels, height, width = release.image_shape
    return np.zeros((EXAMPLE_IMAGES, height, width, channels), np.uint8)


def _describe(release: Classifier, tags: Mapping[str, Any]) -> str:
    host, bank = release.model.host.config, release.bank
    channels, height, width = release.image_shape
    return (
        f"{host.kind} host over {len(release.class_names)} classes, images of {height} x {width} pixels and {channels} "
        f"channel(s), with {'no prototypes' if bank is None else f'{len(bank)} prototypes'}; an edit changes: {host.adaptive}."
    )


VISION = Task(
    **at_home("vision"),
    name="vision",
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
        requirements=_requirements,
        example=_example,
        describe=_describe,
    ),
    load=later("vision.data.images:DeviceImages.load"),
    headlines=lambda protocol: ("accuracy", "logloss"),
    train_host=_train_host,
    model=_model,
    bank_config=lambda problem: BankConfig(problem.config.prototypes),
    fit_bank=_fit_bank,
    levels=_levels,
    release=_release,
    with_bank=_with_bank,
    save=_save,
)
