"""SASRec: causal self-attention over the items (Kang and McAuley, ICDM'18), with the adaptive head of method.md section 5."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recsys.hosts.blocks import EncoderBlock
from recsys.hosts.config import HostConfig
from recsys.hosts.sequential import SequentialHost

INITIAL_SCALE = 0.02


class SASRec(SequentialHost):
    """History + learned positions -> encoder blocks -> adaptive head -> dot product with the target's vector.

    Positions count from the oldest item of the context. In the "modern" variant embeddings are multiplied by sqrt(d), as
    published, and the last block is followed by a normalisation.
    """

    def __init__(self, config: HostConfig) -> None:
        super().__init__(config)
        pre_norm = config.variant == "modern"
        self.scale = config.dim**0.5 if pre_norm else 1.0
        self.positions = nn.Parameter(torch.randn(config.max_length, config.dim) * INITIAL_SCALE)
        self.blocks = nn.ModuleList(
            EncoderBlock(config.dim, config.heads, config.feed_forward, config.dropout, pre_norm)
            for _ in range(config.blocks)
        )
        self.norm = nn.LayerNorm(config.dim) if pre_norm else nn.Identity()
        self.add_head()

    def encode_positions(self, history: Tensor) -> Tensor:
        """(B, T, d) -> (B, T, d)."""
        x = self._enter(history)
        for block in self.blocks:
            x = block(x)
        states: Tensor = self.norm(x)
        return states

    def encode_last(self, history: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, d) -> (B, d); the last block looks at the last valid position alone."""
        x = self._enter(history)
        for block in self.blocks[:-1]:
            x = block(x)
        final = self.blocks[-1]
        assert isinstance(final, EncoderBlock)
        state: Tensor = self.norm(final.last(x, lengths))
        return state

    def _enter(self, history: Tensor) -> Tensor:
        x = self.history(history) * self.scale + self.positions[: history.shape[1]]
        entered: Tensor = self.dropout(x)
        return entered
