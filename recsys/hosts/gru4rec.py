"""GRU4Rec: a recurrent state follows the items (Hidasi et al., ICLR'16), with the adaptive head of method.md section 5."""

from __future__ import annotations

from torch import Tensor, nn

from recsys.hosts.blocks import last_valid
from recsys.hosts.config import HostConfig
from recsys.hosts.sequential import SequentialHost


class GRU4Rec(SequentialHost):
    """History -> GRU -> state at the last valid position -> adaptive head -> dot product with the target's vector."""

    def __init__(self, config: HostConfig) -> None:
        super().__init__(config)
        between = config.dropout if config.blocks > 1 else 0.0
        self.encoder = nn.GRU(config.dim, config.dim, num_layers=config.blocks, dropout=between, batch_first=True)
        self.add_head()

    def encode_positions(self, history: Tensor) -> Tensor:
        """(B, T, d) -> (B, T, d), over the padded batch: padding on the right comes after every valid state."""
        states, _ = self.encoder(self.dropout(self.history(history)))
        dropped: Tensor = self.dropout(states)
        return dropped

    def encode_last(self, history: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, d) -> (B, d)."""
        return last_valid(self.encode_positions(history), lengths)
