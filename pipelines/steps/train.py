"""What the steps ``pretrain``, ``edit`` and ``release`` of any task leave of a training, and say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from persona.training.objective import FitResult
from pipelines import tracking
from pipelines.tracking import figures


@dataclass(frozen=True)
class TrainedStep:
    """What a training did.

    Attributes:
        name: of the training.
        epochs: that it took.
        best_epoch: whose weights are kept; -1 if none is better than the start.
        validation: metrics of that epoch.
        split: what was trained, validated and tested on.
    """

    name: str
    epochs: int
    best_epoch: int
    validation: dict[str, float]
    split: Mapping[str, Any]

    @classmethod
    def of(cls, name: str, result: FitResult, split: Mapping[str, Any]) -> Self:
        """A training called ``name`` on a ``split``."""
        best = result.history[result.best_epoch] if result.best_epoch >= 0 else {}
        return cls(name, result.epochs, result.best_epoch, best, split)


def mode_tags(mode: str, chosen: Mapping[str, float]) -> dict[str, Any]:
    """Tags of a version: the mode that its editor was trained in, and the settings that validation ``chosen`` beside it."""
    return {"mode": mode, **{f"chosen.{name}": value for name, value in chosen.items() if name != mode}}


def log_epochs(name: str, result: FitResult, monitor: str, protocol: str) -> None:
    """Leave all epochs of a training in the active run, and their curves; ``monitor`` selects the epoch."""
    tracking.log_epochs(result.history, prefix=f"{name}/")
    curves = figures.learning_curves({name: result.history}, monitor, protocol)
    tracking.log_figure(curves, "figures/learning_curves.png")
