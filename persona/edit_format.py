"""Edits as bytes and files: safetensors in float32, float16 or int8, always with the digest of their host.

int8 is symmetric with one scale a device and tensor: q = round(x / s), s = max|x| / 127, so the error of an entry is at most
s / 2.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from persona.edits import DenseEdit, Edit, FactoredEdit, LayerEdit
from persona.errors import FormatError, check_known
from persona.storage import load_tensors, save_tensors, tensors_from_bytes, tensors_to_bytes
from persona.wire import EDIT_FORMAT, EDIT_VERSION, edit_header

Precision = Literal["float32", "float16", "int8"]
PRECISIONS = ("float32", "float16", "int8")
_KINDS: dict[str, type[LayerEdit]] = {"dense": DenseEdit, "factored": FactoredEdit}


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """(B, ...) float -> (B, ...) int8 and (B,) float32 scales, one scale a device."""
    scale = x.detach().flatten(1).abs().amax(1).float() / 127
    safe = scale.clamp_min(torch.finfo(torch.float32).tiny)
    q = (x.detach() / safe.reshape(-1, *[1] * (x.ndim - 1))).round().clamp(-127, 127)
    return q.to(torch.int8), scale


def dequantise(q: Tensor, scale: Tensor) -> Tensor:
    """Inverse of ``quantise`` up to half a step."""
    return q.float() * scale.reshape(-1, *[1] * (q.ndim - 1))


def encode_edit(edit: Edit, precision: Precision = "float32") -> bytes:
    """The edit as one safetensors message."""
    return tensors_to_bytes(*_pack(edit, precision))


def decode_edit(data: bytes, host: str | None = None) -> Edit:
    """Inverse of ``encode_edit``, in float32.

    Args:
        data: what ``encode_edit`` returned.
        host: digest of the host the edit is wanted for.

    Raises:
        FormatError: the message is damaged or of an unknown version.
        MismatchError: the edit was made for another host than ``host``.
    """
    return _unpack(*tensors_from_bytes(data, "this edit"), "this edit", host)


def save_edit(path: Path, edit: Edit, precision: Precision = "float32") -> None:
    """Write the edit to one file, atomically."""
    save_tensors(path, *_pack(edit, precision))


def load_edit(path: Path, host: str | None = None) -> Edit:
    """Read an edit in float32; ``host`` and errors as in ``decode_edit``."""
    return _unpack(*load_tensors(path), str(path), host)


def _pack(edit: Edit, precision: Precision) -> tuple[dict[str, Tensor], dict[str, Any]]:
    check_known("precision", precision, PRECISIONS)
    tensors: dict[str, Tensor] = {}
    kinds = {}
    for name, layer in edit.layers.items():
        kinds[name] = "dense" if isinstance(layer, DenseEdit) else "factored"
        for part in fields(layer):
            value = getattr(layer, part.name)
            if value is None:
                continue
            key = f"{name}/{part.name}"
            if precision == "int8" and value.shape[0] == edit.batch_size and (value.ndim == 3 or part.name == "bias"):
                tensors[key], tensors[f"{key}/scale"] = quantise(value)
            else:
                tensors[key] = value.to(torch.float16) if precision == "float16" else value.float()
    return tensors, edit_header(edit.host, kinds, precision)


def _unpack(tensors: dict[str, Tensor], header: dict[str, Any], source: str, host: str | None) -> Edit:
    if header.get("format") != EDIT_FORMAT or header.get("version") != EDIT_VERSION:
        raise FormatError(
            f"{source} has format {header.get('format')!r} version {header.get('version')!r}, "
            f"but an edit of version {EDIT_VERSION} is needed: make it again with this release"
        )
    layers: dict[str, LayerEdit] = {}
    try:
        for name, kind in header["layers"].items():
            cls = _KINDS[kind]
            layers[name] = cls(**{part.name: _tensor(tensors, f"{name}/{part.name}") for part in fields(cls)})
            layers[name].shape()
        edit = Edit(layers, header["host"])
    except (KeyError, AttributeError, IndexError, TypeError) as error:
        raise FormatError(f"{source} lacks a part of the edit ({error}): fetch it again") from error
    if host is not None:
        edit.check_host(host)
    return edit


def _tensor(tensors: dict[str, Tensor], key: str) -> Tensor | None:
    if f"{key}/scale" in tensors:
        return dequantise(tensors[key], tensors[f"{key}/scale"])
    value = tensors.get(key)
    return None if value is None else value.float()
