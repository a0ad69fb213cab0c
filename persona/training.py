"""One training loop for hosts, editors and baselines of every task.

A seed and an epoch number determine every random choice of the epoch, and a checkpoint is written after each one, so a run
that was killed resumes from its last epoch and ends with the same bits as one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from persona.errors import ConfigError, MismatchError
from persona.storage import load_tensors, save_tensors

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class FitConfig:
    """How long and how fast to train.

    Attributes:
        epochs: at most this many.
        patience: stop after this many epochs without a better validation value.
        learning_rate: of Adam.
        weight_decay: decoupled (AdamW); 0 is plain Adam.
        clip: largest gradient norm.
        seed: of initialisation, batches, negatives and dropout.
        min_epochs: patience is not counted before this epoch: some hosts sit on a plateau first.

    Raises:
        ConfigError: a setting is out of range.
    """

    epochs: int = 50
    patience: int = 5
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    clip: float = 5.0
    seed: int = 0
    min_epochs: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "patience", "learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, but it has to be positive")
        if self.seed < 0 or self.weight_decay < 0 or self.min_epochs < 0:
            raise ConfigError("seed, weight_decay and min_epochs cannot be negative")


class Objective(Protocol):
    """What an epoch is, how a batch is judged, and how good the module is on validation data."""

    def batches(self, epoch: int) -> Iterable[Any]:
        """The batches of an epoch; all randomness comes from the objective's seed and ``epoch``."""

    def loss(self, batch: Any) -> Tensor:
        """Scalar mean loss of a batch."""

    def validate(self) -> dict[str, float]:
        """Metrics on validation data."""

    @property
    def monitor(self) -> str:
        """Which of these metrics selects the epoch; larger is better."""


@dataclass
class FitResult:
    """What a training run did: metrics per epoch, and which epoch's weights the module now holds (-1: the start).

    ``seconds`` is the wall time of all epochs, those before a resume included.
    """

    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = -1
    best_value: float = -math.inf
    seconds: float = field(default=0.0, compare=False)

    @property
    def epochs(self) -> int:
        """Epochs trained so far."""
        return len(self.history)


def fit(
    module: nn.Module,
    parameters: Iterable[nn.Parameter],
    objective: Objective,
    config: FitConfig,
    *,
    folder: Path | None = None,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
    keep_start: bool = False,
) -> FitResult:
    """Train ``parameters`` of ``module`` and leave the weights of the best validation epoch in it.

    Args:
        module: holds everything that has to be saved; put back to eval mode at the end.
        parameters: those to be trained; all others stay as they are.
        objective: batches, loss and validation.
        config: length, speed, seed.
        folder: where to write a checkpoint each epoch, and to resume from; without one nothing is written.
        on_epoch: called with the metrics of each finished epoch, also for those of a resumed run.
        keep_start: the weights before training compete as well, so that training never makes validation worse.

    Raises:
        ConfigError: the loss is not finite.
        MismatchError: the folder holds a checkpoint of another configuration.
    """
    trained = list(parameters)
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay)
    run = _Run(module, optimizer, config, folder)
    resumed = run.resume()
    if keep_start and not resumed:
        module.eval()
        with torch.no_grad():
            run.keep_best(objective.validate()[objective.monitor], epoch=-1)
    notify = on_epoch or (lambda metrics: None)
    for metrics in run.result.history:
        notify(metrics)
    requires_grad = {p: p.requires_grad for p in module.parameters()}
    chosen = set(trained)
    for p in module.parameters():
        p.requires_grad_(p in chosen)
    try:
        while not run.finished:
            started = time.perf_counter()
            metrics = run.train_epoch(trained, objective)
            run.result.seconds += time.perf_counter() - started
            run.record(metrics, metrics[objective.monitor])
            notify(metrics)
    finally:
        for p, flag in requires_grad.items():
            p.requires_grad_(flag)
    run.restore_best()
    module.eval()
    return run.result


