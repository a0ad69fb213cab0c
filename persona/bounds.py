"""Bounds: how far an edit may move a layer's weights.

The radius tau_l of layer l is given relative to the root mean square of the host layer's own weights, so one number fits
layers of any scale. Biases are not bounded.

* ``tanh`` (default): dW <- tau tanh(dW / tau), smooth, never quite saturated;
* ``clip``: dW <- clamp(dW, -tau, tau), the published form, with zero gradient outside;
* ``frobenius``: dW <- dW min(1, tau sqrt(out in) / ||dW||_F), the same radius for the whole matrix; keeps factors factored;
* ``none``: no bound (generation of whole layers, DUET).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from persona.edits import Edit, LayerEdit
from persona.errors import ConfigError, check_known
from persona.wire import BOUNDS

# A tanh counts as saturated where its slope is below 1 %: |x| > artanh(sqrt(0.99)).
_TANH_SATURATION = 2.9932


@dataclass(frozen=True)
class Bound:
    """A kind of bound and its radius ``tau``, in units of the host layer's root-mean-square weight.

    Raises:
        ConfigError: the kind is unknown or the radius is not positive.
    """

    kind: str = "tanh"
    tau: float = 1.0

    def __post_init__(self) -> None:
        check_known("bound", self.kind, BOUNDS)
        if not self.tau > 0:
            raise ConfigError(f"the bound's radius tau is {self.tau}, but it has to be positive")

    def apply(self, edit: Edit, scales: Tensor) -> Edit:
        """The edit inside its bound; ``scales`` (L,) are the layers' root-mean-square weights."""
        if self.kind == "none":
            return edit
        layers = zip(edit.layers.items(), self.tau * scales, strict=True)
        return Edit({name: self._layer(layer, tau) for (name, layer), tau in layers}, edit.host)

    def saturation(self, edit: Edit, scales: Tensor) -> Tensor:
        """(L,) share of entries (``frobenius``: of devices) at which the bound stops the unbounded ``edit``."""
        if self.kind == "none":
            return torch.zeros(len(edit.layers))
        shares = []
        for layer, tau in zip(edit.layers.values(), self.tau * scales, strict=True):
            if self.kind == "frobenius":
                stopped = layer.weight_square_norm() > self._radius(layer, tau).square()
            else:
                stopped = layer.dense().weight.abs() > tau * (_TANH_SATURATION if self.kind == "tanh" else 1.0)
            shares.append(stopped.float().mean())
        return torch.stack(shares)

    def _layer(self, layer: LayerEdit, tau: Tensor) -> LayerEdit:
        if self.kind == "frobenius":
            norm = layer.weight_square_norm().clamp_min(torch.finfo(torch.float32).tiny).sqrt()
            return layer.scale_weight((self._radius(layer, tau) / norm).clamp_max(1.0))
        dense = layer.dense()
        w = dense.weight
        weight = w.clamp(-tau, tau) if self.kind == "clip" else tau * torch.tanh(w / tau)
        return type(dense)(bias=dense.bias, weight=weight)

    @staticmethod
    def _radius(layer: LayerEdit, tau: Tensor) -> Tensor:
        out_features, in_features = layer.shape()
        return tau * math.sqrt(out_features * in_features)
