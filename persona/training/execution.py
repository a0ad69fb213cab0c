"""How the steps of a training are made, and where its state is kept: what ``persona.training.loop.fit`` leaves to others.

``Execution`` trains replicas of a module: every rank has all of it, works on its own rows of each batch, and takes the step
that all of them agree on. In one process that is ordinary training.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from persona.errors import MismatchError
from persona.torch_device import autocast
from persona.training import checkpoints
from persona.training.checkpoints import CHECKPOINT, Checkpoint
from persona.training.objective import Divisible, FitConfig, Objective, Part
from persona.training.ranks import Rows, current, in_pieces, working_on


class Execution:
    """Training of replicas.

    Args:
        module: everything that is saved.
        trained: the parameters that are trained.
        objective: batches and losses.
        config: of the optimizer and of clipping.
        folder: where checkpoints go; ``None`` keeps nothing.
    """

    def __init__(
        self,
        module: nn.Module,
        trained: list[nn.Parameter],
        objective: Objective,
        config: FitConfig,
        folder: Path | None,
    ) -> None:
        self.module, self.trained, self.objective, self.config = module, trained, objective, config
        self.ranks = current()
        self.folder = None if folder is None else Path(folder)
        self.stepped = trained
        self.device = trained[0].device
        self.optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay)
        self.best: dict[str, Tensor] = {}
        self._found: Checkpoint | None = None

    @property
    def keeps(self) -> bool:
        """Whether checkpoints are written."""
        return self.folder is not None

    @property
    def place(self) -> Path:
        """Where a checkpoint was found, for people."""
        assert self.folder is not None
        return self.folder / CHECKPOINT

    def steps(self, batches: Iterable[Any]) -> Iterator[Tensor]:
        """Train on one batch after another, and tell this rank's share of each loss; the sum over ranks is the batch's."""
        for batch in batches:
            part = self.part(batch).to(self.device)
            self.optimizer.zero_grad(set_to_none=True)
            with working_on(part.rows), autocast(self.device, self.config.precision):
                loss = self.objective.loss(part.batch)
            # Gradients are averaged over ranks.
            (loss * (part.share * self.ranks.size)).backward()  # type: ignore[no-untyped-call]
            self.update()
            yield loss.detach() * part.share

    def part(self, batch: Any) -> Part:
        """This rank's part of a batch."""
        if self.ranks.size == 1:
            return Part(batch, Rows(0, 1, 1), 1.0)
        if not isinstance(self.objective, Divisible):
            raise TypeError(f"the batches of {type(self.objective).__name__} cannot be divided between ranks")
        return self.objective.part(batch, self.ranks)

    def update(self) -> None:
        """Take the step that the gradients of all ranks ask for; what is no parameter of the optimizer takes its own."""
        self.ranks.mean_gradients(self.stepped)
        nn.utils.clip_grad_norm_(self.stepped, self.config.clip)
        self.optimizer.step()

    def keep_best(self) -> None:
        """Remember the present weights as the best."""
        self.best = {name: tensor.detach().clone() for name, tensor in self._state().items()}

    def restore_best(self) -> None:
        """Put the best weights back into the module."""
        if self.best:
            self._load(self.best)

    def save(self, begun: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
        """Write a checkpoint.

        Args:
            begun: tensors of the epoch under way.
            header: plain values.
        """
        if not self.ranks.main:
            return
        tensors = {
            "module": self._state(),
            "best": self.best,
            "optimizer": checkpoints.optimizer_tensors(self.optimizer),
            "epoch": begun,
        }
        checkpoints.save(self.place, Checkpoint(tensors, header))

    def find(self) -> Mapping[str, Any] | None:
        """The header of the checkpoint to resume from, if there is one."""
        if self.folder is None or not self.place.exists():
            return None
        self._found = checkpoints.load(self.place)
        return self._found.header

    def restore(self) -> dict[str, Tensor]:
        """Take up the checkpoint that was found; returns the tensors of the epoch under way, if it had begun."""
        assert self._found is not None
        found, self._found = self._found, None
        self._load(found.of("module"))
        self.best = found.of("best")
        checkpoints.restore_optimizer(self.optimizer, found.of("optimizer"))
        return found.of("epoch")

    def close(self) -> None:
        """Called once, after the best weights were put back."""

    def _state(self) -> dict[str, Tensor]:
        """The module's tensors; what lies in pieces on several ranks is not trained here, and kept by what trained it."""
        return {name: tensor for name, tensor in self.module.state_dict().items() if not in_pieces(tensor)}

    def _load(self, state: Mapping[str, Tensor]) -> None:
        chosen = set(self.trained)
        missing = checkpoints.missing((n for n, p in self.module.named_parameters() if p in chosen), state)
        if missing:
            raise MismatchError(
                f"{self.place} has no {missing[0]!r}, which is to be trained: give the settings that it was written with, or "
                "delete the folder to start anew"
            )
        self.module.load_state_dict({**self.module.state_dict(), **state})