class _Run:
    """Progress of one ``fit``: best weights, history, and their checkpoint."""

    def __init__(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, config: FitConfig, folder: Path | None
    ) -> None:
        self.module, self.optimizer, self.config = module, optimizer, config
        self.path = None if folder is None else Path(folder) / CHECKPOINT
        self.result = FitResult()
        self.best: dict[str, Tensor] = {}

    @property
    def finished(self) -> bool:
        epochs, best = self.result.epochs, self.result.best_epoch
        stale = epochs - max(best + 1, self.config.min_epochs)
        return epochs >= self.config.epochs or stale >= self.config.patience

    def train_epoch(self, trained: list[nn.Parameter], objective: Objective) -> dict[str, float]:
        """One epoch and its validation."""
        epoch = self.result.epochs
        torch.manual_seed(self.config.seed * 1_000_003 + epoch)
        self.module.train()
        losses: list[Tensor] = []
        for batch in objective.batches(epoch):
            self.optimizer.zero_grad(set_to_none=True)
            loss = objective.loss(batch)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(trained, self.config.clip)
            self.optimizer.step()
            losses.append(loss.detach())
        if not losses:
            raise ConfigError("there is not a single training row: give a longer log or another protocol")
        mean = float(torch.stack(losses).mean())
        if not math.isfinite(mean):
            rate = self.config.learning_rate
            raise ConfigError(f"the loss of epoch {epoch} is {mean}: lower the learning rate (now {rate})")
        self.module.eval()
        with torch.no_grad():
            return {"epoch": float(epoch), "loss": mean, **objective.validate()}

    def keep_best(self, value: float, epoch: int) -> None:
        """Remember the current weights if ``value`` beats the best so far (NaN never does)."""
        if value > self.result.best_value:
            self.result.best_value, self.result.best_epoch = value, epoch
            self.best = {name: t.detach().clone() for name, t in self.module.state_dict().items()}

    def record(self, metrics: dict[str, float], value: float) -> None:
        self.result.history.append(metrics)
        self.keep_best(value, epoch=self.result.epochs - 1)
        if self.path is not None:
            self._save(self.path)

    def restore_best(self) -> None:
        if self.best:
            self.module.load_state_dict(self.best)

    def _save(self, path: Path) -> None:
        tensors = {f"module/{name}": t for name, t in self.module.state_dict().items()}
        tensors |= {f"best/{name}": t for name, t in self.best.items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{name}": torch.as_tensor(t) for name, t in state.items()}
        header = {
            "format": "checkpoint",
            "config": _fixed(self.config),
            "history": self.result.history,
            "best_epoch": self.result.best_epoch,
            "best_value": None if math.isinf(self.result.best_value) else self.result.best_value,
            "seconds": self.result.seconds,
        }
        save_tensors(path, tensors, header)

    def resume(self) -> bool:
        """Take up the checkpoint, if there is one."""
        if self.path is None or not self.path.exists():
            return False
        tensors, header = load_tensors(self.path)
        if header["config"] != _fixed(self.config):
            raise MismatchError(
                f"{self.path} is a checkpoint of other settings ({_difference(header['config'], _fixed(self.config))}): "
                "give the same settings to resume it, or delete the folder to start anew"
            )
        groups: dict[str, dict[str, Tensor]] = {"module": {}, "best": {}, "optimizer": {}}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition("/")
            groups[kind][rest] = tensor
        self.module.load_state_dict(groups["module"])
        self.best = groups["best"]
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in groups["optimizer"].items():
            index, _, rest = name.partition("/")
            state.setdefault(int(index), {})[rest] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        value = -math.inf if header["best_value"] is None else header["best_value"]
        self.result = FitResult(header["history"], header["best_epoch"], value, header.get("seconds", 0.0))
        return True


def _fixed(config: FitConfig) -> dict[str, Any]:
    """The settings that a resumed run has to share; it may be told to train for more or fewer epochs."""
    return {k: v for k, v in asdict(config).items() if k not in ("epochs", "patience", "min_epochs")}


def _difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} {a.get(k)} there, {b[k]} now" for k in b if a.get(k) != b[k])
