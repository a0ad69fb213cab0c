"""The streams of deployed devices: played through the released bundle, and what they showed moves the prototypes.

No label of a test device decides: a refined bank is judged on the devices that validate, and only then told on those that test.

Shapes: W windows, L adaptive layers, d code width, P images.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch

from persona.comparison import REFERENCE
from persona.errors import ConfigError, DataError
from persona.prototypes import FittedBank, PrototypeBank, RefineConfig, UserStatistics
from persona.storage import atomic_folder, load_tensors, save_tensors
from persona.task import ALONE
from persona.wire import LEVELS
from pipelines import tracking
from pipelines.steps import bank
from pipelines.steps.release import served_bank
from pipelines.steps.workspace import Workspace
from pipelines.tracking import vision_figures
from vision.config import VisionConfig
from vision.methods import Problem
from vision.prototypes import window_codes, window_statistics
from vision.replay import Replayed, judge, play
from vision.serving.release import Release
from vision.task import VISION

ANSWERS, STATISTICS = "answers.parquet", "statistics.safetensors"


def replay(config: VisionConfig, work: Workspace) -> Replayed:
    """Play the streams of the test devices through the released bundle, in their order and at every level.

    Leaves every answer in the workspace, and what refinement may read of the devices: sums of codes, without labels.
    """
    work.connect(VISION)
    with tracking.run("replay", tags={"step": "replay"}):
        tracking.log_params(config.as_dict())
        problem = VISION.problem(work.data(VISION), config)
        classifier = Release.load(work.bundle)
        levels = LEVELS if classifier.bank is not None else ("host", "edit")
        with problem.reporting():
            played = play(classifier, problem, levels)
        with atomic_folder(work.replay) as folder:
            played.answers.write_parquet(folder / ANSWERS)
            if classifier.server is not None:
                shown = window_statistics(classifier.server, played.codes, played.owners)
                _save(shown, classifier.server.bank.version, folder)
        result = judge(played, levels)
        tracking.log_metrics_batch({f"accuracy_{level}": value for level, value in result.accuracy.items()})
        tracking.log_json(asdict(result), "replay.json")
        for name, figure in vision_figures.of_replay(problem.data, played.answers, levels).items():
            tracking.log_figure(figure, f"figures/{name}.png")
    work.remember(config)
    return result


def _save(statistics: UserStatistics, bank: str, folder: Any) -> None:
    tensors = {name: getattr(statistics, name) for name in ("users", "prototypes", "counts", "sums")}
    save_tensors(folder / STATISTICS, tensors, {"k": statistics.k, "bank": bank})


def refine(config: VisionConfig, work: Workspace, limits: RefineConfig | None = None) -> bank.Banked:
    """A new version of the bank from what devices showed in the last replay; no label, no gradient.

    The new version is compared with its parent on the devices that validate (see ``pipelines.steps.bank.refine``).

    Raises:
        ConfigError: there is no bank of this model yet.
        DataError: nothing was replayed, or with another bank.
    """
    limits = limits or RefineConfig(seed=config.seed)
    work.connect(VISION)
    with tracking.run("refine", tags={"step": "refine"}):
        tracking.log_params({**config.as_dict(), "limits": asdict(limits)})
        problem = VISION.problem(work.data(VISION), config, folder=work.cells)
        model = VISION.model(VISION.train_configured(problem)[1])
        lineage = work.lineage(model.editor.host)
        head = served_bank(lineage, model)
        if head is None:
            raise ConfigError(f"{work.prototypes} has no bank of this model: run `persona vision prototypes` first")
        parent = VISION.release(problem, model, {"settings": config.as_dict()}).with_bank(head)
        made = bank.refine(
            VISION,
            parent,
            lineage,
            _shown(problem, parent, _window(work, head)),
            limits,
            decide=partial(_on_validation, problem, parent),
            report=lambda child: bank.on_test(VISION, problem, child, head),
            where="the devices that validate",
            data=work.name,
        )
    work.remember(config)
    return made


def _shown(problem: Problem, parent: Release, statistics: UserStatistics) -> bank.Seen:
    """What a refinement rests on: the sums of the last replay, with codes of the same windows as examples."""
    deployed = problem.evaluation(problem.split.test)  # read without labels, as the replay did
    codes, owners = window_codes(parent.model, deployed, problem.features_of(parent.model.host))
    window = {"devices": len(torch.unique(statistics.users)), "windows": int(statistics.counts.sum())}
    names = [problem.data.device_ids[device] for device in owners]
    return bank.Seen(statistics, window, codes, names, problem.data.digest)


def _on_validation(problem: Problem, parent: Release, child: Release) -> bank.Compared:
    """Child against parent and host on the devices that validate, prototypes alone."""
    assert parent.bank is not None
    assert child.bank is not None
    measured = VISION.levels(problem, problem.validation, child.model, child.bank, (REFERENCE, ALONE))
    old = VISION.levels(problem, problem.validation, child.model, parent.bank, (ALONE,))[ALONE]
    return bank.compared(VISION, measured, old, {ALONE: f"validation {ALONE}"})


def _window(work: Workspace, bank: PrototypeBank) -> UserStatistics:
    path = work.replay / STATISTICS
    if not path.exists():
        raise DataError(
            f"{work.replay} holds nothing that devices showed: run `persona vision release` and `replay` first"
        )
    tensors, header = load_tensors(path)
    if header["bank"] != bank.version:
        raise DataError(
            f"{work.replay} was played with the bank {header['bank'][:12]}, but {bank.version[:12]} is to be refined: run "
            "`persona vision release` and `replay` again"
        )
    return UserStatistics(**tensors, k=header["k"])


def figures(problem: Problem, classifier: Release, fitted: FittedBank) -> dict[str, Any]:
    """Images of the devices whose windows came to each prototype of a first bank."""
    index = {name: device for device, name in enumerate(problem.data.device_ids)}
    owners = np.array([index[name] for name in fitted.users], np.int64)
    assert classifier.server is not None
    labels = classifier.server.assign(fitted.codes).numpy()
    return {"gallery": vision_figures.gallery(problem.data, owners, labels, len(fitted.bank))}
