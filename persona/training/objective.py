"""What a training is asked for, and what it tells: the words that the loop and the executions of its steps share."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from persona.errors import ConfigError, check_known
from persona.torch_device import moved
from persona.training.ranks import Ranks, Rows

PRECISIONS = ("float32", "bf16")


@dataclass(frozen=True)
class FitConfig:
    """How long and how fast to train.

    Attributes:
        epochs: at most this many.
        patience: stop after this many epochs without a better validation value, counted from where the objective's reference is
            beaten.
        learning_rate: of Adam.
        weight_decay: decoupled (AdamW); 0 is plain Adam.
        clip: largest gradient norm.
        seed: of initialisation, batches, negatives and dropout.
        min_epochs: patience is not counted before this epoch: some hosts sit on a plateau first.
        checkpoint_steps: write a checkpoint every this many steps as well, not only after each epoch; 0 for no others.
        precision: of the products in a training step: ``float32``, or ``bf16``, which halves their memory and is faster on a
            graphics card. Parameters, losses and statistics are float32 in both.

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
    checkpoint_steps: int = 0
    precision: str = "float32"

    def __post_init__(self) -> None:
        for name in ("epochs", "patience", "learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, but it has to be positive")
        for name in ("seed", "weight_decay", "min_epochs", "checkpoint_steps"):
            if getattr(self, name) < 0:
                raise ConfigError("seed, weight_decay, min_epochs and checkpoint_steps cannot be negative")
        check_known("precision", self.precision, PRECISIONS)


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


@dataclass(frozen=True)
class Part:
    """What one rank does of a batch.

    Attributes:
        batch: of the objective's own kind, with this rank's rows only.
        rows: which these are.
        share: of the batch's loss that the mean over this part is; over all ranks it adds up to 1.
    """

    batch: Any
    rows: Rows
    share: float

    def to(self, device: torch.device) -> Part:
        """This part with its batch on ``device``."""
        return replace(self, batch=moved(self.batch, device))


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


@runtime_checkable
class Referenced(Protocol):
    """An objective that knows what a trivial rival achieves: a training from scratch sits there for a while first.

    Attributes:
        reference: the rival's value of ``monitor``; ``None`` where none is known.
    """

    reference: float | None


@runtime_checkable
class Divisible(Protocol):
    """An objective whose batches can be divided between ranks."""

    def part(self, batch: Any, ranks: Ranks) -> Part:
        """What a rank does of a batch."""
