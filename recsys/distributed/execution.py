"""Training of a host whose table is sharded: the table learns within the backward pass, on the ranks that hold its rows.

TorchRec's pipeline sends the lookups of the next batch on their way while the present one is worked on. The dense part is
replicated: its gradients are averaged over ranks, as TorchRec averages those of the table.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchrec import KeyedJaggedTensor
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.streamable import Pipelineable

from persona.training import checkpoints as whole_checkpoints
from persona.training.execution import Execution
from persona.training.objective import FitConfig, Objective
from persona.training.ranks import Rows, in_pieces, working_on
from recsys.data.batches import Batch
from recsys.distributed import checkpoints, tables
from recsys.objectives import RowObjective
from recsys.personalised import Personalised

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class SharedBatch(Pipelineable):  # type: ignore[misc]  # TorchRec ships no types
    """This rank's rows of a batch, as a unit of TorchRec's pipeline.

    Attributes:
        batch: the rows.
        rows: which these are.
        share: of the whole batch's loss.
    """

    batch: Batch
    rows: Rows
    share: float

    @property
    def features(self) -> KeyedJaggedTensor:
        """What is looked up."""
        return self.batch.features

    def to(self, device: torch.device, non_blocking: bool = False) -> SharedBatch:
        """This batch on ``device``."""
        return SharedBatch(self.batch.to(device, non_blocking), self.rows, self.share)

    def pin_memory(self) -> SharedBatch:
        """This batch in page-locked memory."""
        return SharedBatch(self.batch.pin_memory(), self.rows, self.share)

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the memory of this batch until ``stream`` has used it."""
        self.batch.record_stream(stream)


