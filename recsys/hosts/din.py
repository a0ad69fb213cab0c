"""DIN: every target looks for itself in the history (Zhou et al., KDD'18), with the adaptive head of method.md section 5."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from persona.training.ranks import Dropout
from recsys.data.batches import valid_positions
from recsys.hosts.base import Host, State
from recsys.hosts.blocks import TargetAttention, tanh_layer
from recsys.hosts.config import HostConfig

# Pairs of row and item scored at once where all rows share the candidates: activations stay near 50 MB.
PAIRS = 2**16


@dataclass(frozen=True)
class HistoryState(State):
    """The history as the attention reads it: keys and values (B, T, d), valid positions (B, T) bool."""

    keys: Tensor
    values: Tensor
    mask: Tensor


class DIN(Host):
    """[t; r] -> 2d -> feed_forward tanh -> feed_forward / 2 tanh -> 1, with r what the target t finds in the history."""

    def __init__(self, config: HostConfig) -> None:
        super().__init__(config)
        dim, wide, narrow = config.dim, config.feed_forward, config.feed_forward // 2
        self.history = tanh_layer(dim)
        self.target = tanh_layer(dim)
        self.attention = TargetAttention(dim)
        self.dropout = Dropout(config.dropout)
        self.head = nn.Sequential(
            nn.Linear(2 * dim, wide), nn.Tanh(), nn.Linear(wide, narrow), nn.Tanh(), nn.Linear(narrow, 1)
        )
        self.finish(["head.0", "head.2", "head.4"])

    def encode_history(self, history: Tensor, lengths: Tensor) -> HistoryState:
        """Keys and values of the history."""
        mask = valid_positions(lengths, history.shape[1])
        return HistoryState(*self.attention.read(self.dropout(self.history(history))), mask)

    def project_targets(self, targets: Tensor) -> Tensor:
        """(..., d) -> (..., d)."""
        vectors: Tensor = self.target(targets)
        return vectors

    def match(self, state: State, targets: Tensor) -> Tensor:
        """Logits (B, C); targets shared by all rows are scored in blocks, for their activations are B x C wide.

        Not so in an exported graph, where the size of a block would fix the number of rows.
        """
        assert isinstance(state, HistoryState)
        if targets.ndim == 3 or torch.compiler.is_exporting():
            return self._match(state, targets)
        block = max(1, PAIRS // len(state))
        return torch.cat([self._match(state, part) for part in torch.split(targets, block)], dim=1)

    def _match(self, state: HistoryState, targets: Tensor) -> Tensor:
        found = self.attention(targets, state.keys, state.values, state.mask)
        pairs = torch.cat([targets.expand(found.shape), found], dim=-1)
        logits: Tensor = self.head(self.dropout(pairs)).squeeze(-1)
        return logits
