"""The processes that train together: who this one is, which rows of a batch are its own, and what it has to agree on.

A process that nobody started beside others is rank 0 of 1, for which everything here leaves its argument as it is: code that
speaks of ranks is the code of one process.

Letters: W ranks, B rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")

BLOCK_ROWS = 2**16


@dataclass(frozen=True)
class Rows:
    """Rows [start, stop) of a whole batch of ``total``.

    Attributes:
        start: first row.
        stop: after the last row.
        total: rows of the whole batch.
        counted: whether they are this rank's own. A rank that gets no row of a small batch borrows its first one, so as to
            take part in what all ranks do together, and counts it for nothing.
    """

    start: int
    stop: int
    total: int
    counted: bool = True

    @property
    def share(self) -> float:
        """The part of the batch that these rows are; over all ranks it adds up to 1."""
        return (self.stop - self.start) / self.total if self.counted else 0.0

    def of(self, whole: Tensor) -> Tensor:
        """These rows of a tensor (total, ...)."""
        return whole[self.start : self.stop]


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together.

    Attributes:
        rank: 0..size-1.
        size: W.
    """

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the rank that shows progress, logs and writes what all ranks have alike."""
        return self.rank == 0

    def rows(self, total: int) -> Rows:
        """This rank's part of ``total`` rows: contiguous, no row twice, none left out, sizes that differ by one at most."""
        start, stop = total * self.rank // self.size, total * (self.rank + 1) // self.size
        return Rows(start, stop, total) if stop > start else Rows(0, 1, total, counted=False)

    def mean_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its mean over ranks; all of them have the same parameters without one."""
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        if not gradients:
            return
        # One message: gloo takes longer to start one than to send what a dense part of this size holds.
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        flat.div_(self.size)
        for gradient, part in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks of tensors of one shape; on all ranks the same bits."""
        if self.size == 1:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all ranks, of one shape and type, in the order of ranks, on every rank."""
        if self.size == 1:
            return [tensor]
        tensor = tensor.contiguous()
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor)
        return parts

    def agree(self, value: T) -> T:
        """What rank 0 has; for small plain values."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def wait(self) -> None:
        """Go on when all ranks are here."""
        if self.size > 1:
            dist.barrier()


def current() -> Ranks:
    """This process in the process group it has joined; rank 0 of 1 where it has joined none."""
    if dist.is_available() and dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size())
    return Ranks()


def in_pieces(tensor: Tensor) -> bool:
    """Whether ``tensor`` lies on several ranks, each of which has some of its rows."""
    from torch.distributed._shard.sharded_tensor.api import ShardedTensor

    return isinstance(tensor, ShardedTensor)


def blocks(tensor: Tensor) -> Iterator[Tensor]:
    """All rows of ``tensor`` in order, some at a time, also where they lie in pieces: then all ranks have to ask together."""
    if not in_pieces(tensor):
        yield tensor
        return
    from torch.distributed._shard.sharded_tensor.api import ShardedTensor

    assert isinstance(tensor, ShardedTensor)
    here = {tuple(shard.metadata.shard_offsets): shard.tensor for shard in tensor.local_shards()}
    for piece in sorted(tensor.metadata().shards_metadata, key=lambda piece: tuple(piece.shard_offsets)):
        own = here.get(tuple(piece.shard_offsets))
        for start in range(0, piece.shard_sizes[0], BLOCK_ROWS):
            shape = (min(BLOCK_ROWS, piece.shard_sizes[0] - start), *piece.shard_sizes[1:])
            block = torch.empty(shape, dtype=tensor.dtype) if own is None else own[start : start + shape[0]].clone()
            dist.broadcast(block, src=piece.placement.rank())  # type: ignore[union-attr]
            yield block


_ROWS: ContextVar[Rows | None] = ContextVar("rows", default=None)


@contextmanager
def working_on(rows: Rows) -> Iterator[None]:
    """Within this block, random choices a row are those of ``rows`` of the whole batch (see ``draw``)."""
    token = _ROWS.set(rows if rows.stop - rows.start < rows.total else None)
    try:
        yield
    finally:
        _ROWS.reset(token)


def draw(make: Callable[[int], Tensor], rows: int) -> Tensor:
    """Random values of ``rows`` rows, of which every rank draws those of the whole batch and keeps its own.

    Ranks that start from one seed thus make the choices of one process, and their generators stay together.

    Args:
        make: number of rows -> random values (rows, ...).
        rows: of this rank.
    """
    own = _ROWS.get()
    if own is None:
        return make(rows)
    if own.stop - own.start != rows:
        raise ValueError(f"{rows} rows are drawn for, but this rank works on {own.stop - own.start}")
    return own.of(make(own.total))


class Dropout(nn.Dropout):
    """``nn.Dropout`` of tensors (B, ...) that drops the same of a row whichever rank works on it."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, ...) -> (B, ...)."""
        if not self.training or self.p == 0.0 or _ROWS.get() is None:
            return super().forward(input)
        shape, keep = input.shape[1:], 1.0 - self.p
        # torch draws in the order of memory, which a recurrent layer leaves with rows inside.
        layout = sorted(range(input.ndim), key=input.stride, reverse=True)

        def mask(rows: int) -> Tensor:
            return torch.empty_permuted((rows, *shape), layout, dtype=input.dtype, device=input.device).bernoulli_(keep)

        return input * (draw(mask, input.shape[0]) / keep)
