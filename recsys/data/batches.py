"""Contexts and batches: what a host reads, and its way into TorchRec.

Shapes: B rows (devices), T context length, C candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from persona.errors import DataError

HISTORY = "history"
CANDIDATES = "candidates"


@dataclass(frozen=True)
class Context:
    """The recent items of B devices, oldest first, left-aligned and padded with 0 on the right.

    Attributes:
        items: (B, T) int64 item indices.
        lengths: (B,) int64 number of valid items of each row, 0..T.
    """

    items: Tensor
    lengths: Tensor

    def __post_init__(self) -> None:
        if self.items.ndim != 2 or self.lengths.shape != self.items.shape[:1]:
            raise DataError(
                f"a context has items (B, T) and lengths (B,), but these are {tuple(self.items.shape)} and "
                f"{tuple(self.lengths.shape)}: build it with Context.from_lists"
            )

    @classmethod
    def from_lists(cls, histories: Sequence[Sequence[int]], length: int) -> Context:
        """The last ``length`` items of every history.

        Raises:
            DataError: an item index is below 1; 0 is kept for padding.

        Example::

            >>> Context.from_lists([[3], [1, 2, 3, 4]], 3).items
            tensor([[3, 0, 0],
                    [2, 3, 4]])
        """
        tails = [history[-length:] for history in histories]
        lengths = torch.tensor([len(tail) for tail in tails], dtype=torch.int64)
        values = torch.tensor(list(chain.from_iterable(tails)), dtype=torch.int64)
        if values.numel() and int(values.min()) < 1:
            raise DataError(f"item indices of a history start at 1, but one is {int(values.min())}: 0 is the padding")
        items = torch.zeros(len(tails), length, dtype=torch.int64)
        items[valid_positions(lengths, length)] = values
        return cls(items, lengths)

    @property
    def mask(self) -> Tensor:
        """(B, T) bool, True where an item is valid."""
        return valid_positions(self.lengths, self.items.shape[1])

    def index_select(self, rows: Tensor) -> Context:
        """The context of ``rows`` (N,) int64, which may repeat."""
        return Context(self.items.index_select(0, rows), self.lengths.index_select(0, rows))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Context:
        """This context on ``device``."""
        return Context(
            self.items.to(device=device, non_blocking=non_blocking),
            self.lengths.to(device=device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> Context:
        """This context in page-locked memory, for asynchronous copies to a GPU."""
        return Context(self.items.pin_memory(), self.lengths.pin_memory())

    def __len__(self) -> int:
        return self.items.shape[0]


@dataclass(frozen=True)
class Batch(Pipelineable):  # type: ignore[misc]  # TorchRec ships no types
    """Contexts with the candidates to score: a unit of TorchRec's train pipelines.

    ``features`` is an attribute, so that a train pipeline finds it by tracing ``host(batch.features)`` and can send the
    lookups of the next batch ahead. It is built once, before the batch moves: on a GPU the jagged form would need a
    synchronisation.

    Attributes:
        context: B rows.
        candidates: (B, C) int64 item indices.
    """

    context: Context
    candidates: Tensor

    @cached_property
    def features(self) -> KeyedJaggedTensor:
        """History and candidates as one keyed jagged tensor (see ``features``)."""
        return features(self.context, self.candidates)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """This batch on ``device``."""
        return self._carrying(
            self.context.to(device, non_blocking),
            self.candidates.to(device=device, non_blocking=non_blocking),
            self.features.to(device=torch.device(device), non_blocking=non_blocking),
        )

    def pin_memory(self) -> Batch:
        """This batch in page-locked memory."""
        return self._carrying(self.context.pin_memory(), self.candidates.pin_memory(), self.features.pin_memory())

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the memory of this batch until ``stream`` has used it."""
        for tensor in (self.context.items, self.context.lengths, self.candidates):
            tensor.record_stream(stream)
        self.features.record_stream(stream)

    def __len__(self) -> int:
        return len(self.context)

    @staticmethod
    def _carrying(context: Context, candidates: Tensor, jagged: KeyedJaggedTensor) -> Batch:
        batch = Batch(context, candidates)
        batch.__dict__["features"] = jagged
        return batch


def features(context: Context, candidates: Tensor | None = None) -> KeyedJaggedTensor:
    """Contexts (B, T) and ``candidates`` (B, C) int64 as a ``KeyedJaggedTensor``.

    Keys are ``history``, without its padding, and ``candidates``, C in every row (0 where ``None``); values are key-major::

        #                row 0    row 1
        # "history"      [3]      [2, 3, 4]
        # "candidates"   [7, 5]   [9, 1]
        values  = [3, 2, 3, 4, 7, 5, 9, 1]
        lengths = [1, 3, 2, 2]
    """
    rows = len(context)
    values, lengths = context.items[context.mask], context.lengths
    counts = [values.numel(), 0]
    width = 0
    if candidates is not None:
        width, counts[1] = candidates.shape[1], candidates.numel()
        values = torch.cat([values, candidates.reshape(-1)])
    return KeyedJaggedTensor(
        keys=[HISTORY, CANDIDATES],
        values=values,
        lengths=torch.cat([lengths, lengths.new_full((rows,), width)]),
        # Known here; TorchRec would compute them again from the lengths.
        stride=rows,
        length_per_key=counts,
        offset_per_key=[0, counts[0], sum(counts)],
    )


def valid_positions(lengths: Tensor, width: int) -> Tensor:
    """(B,) -> (B, width) bool, True at positions below the length."""
    return torch.arange(width, device=lengths.device) < lengths.unsqueeze(1)
