"""The steps ``pretrain`` and ``edit`` of any task: the host, then its parameter editor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from persona.task import OnEpoch, Task
from persona.training.objective import FitResult
from persona.training.ranks import current
from pipelines import tracking
from pipelines.steps import processes
from pipelines.steps.workspace import Workspace
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


def pretrain(task: Task, config: Any, work: Workspace, on_epoch: OnEpoch | None = None) -> TrainedStep:
    """Train the host whose adaptive layers will be edited."""
    return _train("pretrain", task, config, work, task.train_host, on_epoch)


def edit(task: Task, config: Any, work: Workspace, on_epoch: OnEpoch | None = None) -> TrainedStep:
    """Train the parameter editor in the mode of the settings (and its host, if it is not there yet)."""

    def train(problem: Any) -> tuple[str, FitResult]:
        mode, trained = task.train_configured(problem)
        return f"persona_{mode}", trained.result

    return _train("edit", task, config, work, train, on_epoch)


def _train(
    name: str,
    task: Task,
    config: Any,
    work: Workspace,
    train: Callable[[Any], tuple[str, FitResult]],
    on_epoch: OnEpoch | None,
) -> TrainedStep:
    if not current().main:  # rank 0 tells what all of them do
        problem = task.problem(work.data(task), config, folder=work.cells)
        return TrainedStep.of(*train(problem), problem.split.describe())
    store = work.connect(task)
    before = processes.run_before(name, store.experiment_id)
    with tracking.run(name, run_id=before, tags={"step": name, **processes.tags()}):
        tracking.log_params(config.as_dict())
        problem = task.problem(work.data(task), config, folder=work.cells, on_epoch=on_epoch)
        training, result = train(problem)
        tracking.log_epochs(result.history, prefix=f"{training}/")
        curves = figures.learning_curves({training: result.history}, config.monitor, config.protocol)
        tracking.log_figure(curves, "figures/learning_curves.png")
    work.remember(config)
    return TrainedStep.of(training, result, problem.split.describe())
