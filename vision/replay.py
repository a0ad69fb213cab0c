"""The streams of the test devices, played through a classifier in their order and at every level.

Letters: P images, W windows, L adaptive layers, d code width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from vision.methods.problem import Problem
from vision.serving.classifier import Classifier
from vision.serving.release import Release

# Devices that a report names as those with the least accuracy, and with the largest gain.
NAMED = 5


@dataclass(frozen=True)
class Played:
    """What a classifier answered.

    Attributes:
        answers: (P rows) ``device``, ``position``, ``time``, ``truth``, ``prototype``, and the class that each level names.
        codes: (W, L, d) of the windows.
        owners: (W,) the device of each.
    """

    answers: pl.DataFrame
    codes: Tensor
    owners: NDArray[np.int64]


@dataclass(frozen=True)
class Replayed:
    """How well the bundle answered in the streams of the test devices."""

    devices: int
    images: int
    windows: int
    accuracy: dict[str, float]
    worst: list[dict[str, Any]]
    most_improved: list[dict[str, Any]]


def play(release: Release, problem: Problem, levels: Sequence[str]) -> Played:
    """Answer every window of the test devices at all ``levels``; within ``problem.reporting()``."""
    evaluation, classifier = problem.test, release.classifier()
    rows: list[dict[str, Any]] = []
    codes: list[Tensor] = []
    owners: list[int] = []
    for device in evaluation.devices.tolist():
        for own, new in evaluation.windows(device):
            rows += _answered(classifier, problem, device, own, new, levels)
            codes.append(release.codes(problem.data.pixels[own]))
            owners.append(device)
    return Played(pl.DataFrame(rows), torch.cat(codes), np.array(owners, np.int64))


def judge(played: Played, levels: Sequence[str]) -> Replayed:
    """Accuracy by level, the mean over devices, and the devices that stand out."""
    answers = played.answers
    right = [(pl.col(level) == pl.col("truth")).mean().alias(level) for level in levels]
    devices = answers.group_by("device", maintain_order=True).agg(*right)
    ranked = devices.with_columns((pl.col("edit") - pl.col("host")).alias("gain"))
    return Replayed(
        devices=len(devices),
        images=len(answers),
        windows=len(played.codes),
        accuracy={level: float(np.mean(devices[level].to_numpy())) for level in levels},
        worst=ranked.sort("edit").head(NAMED).to_dicts(),
        most_improved=ranked.sort("gain", descending=True).head(NAMED).to_dicts(),
    )


def _answered(
    classifier: Classifier, problem: Problem, device: int, own: NDArray[np.int64], new: int, levels: Sequence[str]
) -> list[dict[str, Any]]:
    """A row for each new image of the window at positions ``own``."""
    data = problem.data
    answers = {level: classifier.classify(data.pixels[own], level=level) for level in levels}
    prototype = next((a.prototype for a in answers.values() if a.prototype is not None), None)
    return [
        {
            "device": device,
            "position": int(own[i]),
            "time": int(own[i] - data.offsets[device]),
            "truth": data.class_names[data.labels[own[i]]],
            "prototype": prototype,
        }
        | {level: answer.classes[i] for level, answer in answers.items()}
        for i in range(len(own) - new, len(own))
    ]
