"""One training loop for hosts, editors and baselines of every task, in one process or on many ranks.

A seed and an epoch number determine every random choice of the epoch, and a checkpoint is written after each one (and every
so many steps, if asked), so a run that was killed resumes from its last checkpoint and ends with the same bits as one that
was not. On many ranks every batch is cut into rows of each; the loop is the same.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from persona.errors import ConfigError, MismatchError
from persona.runtime import keep_freed_memory
from persona.torch_device import generators, set_generators
from persona.training.execution import Execution
from persona.training.objective import FitConfig, FitResult, Objective, Referenced

MakeExecution = Callable[[nn.Module, list[nn.Parameter], Objective, FitConfig, Path | None], Execution]

# Settings that a resumed run may change: how long it trains, and how often it writes.
_FREE = ("epochs", "patience", "min_epochs", "checkpoint_steps")


def fit(
    module: nn.Module,
    parameters: Iterable[nn.Parameter],
    objective: Objective,
    config: FitConfig,
    *,
    folder: Path | None = None,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
    keep_start: bool = False,
    about: Mapping[str, Any] | None = None,
    execution: MakeExecution = Execution,
) -> FitResult:
    """Train ``parameters`` of ``module`` and leave the weights of the best validation epoch in it.

    Args:
        module: holds everything that has to be saved; put back to eval mode at the end.
        parameters: those to be trained; all others stay as they are.
        objective: batches, loss and validation.
        config: length, speed, seed.
        folder: where to write checkpoints, and to resume from; without one nothing is kept.
        on_epoch: called with the metrics of each finished epoch, also for those of a resumed run.
        keep_start: the weights before training compete as well, so that training never makes validation worse. They are those of
            a trained module, for which patience counts from the start, whatever the objective's reference.
        about: plain values that a checkpoint has to share besides the settings, such as the digest of the data.
        execution: how steps are made and state is kept.

    Raises:
        ConfigError: the loss is not finite.
        MismatchError: the folder holds a checkpoint of another configuration, or about something else.
    """
    keep_freed_memory()
    work = execution(module, list(parameters), objective, config, folder)
    reference = objective.reference if isinstance(objective, Referenced) and not keep_start else None
    run = _Run(work, objective, config, about or {}, reference)
    run.begin(keep_start)
    notify = on_epoch or (lambda metrics: None)
    for metrics in run.result.history:
        notify(metrics)
    with _learning(module, work.trained):
        while not run.finished:
            started = time.perf_counter()
            metrics = run.train_epoch()
            run.result.seconds += time.perf_counter() - started
            run.record(metrics, metrics[objective.monitor])
            notify(metrics)
    work.restore_best()
    work.close()
    module.eval()
    return run.result


@contextmanager
def _learning(module: nn.Module, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Within this block these parameters of the module get gradients, and no others."""
    # A fixed table that lies in pieces is no leaf; it is kept from learning where it is looked up.
    before = {p: p.requires_grad for p in module.parameters() if p.is_leaf}
    chosen = set(parameters)
    for p in before:
        p.requires_grad_(p in chosen)
    try:
        yield
    finally:
        for p, flag in before.items():
            p.requires_grad_(flag)