class _Judge(nn.Module):
    """Everything of a step after the lookup. The pipeline does not look into a module without a sharded table."""

    def __init__(self, model: Personalised, objective: RowObjective, size: int) -> None:
        super().__init__()
        self.parts, self.size = (model, objective), size  # in a tuple, so that the model is no child of this one

    def forward(self, batch: SharedBatch, history: Tensor, lengths: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """What to differentiate, and this rank's share of the batch's loss."""
        model, objective = self.parts
        with working_on(batch.rows):
            loss = objective.judge(model.respond(history, lengths, targets))
        return loss * (batch.share * self.size), loss.detach() * batch.share


class _Step(nn.Module):
    """One training step, with its lookup where the pipeline finds it."""

    def __init__(self, model: Personalised, objective: RowObjective, size: int) -> None:
        super().__init__()
        self.model, self.judge = model, _Judge(model, objective, size)

    def forward(self, batch: SharedBatch) -> tuple[Tensor, Tensor]:
        """As ``_Judge``."""
        history, lengths, targets = self.model.host.lookup(batch.features)
        judged: tuple[Tensor, Tensor] = self.judge(batch, history, lengths, targets)
        return judged


class ShardedExecution(Execution):
    """Training of a model that has a host with a sharded table, by rows.

    A table that is not sharded yet is sharded first; where one process has all of it, it is an ordinary one in the end.

    Args:
        module: the model, all of whose parameters are trained.
        trained: its parameters.
        objective: batches of rows.
        config: of the optimizer of the dense part.
        folder: where checkpoints go; ``None`` keeps them only as long as the training lasts.
        learning_rate: of the table.
    """

    def __init__(
        self,
        module: nn.Module,
        trained: list[nn.Parameter],
        objective: Objective,
        config: FitConfig,
        folder: Path | None,
        learning_rate: float,
    ) -> None:
        assert isinstance(module, Personalised)
        assert isinstance(objective, RowObjective)
        self.model, self.rows = module, objective
        table = tables.parameter(module.host)
        dense = [p for p in trained if p is not table]
        if not tables.is_sharded(module.host):
            tables.shard(module.host, learning_rate)
        tables.forget_optimizer(module.host)
        super().__init__(module, dense, objective, config, folder)
        self.trained = [*dense, tables.parameter(module.host)]
        self._temporary = tempfile.TemporaryDirectory() if folder is None and self.ranks.main else None
        if folder is None:
            self.folder = Path(self.ranks.agree(self._temporary.name if self._temporary else ""))
        assert self.folder is not None
        self.checkpoints = self.folder / CHECKPOINTS
        self._best_name: str | None = None
        self._improved = False
        self._name: str | None = None

    @property
    def place(self) -> Path:
        """The newest checkpoint."""
        return self.checkpoints / (self._name or "")

    def steps(self, batches: Iterable[Any]) -> Iterator[Tensor]:
        """As ``Execution.steps``, with the lookups of the next batch under way."""
        step = _Step(self.model, self.rows, self.ranks.size)
        pipeline = TrainPipelineSparseDist(step, _Updates(self), torch.device("cpu"), execute_all_batches=True)
        shared = (SharedBatch(part.batch, part.rows, part.share) for part in map(self.part, batches))
        try:
            while True:
                try:
                    loss = pipeline.progress(shared)
                except StopIteration:
                    return
                yield loss
        finally:
            pipeline.detach()

    def keep_best(self) -> None:
        """The checkpoint that is written next is that of the best weights."""
        self._improved = True

    def restore_best(self) -> None:
        """Read the best weights back, unless they are those that the model has."""
        if self._best_name is not None and self._best_name != self._name:
            self._read(self._best_name, weights_only=True)

    def save(self, begun: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
        """Write a checkpoint; the newest and the best stay."""
        name = checkpoints.name_of(len(header["history"]), len(begun.get("losses", ())))
        if self._improved:
            self._best_name, self._improved = name, False
        tensors = whole_checkpoints.flatten(
            {
                "module": self.module.state_dict(),
                "optimizer": whole_checkpoints.optimizer_tensors(self.optimizer),
                "table": tables.optimizer_state(self.model.host),
                "epoch": begun,
            }
        )
        checkpoints.save(self.checkpoints, name, tensors, {**header, "best": self._best_name}, self.ranks)
        self._name = name
        if self.ranks.main:
            checkpoints.retain(self.checkpoints, {name, self._best_name or name})

    def find(self) -> Mapping[str, Any] | None:
        """The header of the newest complete checkpoint."""
        self._name = self.ranks.agree(checkpoints.newest(self.checkpoints))
        return None if self._name is None else checkpoints.read_header(self.checkpoints, self._name)

    def restore(self) -> dict[str, Tensor]:
        """Take up the newest complete checkpoint."""
        assert self._name is not None
        self._best_name = checkpoints.read_header(self.checkpoints, self._name)["best"]
        groups = self._read(self._name, weights_only=False)
        whole_checkpoints.restore_optimizer(self.optimizer, groups.get("optimizer", {}))
        return groups.get("epoch", {})

    def _read(self, name: str, *, weights_only: bool) -> dict[str, dict[str, Tensor]]:
        """Put what a checkpoint has of the model, and of the table's optimizer, back; returns all but the pieces, by kind."""
        own = {"module": self.module.state_dict()}
        if not weights_only:
            own["table"] = tables.optimizer_state(self.model.host)
        pieces = {key: tensor for key, tensor in whole_checkpoints.flatten(own).items() if in_pieces(tensor)}
        loaded = checkpoints.load(
            self.checkpoints, name, pieces, lambda key: not weights_only or key.startswith("module/")
        )
        groups = whole_checkpoints.unflatten(loaded)
        self.module.load_state_dict({**self.module.state_dict(), **groups["module"]})
        return groups

    def close(self) -> None:
        """Make the table an ordinary one where one process has all of it."""
        self.ranks.wait()
        if self._temporary is not None:
            self._temporary.cleanup()
        if self.ranks.size == 1:
            tables.unshard(self.model.host)


class _Updates:
    """What the pipeline takes for the optimizer of the dense part."""

    def __init__(self, work: ShardedExecution) -> None:
        self.work = work

    def zero_grad(self) -> None:
        """Drop the gradients of the step before."""
        self.work.optimizer.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Take the step."""
        self.work.update()
