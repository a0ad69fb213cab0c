"""The contract of a recommendation host, and all of it that does not depend on its kind.

A host is a light model on the device: shared layers, the same for everybody, and adaptive layers, which an edit changes for
each device. The shared layers encode a context once (``encode``); the adaptive layers score candidates under any edit
(``score``, ``score_catalogue``). Training runs both on one TorchRec lookup (``forward``).

Shapes: B rows (devices), T context length, C candidates, V items, d width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor, nn
from torchrec import EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor

from persona.adaptive import AdaptiveLayers
from persona.edits import Edit
from persona.errors import MismatchError
from persona.storage import digest_tensors
from recsys.data.batches import CANDIDATES, HISTORY, Context
from recsys.hosts.config import HostConfig

TABLE = "item"
INITIAL_SCALE = 0.02  # of 0.02, 0.1 and 0.5, the one that learns most from the first epoch on


_TABLE_DEVICE: ContextVar[str] = ContextVar("table_device", default="cpu")


@contextmanager
def table_on(device: str) -> Iterator[None]:
    """Hosts made within this block have their table on ``device``; "meta" has none, for a table that will be sharded."""
    token = _TABLE_DEVICE.set(device)
    try:
        yield
    finally:
        _TABLE_DEVICE.reset(token)


@dataclass(frozen=True)
class State:
    """What the shared layers know about B rows: tensors with B rows each, named by the kind of host."""

    def index_select(self, rows: Tensor) -> Self:
        """The state of ``rows`` (N,) int64, which may repeat."""
        return self._map(lambda tensor: tensor.index_select(0, rows))

    def expand(self, rows: int) -> Self:
        """A state of one row as ``rows`` equal rows, without a copy: one device under many edits."""
        return self._map(lambda tensor: tensor.expand(rows, *tensor.shape[1:]))

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))

    def _map(self, change: Callable[[Tensor], Tensor]) -> Self:
        return type(self)(*(change(getattr(self, field.name)) for field in fields(self)))


def make_table(config: HostConfig, device: str = "cpu") -> EmbeddingCollection:
    """The item table of a host, n_items + 1 rows; on "meta" without their values."""
    table = EmbeddingConfig(
        name=TABLE,
        num_embeddings=config.n_items + 1,
        embedding_dim=config.dim,
        feature_names=[HISTORY, CANDIDATES],
        init_fn=_initialise,
    )
    return EmbeddingCollection(tables=[table], device=torch.device(device))


class Host(nn.Module, ABC):
    """A recommender whose adaptive layers can be edited.

    A kind of host builds its layers after ``super().__init__``, then calls ``finish``, and defines ``encode_history``,
    ``project_targets`` and ``match``.

    Attributes:
        config: the settings it was built from.
        embedding: the item table as a TorchRec collection, n_items + 1 rows, drawn from N(0, 0.02^2): small, so that the
            tanh layers start in their linear range. Row 0, the padding, is zero and never learns.
        adaptive: the adaptive layers. Not a submodule: the layers themselves are.
    """

    adaptive: AdaptiveLayers

    def __init__(self, config: HostConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = make_table(config, _TABLE_DEVICE.get())
        self.embedding.embeddings[TABLE].weight.data[0] = 0.0

    def finish(self, adaptive: Iterable[str]) -> None:
        """Initialise the linear layers and make those named in ``adaptive`` editable.

        Xavier's scale (Glorot and Bengio, AISTATS'10) keeps the size of signals through the tanh layers. With torch's own,
        which shrinks them at each layer, all kinds stay about twice as many epochs at the quality of mere popularity.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.adaptive = AdaptiveLayers(self, adaptive)

    @property
    def device(self) -> torch.device:
        """Where the host lies; a table in pieces lies with them."""
        return next(self.adaptive_parameters()).device

    @property
    def context_dim(self) -> int:
        """d_c, the width of ``context_features``."""
        return self.config.dim

    @abstractmethod
    def encode_history(self, history: Tensor, lengths: Tensor) -> State:
        """Embedded history (B, T, d) with valid ``lengths`` (B,) -> the state of B rows, by shared layers only."""

    @abstractmethod
    def project_targets(self, targets: Tensor) -> Tensor:
        """Item embeddings (..., d) -> target vectors (..., d), by shared layers only."""

    @abstractmethod
    def match(self, state: State, targets: Tensor) -> Tensor:
        """Target vectors (B, C, d), or (C, d) shared by all rows -> logits (B, C), through the adaptive layers."""

    def forward(self, features: KeyedJaggedTensor, edit: Edit | None = None) -> Tensor:
        """Logits (B, C) of a batch's ``features`` with one lookup for history and candidates: the training path.

        Equal to ``score(encode(context), candidates, edit)``; the history has to be at most ``max_length`` long.
        """
        history, lengths, targets = self.lookup(features)
        state = self.encode_history(history, lengths)
        with self.adaptive.applied(edit):
            return self.match(state, self.project_targets(targets))

    def encode(self, context: Context) -> State:
        """The state of a context of B rows. No adaptive layer takes part, so one state serves any edit.

        Raises:
            MismatchError: the context is longer than ``max_length``.
        """
        return self.encode_history(self.context_features(context), context.lengths)

    def context_features(self, context: Context) -> Tensor:
        """(B, T, context_dim) what a parameter editor reads: the items' embeddings, 0 at padding.

        Raises:
            MismatchError: the context is longer than ``max_length``.
        """
        if context.items.shape[1] > self.config.max_length:
            raise MismatchError(
                f"this context holds {context.items.shape[1]} items a row, but the host reads at most "
                f"{self.config.max_length}: build it with Context.from_lists(histories, {self.config.max_length})"
            )
        return self.embed(context.items)

    def score(self, state: State, candidates: Tensor, edit: Edit | None = None) -> Tensor:
        """Logits (B, C) of ``candidates``, (B, C) int64, or (C,) shared by all rows."""
        with self.adaptive.applied(edit):
            return self.match(state, self.target_vectors(candidates))

    def score_catalogue(self, state: State, edit: Edit | None = None, *, item_vectors: Tensor | None = None) -> Tensor:
        """Logits (B, V + 1) of the whole catalogue; column 0, the padding, is -inf.

        Args:
            state: B rows.
            edit: of batch B or 1.
            item_vectors: what ``item_vectors()`` returned for the present parameters, to spare computing them again.
        """
        vectors = self.item_vectors() if item_vectors is None else item_vectors
        with self.adaptive.applied(edit):
            scores = self.match(state, vectors)
        scores[:, 0] = float("-inf")
        return scores

    def target_vectors(self, items: Tensor) -> Tensor:
        """Item indices (...) int64 -> target vectors (..., d)."""
        return self.project_targets(self.embed(items))

    def item_vectors(self) -> Tensor:
        """(V + 1, d) target vectors of the catalogue. No edit changes them: a server computes them once."""
        device = next(self.shared_parameters()).device
        return self.target_vectors(torch.arange(self.config.n_items + 1, device=device))

    def embed(self, items: Tensor) -> Tensor:
        """Item indices (...) int64 -> embeddings (..., d)."""
        if isinstance(self.embedding, EmbeddingCollection):
            # The same table without a jagged tensor: a tenth of the time for one device, and it exports.
            embedded: Tensor = self.embedding.embeddings[TABLE](items)
            return embedded
        count = items.numel()
        lengths = torch.tensor([0, count], device=items.device)
        jagged = KeyedJaggedTensor(keys=[HISTORY, CANDIDATES], values=items.reshape(-1), lengths=lengths)
        values: Tensor = self.embedding(jagged)[CANDIDATES].values()
        return values.view(*items.shape, self.config.dim)

    def lookup(self, features: KeyedJaggedTensor, length: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """One lookup of a batch: embedded history (B, T, d), its lengths (B,), embedded candidates (B, C, d).

        T is ``length``, the longest history of the batch, or ``max_length`` if it is not given.
        """
        embedded = self.embedding(features)
        history, candidates = embedded[HISTORY], embedded[CANDIDATES]
        lengths, values = history.lengths(), candidates.values()
        rows = lengths.shape[0]
        return (
            history.to_padded_dense(length or self.config.max_length),
            lengths,
            values.view(rows, values.shape[0] // rows, self.config.dim),
        )

    def digest(self) -> str:
        """SHA-256 of all parameters: what the edits of this host carry, and by which those of another are refused.

        The same for a sharded table; then all ranks have to ask together.
        """
        return digest_tensors(self.state_dict())

    def adaptive_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that an edit changes."""
        return iter(self.adaptive.parameters())

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """All other parameters."""
        adaptive = {id(parameter) for parameter in self.adaptive_parameters()}
        return (parameter for parameter in self.parameters() if id(parameter) not in adaptive)


def _initialise(weight: Tensor) -> None:
    # Through .data: a sharded collection calls this under grad, with an empty weight on ranks that hold no shard.
    weight.data.normal_(0.0, INITIAL_SCALE)
