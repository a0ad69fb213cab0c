"""Cross-layer knowledge transfer: from one code of the context to one code per adaptive layer.

The layers of a network depend on each other, so their edits should, too: what is generated for a layer carries knowledge
from the layers before it.

Shapes: B devices, L adaptive layers, d width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from persona.errors import check_known


class StackedTransfer(nn.Module):
    """The published form: z_0, repeated L times, through a GRU of L stacked layers; q_l = final state of layer l."""

    def __init__(self, n_layers: int, width: int) -> None:
        super().__init__()
        self.n_layers = n_layers
        self.gru = nn.GRU(width, width, num_layers=n_layers, batch_first=True)

    def forward(self, z0: Tensor) -> Tensor:
        """(B, d) -> (B, L, d)."""
        final: Tensor
        _, final = self.gru(z0.unsqueeze(1).expand(-1, self.n_layers, -1))
        return final.transpose(0, 1)


class RecurrentTransfer(nn.Module):
    """One GRU cell run over the layers: its state starts at z_0 and reads a learned embedding of each layer in turn."""

    def __init__(self, n_layers: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Parameter(torch.randn(n_layers, width) * width**-0.5)
        self.cell = nn.GRUCell(width, width)

    def forward(self, z0: Tensor) -> Tensor:
        """(B, d) -> (B, L, d)."""
        state, states = z0, []
        for layer in self.layers:
            state = self.cell(layer.expand_as(z0), state)
            states.append(state)
        return torch.stack(states, dim=1)


class NoTransfer(nn.Module):
    """The ablation: an independent linear map F_l for every layer, q_l = F_l z_0."""

    def __init__(self, n_layers: int, width: int) -> None:
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(n_layers))

    def forward(self, z0: Tensor) -> Tensor:
        """(B, d) -> (B, L, d)."""
        return torch.stack([linear(z0) for linear in self.maps], dim=1)


TRANSFERS: dict[str, Callable[[int, int], nn.Module]] = {
    "stacked": StackedTransfer,
    "recurrent": RecurrentTransfer,
    "none": NoTransfer,
}


def make_transfer(kind: str, n_layers: int, width: int) -> nn.Module:
    """The transfer called ``kind`` for ``n_layers`` adaptive layers and codes of ``width``.

    Raises:
        ConfigError: the kind is unknown.
    """
    check_known("transfer", kind, TRANSFERS)
    return TRANSFERS[kind](n_layers, width)
