"""Hosts that follow a sequence with a state and score by a dot product: what GRU4Rec and SASRec share.

Shapes: B rows, T positions, C candidates, d width.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchrec import KeyedJaggedTensor

from persona.edits import Edit
from persona.training.ranks import Dropout
from recsys.hosts.base import Host, State
from recsys.hosts.blocks import ResidualTower, tanh_layer, tower
from recsys.hosts.config import HostConfig

RESIDUAL_SCALE = 0.1  # of the head's second layer at the start, in units of the other layers


@dataclass(frozen=True)
class UserState(State):
    """State (B, d) after the last valid item; zero for a row without history."""

    users: Tensor


class SequentialHost(Host):
    """Score = <head(state), target>; the head's two layers are adaptive, what makes a target's vector is shared.

    In the "paper" variant head and target are towers of their own. In the "modern" one the target's vector is its embedding,
    as published for SASRec, and the head adds to the state: on Amazon Beauty (protocol full) towers between state and
    embedding cost a third of NDCG@10, for they have to be learned before the embeddings can be.

    A kind builds its encoder after ``super().__init__``, then calls ``add_head``, and defines ``encode_positions`` and
    ``encode_last``.
    """

    def __init__(self, config: HostConfig) -> None:
        super().__init__(config)
        self.history: nn.Module = tanh_layer(config.dim) if config.variant == "paper" else nn.Identity()
        self.dropout = Dropout(config.dropout)

    def add_head(self) -> None:
        """Add the layers that follow the encoder."""
        paper = self.config.variant == "paper"
        self.target: nn.Module = tower(self.config.dim) if paper else nn.Identity()
        self.head: nn.Module = tower(self.config.dim) if paper else ResidualTower(self.config.dim)
        self.finish(["head.0", "head.2"])
        if not paper:
            with torch.no_grad():
                self.head.get_parameter("2.weight").mul_(RESIDUAL_SCALE)

    @abstractmethod
    def encode_positions(self, history: Tensor) -> Tensor:
        """Embedded history (B, T, d) -> states (B, T, d); state t knows the items 0..t and no later one."""

    @abstractmethod
    def encode_last(self, history: Tensor, lengths: Tensor) -> Tensor:
        """Embedded history (B, T, d), lengths (B,) from 1 -> (B, d), ``encode_positions`` at the last valid position."""

    def encode_history(self, history: Tensor, lengths: Tensor) -> UserState:
        """The state after the last valid item."""
        users = self.encode_last(history, lengths.clamp(min=1))
        return UserState(torch.where(lengths.unsqueeze(1) > 0, users, 0.0))

    def forward_sequence(
        self, features: KeyedJaggedTensor, edit: Edit | None = None, *, length: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """One lookup for all positions of a batch: user vectors (B, T, d) and target vectors (B, C, d).

        The sequence-parallel training path; T as in ``lookup``. The candidates of a row are whatever the loss compares: next items, negatives.
        """
        history, _, targets = self.lookup(features, length)
        return self.user_vectors(self.encode_positions(history), edit), self.project_targets(targets)

    def user_vectors(self, states: Tensor, edit: Edit | None = None) -> Tensor:
        """States (B, d) or (B, T, d) -> user vectors of the same shape, through the adaptive layers under ``edit``."""
        with self.adaptive.applied(edit):
            vectors: Tensor = self.head(states)
        return vectors

    def project_targets(self, targets: Tensor) -> Tensor:
        """(..., d) -> (..., d)."""
        vectors: Tensor = self.target(targets)
        return vectors

    def match(self, state: State, targets: Tensor) -> Tensor:
        """Logits (B, C): one matrix product where all rows share the targets."""
        assert isinstance(state, UserState)
        users: Tensor = self.head(state.users)
        if targets.ndim == 2:
            return users @ targets.T
        # A third of the time of a batched matrix product, forward and backward.
        return (targets * users.unsqueeze(1)).sum(-1)
