"""Edit tables: an editor's heads and its prototype bank as plain arrays, for ``persona.cloud``, which has no torch.

Shapes: L layers, d code width, K prototypes, m directions, P entries of a flat edit.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from persona.cloud import FORMAT, FORMAT_VERSION
from persona.coordinates import Coordinates
from persona.editor import ParameterEditor
from persona.edits import Edit
from persona.prototypes.algebra import inner, linear, to_dtype
from persona.prototypes.bank import PrototypeBank
from persona.prototypes.metric import HeadMetric
from persona.storage import tensors_to_bytes


def edit_tables(
    editor: ParameterEditor, bank: PrototypeBank | None = None, coordinates: Coordinates | None = None
) -> bytes:
    """The tables of an editor and, with it, of a bank, as one safetensors message.

    Args:
        editor: whose codes are read.
        bank: of this editor.
        coordinates: of edits, where they are not to be written out.

    Raises:
        MismatchError: the bank was made with another host or editor.
    """
    metric = HeadMetric(editor)
    tensors = {"grams": metric.grams}
    about = {}
    if bank is not None:
        bank.check(metric)
        tensors |= _bank_tensors(metric, bank, Edit.flat if coordinates is None else coordinates.of)
        about = {
            "parent": bank.parent,
            "editor": bank.editor,
            "members": bank.members.tolist(),
            "origin": bank.origin.tolist(),
            "norms": bank.prototype(torch.arange(len(bank))).norm().tolist(),
            "energy": bank.basis.energy.tolist(),
            "metadata": dict(bank.metadata),
        }
    layers: list[list[object]] = [[s.name, s.out_features, s.in_features, s.bias] for s in editor.specs]
    scales: list[float] = editor.weight_scales.tolist()
    if coordinates is not None:
        layers, scales = coordinates.layers(editor.weight_scales)
    header = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "host": editor.host,
        "bank": "" if bank is None else bank.version,
        "layers": layers,
        "bound": {"kind": editor.bound.kind, "tau": editor.bound.tau},
        "scales": scales,
        "weight_norm": metric.weight_norm,
        "about": about,
    }
    return tensors_to_bytes(tensors, header)


def _bank_tensors(metric: HeadMetric, bank: PrototypeBank, flat: Callable[[Edit], Tensor]) -> dict[str, Tensor]:
    """With Q_j = P_j - c: M^T Q_j (L d, K), ||Q_j||^2 (K,), M^T B_i (L d, m), <Q_j, B_i> (K, m), P_j (K, P), B_i (m, P)."""
    offset = to_dtype(linear(bank.prototypes), torch.float64) - metric.constant.expand(len(bank))
    directions = to_dtype(bank.basis.directions, torch.float64)
    return {
        "prototypes": flat(bank.prototypes).float(),
        "square": inner(offset, offset).sum(-1).diagonal(),
        "projected": metric.project(offset).flatten(1).mT,
        "directions": flat(bank.basis.directions).float(),
        "basis": metric.project(directions).flatten(1).mT,
        "start": inner(offset, directions).sum(-1),
    }
