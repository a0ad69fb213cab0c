"""Algebra on batches of edits: inner products, weighted sums and interpolation, in float64, dense or factored.

Only *linear* edits are handled, those whose numbers enter dW and db linearly: dense ones, and factored ones whose factors
all devices share. ``linear`` writes out what is not.

Shapes: A, B, M devices of a batch, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor

from persona.edits import DenseEdit, Edit, FactoredEdit, LayerEdit

# Numbers of a weight multiplied at once, so that wide layers are not copied to float64 as a whole.
_COLUMNS = 1 << 18


def linear(edit: Edit) -> Edit:
    """The same edit with every layer written out whose devices have factors of their own."""
    return Edit(
        {
            name: layer.dense() if isinstance(layer, FactoredEdit) and not layer.shared_factors else layer
            for name, layer in edit.layers.items()
        },
        edit.host,
    )


def to_dtype(edit: Edit, dtype: torch.dtype) -> Edit:
    """The same edit in another precision, shared factors included."""
    layers: dict[str, LayerEdit] = {}
    for name, layer in edit.layers.items():
        parts = {f.name: getattr(layer, f.name) for f in fields(layer)}
        layers[name] = replace(layer, **{k: None if v is None else v.to(dtype) for k, v in parts.items()})
    return Edit(layers, edit.host)


def inner(a: Edit, b: Edit) -> Tensor:
    """(A, B, L) float64 inner products of every pair of devices, layer by layer, weights and biases together."""
    return torch.stack([_layer_inner(layer, b.layers[name]) for name, layer in a.layers.items()], dim=-1)


def combine(edit: Edit, weights: Tensor) -> Edit:
    """(M, B) weights -> M weighted sums of the B devices, in float64."""
    weights = weights.double()
    return to_dtype(edit, torch.float64).map(lambda t: torch.tensordot(weights, t, 1))


def cat(edits: Sequence[Edit]) -> Edit:
    """The devices of several linear edits of one host, one after the other; factored where all share their factors."""
    layers = {name: _cat([edit.layers[name] for edit in edits]) for name in edits[0].layers}
    return Edit(layers, edits[0].host)


def interpolate(a: Edit, b: Edit, share: Tensor) -> Edit:
    """(1 - share) a + share b in float64, one ``share`` (B,) a device."""
    share = share.double()
    return _scale(to_dtype(a, torch.float64), 1 - share) + _scale(to_dtype(b, torch.float64), share)


def _cat(parts: Sequence[LayerEdit]) -> LayerEdit:
    first = parts[0]
    biases = [part.bias for part in parts if part.bias is not None]
    bias = torch.cat(biases) if biases else None
    factored = [part for part in parts if isinstance(part, FactoredEdit)]
    if isinstance(first, FactoredEdit) and len(factored) == len(parts) and all(first.same_factors(p) for p in factored):
        return FactoredEdit(bias=bias, u=first.u, core=torch.cat([p.core for p in factored]), v=first.v)
    return DenseEdit(bias=bias, weight=torch.cat([part.dense().weight for part in parts]))


def _scale(edit: Edit, factor: Tensor) -> Edit:
    return edit.map(lambda t: t * factor.reshape(-1, *[1] * (t.ndim - 1)))


def _layer_inner(a: LayerEdit, b: LayerEdit) -> Tensor:
    if isinstance(a, FactoredEdit):
        product = a.core.double().flatten(1) @ _framed(a, b).flatten(1).mT
    elif isinstance(b, FactoredEdit):
        product = (b.core.double().flatten(1) @ _framed(b, a).flatten(1).mT).mT
    else:
        product = _dot(a.dense().weight.flatten(1), b.dense().weight.flatten(1))
    return product if a.bias is None or b.bias is None else product + a.bias.double() @ b.bias.double().mT


def _framed(frame: FactoredEdit, layer: LayerEdit) -> Tensor:
    """U^T dW V^T, (B, r, r): what of ``layer`` a core of ``frame`` meets in <U S V, dW> = <S, U^T dW V^T>."""
    u, v = frame.u.double(), frame.v.double()
    if isinstance(layer, FactoredEdit):
        return (u.mT @ layer.u.double()) @ layer.core.double() @ (layer.v.double() @ v.mT)
    weights: DenseEdit = layer.dense()
    return torch.stack([(v @ weight.double() @ u).mT for weight in weights.weight])


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """(A, P), (B, P) -> (A, B) in float64."""
    total = torch.zeros(len(a), len(b), dtype=torch.float64, device=a.device)
    for start in range(0, a.shape[1], _COLUMNS):
        columns = slice(start, start + _COLUMNS)
        total += a[:, columns].double() @ b[:, columns].double().mT
    return total
