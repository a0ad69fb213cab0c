"""The objective of a program that has batches and a loss, and nothing else to say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor

from persona.errors import ConfigError

# Contexts, inputs (a tuple where the module takes several), targets.
Batch = tuple[Any, Any, Any]


class PlainObjective:
    """Batches of (contexts, inputs, targets), read anew in every epoch.

    Args:
        forward: contexts and inputs -> outputs.
        loss: outputs and targets -> the mean over rows.
        training: batches of an epoch.
        validation: batches that choose the epoch.

    Raises:
        ConfigError: batches that can be read only once.
    """

    monitor = "quality"

    def __init__(
        self,
        forward: Callable[..., Any],
        loss: Callable[[Any, Any], Tensor],
        training: Iterable[Batch],
        validation: Iterable[Batch],
    ) -> None:
        if isinstance(training, Iterator) or isinstance(validation, Iterator):
            raise ConfigError("every epoch reads the batches again, but these can be read only once: give a list")
        self._forward, self._loss, self._training, self._validation = forward, loss, training, validation

    def batches(self, epoch: int) -> Iterable[Batch]:
        """The batches of any epoch, in the order in which they come."""
        return self._training

    def loss(self, batch: Batch) -> Tensor:
        """Mean loss of a batch."""
        contexts, inputs, targets = batch
        return self._loss(self._forward(contexts, *(inputs if isinstance(inputs, tuple) else (inputs,))), targets)

    def validate(self) -> dict[str, float]:
        """Mean loss of the validation batches, and its negative, which chooses the epoch."""
        losses = [float(self.loss(batch)) for batch in self._validation]
        if not losses:
            raise ConfigError("there is not a single validation batch: give some, or leave validation out")
        mean = sum(losses) / len(losses)
        return {"validation_loss": mean, self.monitor: -mean}
