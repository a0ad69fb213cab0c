"""A prototype as a module, so that it can be specialised by gradient descent on the rows of its members."""

from __future__ import annotations

from torch import Tensor, nn

from persona.bounds import Bound
from persona.edits import Edit


class TrainablePrototype(nn.Module):
    """One unbounded edit with gradients.

    Args:
        prototype: unbounded, batch 1.
        bound: how it is bounded before it is applied.
        weight_scales: (L,) root-mean-square weights of the host's layers, the bound's unit.

    Example::

        prototype = TrainablePrototype(bank.prototypes[0], bank.bound, bank.weight_scales)
        loss = ...  # of a host under prototype()
        trained = prototype.unbounded().detach()
    """

    weight_scales: Tensor

    def __init__(self, prototype: Edit, bound: Bound, weight_scales: Tensor) -> None:
        super().__init__()
        self.specs, self.host, self.bound = prototype.specs, prototype.host, bound
        self.flat = nn.Parameter(prototype.flat().detach().float().clone())
        self.register_buffer("weight_scales", weight_scales.clone())

    def unbounded(self) -> Edit:
        """The edit before its bound, dense, batch 1."""
        return Edit.from_flat(self.flat, self.specs, self.host)

    def forward(self) -> Edit:
        """The bounded edit, batch 1, that every member applies."""
        return self.bound.apply(self.unbounded(), self.weight_scales)
