"""Edits in few numbers: coordinates in which their lengths, differences and bounds are those of the edits themselves.

A layer whose head has a low rank moves in the subspaces of its shared factors alone, dW = U S V. With orthonormal bases Q of their
columns, U = Q_u R_u and V^T = Q_v R_v, the core C = R_u S R_v^T holds all of dW, and ||C|| = ||dW||. A layer of 1,024 x 576 numbers has 64
coordinates at rank 8. Bounds that scale a whole layer scale its core; those that act on entries need the entries themselves.

Shapes: B devices, r rank, P' coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from persona.answering import BIAS, CORE
from persona.editor import LowRankHead, ParameterEditor
from persona.edits import DenseEdit, Edit, FactoredEdit, LayerEdit, LayerSpec

if TYPE_CHECKING:  # the bank makes tables of coordinates
    from persona.prototypes import PrototypeBank

# Bounds that scale dW as a whole.
WHOLE_BOUNDS = ("none", "frobenius")
# Share of the squared length of an edit that may lie outside of the subspaces: rounding.
_OUTSIDE = 1e-5


@dataclass(frozen=True)
class _Core:
    """Orthonormal bases (out, r) and (in, r) of a layer's subspaces."""

    left: Tensor
    right: Tensor

    def of(self, layer: LayerEdit) -> Tensor:
        """The core (B, r, r) of an edit."""
        if isinstance(layer, FactoredEdit):
            return (self.left.mT @ layer.u) @ layer.core @ (layer.v @ self.right)
        return self.left.mT @ layer.dense().weight.mT @ self.right

    def holds(self, layer: LayerEdit) -> bool:
        """Whether nothing of an edit lies outside of the subspaces."""
        whole, inside = layer.weight_square_norm(), self.of(layer).square().sum((1, 2))
        return bool(((whole - inside).abs() <= _OUTSIDE * whole + torch.finfo(whole.dtype).tiny).all())


class Coordinates:
    """The coordinates of an editor's edits, and of those of its prototype bank.

    Args:
        editor: whose heads say in which subspaces edits lie.
        bank: a layer whose prototypes or directions leave the subspaces is written out.
    """

    def __init__(self, editor: ParameterEditor, bank: PrototypeBank | None = None) -> None:
        self.specs = editor.specs
        known = [] if bank is None else [bank.prototypes, bank.basis.directions]
        self._cores: dict[str, _Core | None] = {}
        for spec, head in zip(editor.specs, editor.heads, strict=True):
            core = None
            if isinstance(head, LowRankHead) and editor.bound.kind in WHOLE_BOUNDS:
                left, right = torch.linalg.qr(head.u.detach())[0], torch.linalg.qr(head.v.detach().mT)[0]
                core = _Core(left, right)
                if not all(core.holds(edit.layers[spec.name]) for edit in known):
                    core = None
            self._cores[spec.name] = core

    @property
    def size(self) -> int:
        """P'."""
        shapes = [(*self._shape(spec), spec.out_features if spec.bias else 0) for spec in self.specs]
        return sum(inner * out + bias for inner, out, bias in shapes)

    def _shape(self, spec: LayerSpec) -> tuple[int, int]:
        """Rows and columns of what stands for a layer's weight: dW^T, (in, out), or its core, (r, r)."""
        core = self._cores[spec.name]
        return (spec.in_features, spec.out_features) if core is None else (core.right.shape[1], core.left.shape[1])

    def factors(self) -> dict[str, Tensor]:
        """The bases of all cores: ``<layer>/u`` (out, r) and ``<layer>/v`` (r, in)."""
        found: dict[str, Tensor] = {}
        for name, core in self._cores.items():
            if core is not None:
                found |= {f"{name}/u": core.left, f"{name}/v": core.right.mT}
        return found

    def layers(self, scales: Tensor) -> tuple[list[list[object]], list[float]]:
        """Layers and units of the bound as ``persona.cloud.EditTables`` reads them; a core and its bias are layers of their own.

        Args:
            scales: (L,) unit of the bound of each layer.
        """
        listed: list[list[object]] = []
        units: list[float] = []
        for spec, scale in zip(self.specs, scales.tolist(), strict=True):
            core = self._cores[spec.name]
            if core is None:
                listed.append([spec.name, spec.out_features, spec.in_features, spec.bias])
                units.append(scale)
                continue
            rank = core.left.shape[1]
            listed.append([f"{spec.name}{CORE}", rank, rank, False])
            # The radius of a ball is the unit times the root of the number of entries, of which a core has fewer.
            units.append(scale * (spec.out_features * spec.in_features) ** 0.5 / rank)
            if spec.bias:
                listed.append([f"{spec.name}{BIAS}", spec.out_features, 0, True])
                units.append(scale)
        return listed, units

    def of(self, edit: Edit) -> Tensor:
        """(B, P') of an edit."""
        parts = []
        for name, layer in edit.layers.items():
            core = self._cores[name]
            # As a dense layer holds dW^T, (in, out), a core is held the other way round as well.
            weight = layer.dense().weight if core is None else core.of(layer).mT
            parts.append(weight.flatten(1))
            if layer.bias is not None:
                parts.append(layer.bias)
        return torch.cat(parts, dim=1)

    def edit(self, flat: Tensor, *, written_out: bool = False) -> Edit:
        """Inverse of ``of``: (B, P') -> the edit, its cores in factors, or ``written_out`` as graphs want them."""
        layers: dict[str, LayerEdit] = {}
        start = 0
        for spec in self.specs:
            layers[spec.name], start = self._layer(spec, flat, start, written_out=written_out)
        return Edit(layers)

    def _layer(self, spec: LayerSpec, flat: Tensor, start: int, *, written_out: bool) -> tuple[LayerEdit, int]:
        core = self._cores[spec.name]
        inner, out = self._shape(spec)
        middle = start + inner * out
        stop = middle + (spec.out_features if spec.bias else 0)
        weight, bias = flat[:, start:middle].reshape(-1, inner, out), flat[:, middle:stop] if spec.bias else None
        if core is None:
            return DenseEdit(bias=bias, weight=weight), stop
        if written_out:
            return DenseEdit(bias=bias, weight=core.right @ weight @ core.left.mT), stop
        return FactoredEdit(bias=bias, u=core.left, core=weight.mT.contiguous(), v=core.right.mT.contiguous()), stop
