"""Batch normalisation whose affine parameters can be edited per device, and whose statistics can be re-estimated.

All norms of a host keep their affine parameters in one ``NormBank``: two linear layers from one constant input, the scales
and the shifts of all channels. So the norms are two adaptive layers, whatever their number, and persona's edits apply to
them as to any linear layer.

Shapes: M images, B devices (M = B n, the images of a device together), C channels of a norm, S channels of all norms.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor, nn

SCALE, SHIFT = "norms.scale", "norms.shift"


@dataclass(frozen=True)
class NormState:
    """What all norms of one forward pass share.

    Attributes:
        scale: (B, S) of every device, or (1, S) for all.
        shift: (B, S).
        prior: None takes the running statistics; else the statistics of each device's own images are mixed in, the
            running ones weighing as much as this many images.
    """

    scale: Tensor
    shift: Tensor
    prior: float | None = None


_STATE: ContextVar[NormState | None] = ContextVar("norm_state", default=None)
_PRIOR: ContextVar[float | None] = ContextVar("norm_prior", default=None)


class NormBank(nn.Module):
    """The affine parameters of all norms of a host."""

    def __init__(self, norms: list[nn.BatchNorm2d]) -> None:
        super().__init__()
        total = sum(norm.num_features for norm in norms)
        self.scale, self.shift = nn.Linear(1, total, bias=False), nn.Linear(1, total, bias=False)
        with torch.no_grad():
            self.scale.weight.copy_(torch.cat([norm.weight for norm in norms]).unsqueeze(1))
            self.shift.weight.copy_(torch.cat([norm.bias for norm in norms]).unsqueeze(1))

    def state(self, devices: int, edits: int = 1) -> NormState:
        """The affine parameters under the active edit: of B devices where each has an edit or statistics of its own, else the
        same for all, which is torch's fused kernel.
        """
        prior = _PRIOR.get()
        one = self.scale.weight.new_ones(edits if prior is None else devices, 1)
        # In float32, as the statistics are, also where products are made in less.
        return NormState(self.scale(one).float(), self.shift(one).float(), prior)

    @contextmanager
    def applied(self, devices: int, edits: int = 1) -> Iterator[None]:
        """Normalise with these parameters inside the block: a forward pass of B devices under 1 or B edits."""
        token = _STATE.set(self.state(devices, edits))
        try:
            yield
        finally:
            _STATE.reset(token)


class EditableNorm(nn.Module):
    """Batch normalisation of C channels that takes its affine parameters from the bank, at ``start``."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: nn.BatchNorm2d, start: int) -> None:
        super().__init__()
        self.start, self.channels = start, norm.num_features
        self.eps, self.momentum = norm.eps, 0.1 if norm.momentum is None else norm.momentum
        self.register_buffer("running_mean", norm.running_mean)
        self.register_buffer("running_var", norm.running_var)

    def forward(self, x: Tensor) -> Tensor:
        """(M, C, H, W) -> (M, C, H, W); M is a multiple of the devices of the bank."""
        state = _STATE.get()
        if state is None:
            raise RuntimeError("a norm runs inside of NormBank.applied only")
        own = slice(self.start, self.start + self.channels)
        scale, shift = state.scale[:, own], state.shift[:, own]
        if self.training and len(scale) == 1:
            return self._batch_norm(x, scale[0], shift[0])
        if self.training:
            return _per_device(self._batch_norm(x, None, None), scale, shift)
        mean, var = self._statistics(x, state.prior, len(scale))
        if len(scale) == 1 and not mean.requires_grad:
            # One set of parameters for all images: torch's fused kernel, which takes statistics as constants.
            return nn.functional.batch_norm(x, mean[0], var[0], scale[0], shift[0], False, 0.0, self.eps)
        factor = scale * torch.rsqrt(var + self.eps)
        return _per_device(x, factor, shift - mean * factor)

    def _batch_norm(self, x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
        """By the statistics of the batch, which the running ones follow."""
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, scale, shift, True, self.momentum, self.eps
        )

    def _statistics(self, x: Tensor, prior: float | None, devices: int) -> tuple[Tensor, Tensor]:
        """Mean and variance, (1, C) or (B, C)."""
        mean, var = self.running_mean.unsqueeze(0), self.running_var.unsqueeze(0)
        if prior is None:
            return mean, var
        # The images of a device, mixed with the running statistics as in Schneider et al., NeurIPS'20.
        rows = x.reshape(devices, -1, *x.shape[1:])
        weight = rows.shape[1] / (rows.shape[1] + prior)
        own_mean, own_var = rows.mean((1, 3, 4)), rows.var((1, 3, 4), unbiased=False)
        return mean + weight * (own_mean - mean), var + weight * (own_var - var)


def _per_device(x: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
    """Images (M, C, H, W) times ``factor`` plus ``offset``, both (B, C)."""
    rows = x.reshape(len(factor), -1, *x.shape[1:])
    return torch.addcmul(offset[:, None, :, None, None], rows, factor[:, None, :, None, None]).reshape(x.shape)


@contextmanager
def own_statistics(prior: float) -> Iterator[None]:
    """Normalise by each device's own images inside the block, the running statistics weighing as ``prior`` images."""
    token = _PRIOR.set(prior)
    try:
        yield
    finally:
        _PRIOR.reset(token)


def make_editable(body: nn.Module) -> NormBank:
    """Swap all batch norms of ``body`` for editable ones, in the order of the module; their bank."""
    names = [name for name, child in body.named_modules() if isinstance(child, nn.BatchNorm2d)]
    norms = [body.get_submodule(name) for name in names]
    bank = NormBank([norm for norm in norms if isinstance(norm, nn.BatchNorm2d)])
    start = 0
    for name, norm in zip(names, norms, strict=True):
        assert isinstance(norm, nn.BatchNorm2d)
        body.set_submodule(name, EditableNorm(norm, start))
        start += norm.num_features
    return bank