class _Run:
    """Progress of one ``fit``: history, best epoch, and the losses of the epoch under way."""

    def __init__(
        self,
        work: Execution,
        objective: Objective,
        config: FitConfig,
        about: Mapping[str, Any],
        reference: float | None,
    ) -> None:
        self.work, self.objective, self.config, self.about = work, objective, config, dict(about)
        self.reference = reference
        self.result = FitResult()
        self.losses: list[Tensor] = []
        self.generators: Mapping[str, Tensor] = {}

    @property
    def finished(self) -> bool:
        epochs, best = self.result.epochs, self.result.best_epoch
        stale = epochs - max(best + 1, self.config.min_epochs)
        # What is no better than a trivial rival may not have begun to learn: it gets all its epochs.
        waits = self.reference is not None and self.result.best_value <= self.reference
        return epochs >= self.config.epochs or (stale >= self.config.patience and not waits)

    def train_epoch(self) -> dict[str, float]:
        """One epoch, or what is left of it after a resume, and its validation."""
        epoch, every = self.result.epochs, self.config.checkpoint_steps
        torch.manual_seed(self.config.seed * 1_000_003 + epoch)
        if self.generators:
            set_generators(self.generators, self.work.device)
            self.generators = {}
        self.work.module.train()
        for loss in self.work.steps(islice(self.objective.batches(epoch), len(self.losses), None)):
            self.losses.append(loss)
            if every and len(self.losses) % every == 0:
                self.save()
        if not self.losses:
            raise ConfigError("there is not a single training row: give a longer log or another protocol")
        mean = float(self._whole_losses().mean())
        if not math.isfinite(mean):
            rate = self.config.learning_rate
            raise ConfigError(f"the loss of epoch {epoch} is {mean}: lower the learning rate (now {rate})")
        self.work.module.eval()
        with torch.no_grad():
            return {"epoch": float(epoch), "loss": mean, **self.objective.validate()}

    def keep_best(self, value: float, epoch: int) -> None:
        """Remember the current weights if ``value`` beats the best so far (NaN never does)."""
        if value > self.result.best_value:
            self.result.best_value, self.result.best_epoch = value, epoch
            self.work.keep_best()

    def record(self, metrics: dict[str, float], value: float) -> None:
        self.result.history.append(metrics)
        self.losses = []
        self.keep_best(value, epoch=self.result.epochs - 1)
        self.save()

    def save(self) -> None:
        """Keep everything, so that a run that is killed goes on from here."""
        if not self.work.keeps:
            return
        header = {
            "config": _fixed(self.config),
            "about": self.about,
            "history": self.result.history,
            "best_epoch": self.result.best_epoch,
            "best_value": None if math.isinf(self.result.best_value) else self.result.best_value,
            "seconds": self.result.seconds,
        }
        begun = {"losses": self._whole_losses(), **generators(self.work.device)} if self.losses else {}
        self.work.save(begun, header)

    def begin(self, keep_start: bool) -> None:
        """Resume; what starts anew has its first weights compete where ``keep_start`` says so."""
        if not self.resume() and keep_start:
            self.work.module.eval()
            with torch.no_grad():
                self.keep_best(self.objective.validate()[self.objective.monitor], epoch=-1)
            self.save()

    def resume(self) -> bool:
        """Take up the checkpoint, if there is one."""
        header = self.work.find()
        if header is None:
            return False
        for there, now in ((header["config"], _fixed(self.config)), (header.get("about", self.about), self.about)):
            if there != now:
                raise MismatchError(
                    f"{self.work.place} is a checkpoint of other settings or data ({_difference(there, now)}): "
                    "give the same settings to resume it, or delete the folder to start anew"
                )
        begun = self.work.restore()
        if begun:
            # Losses are sums over ranks; there may have been more or fewer of them.
            losses = begun.pop("losses").to(self.work.device)
            self.losses = list(losses if self.work.ranks.main else torch.zeros_like(losses))
            self.generators = begun
        value = -math.inf if header["best_value"] is None else header["best_value"]
        self.result = FitResult(header["history"], header["best_epoch"], value, header.get("seconds", 0.0))
        return True

    def _whole_losses(self) -> Tensor:
        """(S,) the losses of the whole batches of this epoch's steps."""
        return self.work.ranks.sum(torch.stack(self.losses))


def _fixed(config: FitConfig) -> dict[str, Any]:
    """The settings that a resumed run has to share."""
    kept = {k: v for k, v in asdict(config).items() if k not in _FREE}
    # Older checkpoints know no precision, and are all of this one.
    return {k: v for k, v in kept.items() if (k, v) != ("precision", "float32")}


def _difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} {a.get(k)} there, {b.get(k)} now" for k in {**a, **b} if a.get(k) != b.get(k))
