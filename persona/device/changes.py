"""Edits as a device handles them: read from bytes, checked, bounded, all in numpy.

The formats are those of ``persona.edit_format``, the bounds those of ``persona.wire``.

Shapes: K edits of a stack, in/out features of a layer, r rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from persona.arrays import Arrays, Floats, arrays_from_bytes
from persona.errors import FormatError, MismatchError
from persona.wire import EDIT_FORMAT, EDIT_VERSION, bound

_TYPES = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(np.int8))


@dataclass(frozen=True)
class Layer:
    """Name and shape of an adaptive layer."""

    name: str
    in_features: int
    out_features: int
    bias: bool

    @property
    def inputs(self) -> list[str]:
        """Names of the layer's inputs in a graph."""
        return [f"{self.name}.weight", *([f"{self.name}.bias"] if self.bias else [])]


@dataclass(frozen=True)
class Change:
    """What one edit does to one layer: ``weight`` (in, out), ``bias`` (out,) or ``None``; float32 or float64."""

    weight: NDArray[Any]
    bias: NDArray[Any] | None

    def __add__(self, other: Change) -> Change:
        bias = None if self.bias is None or other.bias is None else self.bias + other.bias
        return Change(self.weight + other.weight, bias)

    def square_norm(self) -> float:
        """Squared norm of weight and bias together; not finite if an entry is not."""
        total = float(np.square(self.weight, dtype=np.float64).sum())
        return total if self.bias is None else total + float(np.square(self.bias, dtype=np.float64).sum())


Changes = dict[str, Change]


@dataclass(frozen=True)
class Stack:
    """K edits of one layer as they were sent: ``weight`` (K, in, out), or factors ``u``, ``core`` (K, r, r), ``v``.

    Factors are (out, r) and (r, in), shared by all K, or have a leading K.
    """

    bias: NDArray[Any] | None
    weight: NDArray[Any] | None = None
    u: NDArray[Any] | None = None
    core: NDArray[Any] | None = None
    v: NDArray[Any] | None = None

    def __len__(self) -> int:
        part = self.weight if self.weight is not None else self.core
        assert part is not None
        return len(part)

    def at(self, index: int) -> Change:
        """One of the edits, written out."""
        bias = None if self.bias is None else self.bias[index]
        if self.weight is not None:
            return Change(self.weight[index], bias)
        assert self.u is not None
        assert self.core is not None
        assert self.v is not None
        u, v = (part[index] if part.ndim == 3 else part for part in (self.u, self.v))
        return Change((u @ self.core[index] @ v).T, bias)

    def combined(self, weights: NDArray[np.float64]) -> Change:
        """The sum of the first len(weights) edits, weighted, in float64; factors have to be shared."""
        m = len(weights)
        bias = None if self.bias is None else weights @ self.bias[:m].astype(np.float64)
        if self.weight is not None:
            return Change(np.tensordot(weights, self.weight[:m].astype(np.float64), 1), bias)
        assert self.u is not None
        assert self.core is not None
        assert self.v is not None
        core = np.tensordot(weights, self.core[:m].astype(np.float64), 1)
        return Change((self.u @ core @ self.v).T, bias)


def decode_edits(data: bytes, layers: Iterable[Layer], host: str, source: str, count: int = 1) -> dict[str, Stack]:
    """Read and check an encoded edit of ``count`` devices.

    Raises:
        FormatError: it is damaged, of another version, or its parts have other types or shapes than the layers.
        MismatchError: it was made for another host.
    """
    arrays, header = arrays_from_bytes(data, source)
    if header.get("format") != EDIT_FORMAT or header.get("version") != EDIT_VERSION:
        raise FormatError(
            f"{source} has format {header.get('format')!r} version {header.get('version')!r}, but an edit of version "
            f"{EDIT_VERSION} is needed: update the device's release, or ask for the edit again"
        )
    if header.get("host") != host:
        raise MismatchError(
            f"{source} was made for the host {str(header.get('host'))[:12] or '(none)'}, not for {host[:12]}: ask for an "
            "edit of this host"
        )
    layers = list(layers)
    kinds = header.get("layers")
    if not isinstance(kinds, dict) or list(kinds) != [layer.name for layer in layers]:
        raise FormatError(f"{source} is not an edit of the layers of this host: ask for it again")
    with np.errstate(all="ignore"):  # what overflows is refused by the caller, not warned of
        return {layer.name: _stack(arrays, layer, kinds[layer.name], source, count) for layer in layers}


def _stack(arrays: Arrays, layer: Layer, kind: Any, source: str, count: int) -> Stack:
    bias = _part(arrays, f"{layer.name}/bias", source) if layer.bias else None
    if kind == "dense":
        stack = Stack(bias, weight=_part(arrays, f"{layer.name}/weight", source))
    elif kind == "factored":
        u, core, v = (_part(arrays, f"{layer.name}/{part}", source) for part in ("u", "core", "v"))
        stack = Stack(bias, u=u, core=core, v=v)
    else:
        raise FormatError(f"{source} has an unknown kind of edit for the layer {layer.name}: ask for it again")
    if not _fits(stack, layer, count):
        raise FormatError(
            f"{source} has other shapes than the layer {layer.name} ({layer.out_features} x {layer.in_features}): ask for "
            "an edit of this host"
        )
    return stack


def _fits(stack: Stack, layer: Layer, count: int) -> bool:
    if stack.bias is not None and stack.bias.shape != (count, layer.out_features):
        return False
    if stack.weight is not None:
        return stack.weight.shape == (count, layer.in_features, layer.out_features)
    assert stack.u is not None
    assert stack.core is not None
    assert stack.v is not None
    rank = stack.core.shape[-1] if stack.core.ndim == 3 else 0
    lead = (count,) if stack.u.ndim == 3 else ()
    return (
        0 < rank <= min(layer.in_features, layer.out_features)
        and stack.core.shape == (count, rank, rank)
        and stack.u.shape == (*lead, layer.out_features, rank)
        and stack.v.shape == (*lead, rank, layer.in_features)
    )


def _part(arrays: Mapping[str, NDArray[Any]], key: str, source: str) -> NDArray[Any]:
    """One tensor of an edit in float32, scaled back where it was sent in int8."""
    part, scale = arrays.get(key), arrays.get(f"{key}/scale")
    if part is None or part.dtype not in _TYPES:
        raise FormatError(f"{source} lacks {key!r}, or has it in a type that edits do not have: ask for it again")
    if scale is None:
        if part.dtype == np.int8:
            raise FormatError(f"{source} lacks the scale of {key!r}: ask for it again")
        return part.astype(np.float32, copy=False)
    if part.ndim == 0 or scale.shape != part.shape[:1] or scale.dtype != np.float32:
        raise FormatError(f"{source} has a scale of {key!r} that does not fit: ask for it again")
    scaled: Floats = part.astype(np.float32) * scale.reshape(-1, *[1] * (part.ndim - 1))
    return scaled


@dataclass(frozen=True)
class Region:
    """Where edits may lie: the bound of each layer, and the largest norm of a whole edit that is trusted.

    Attributes:
        kind: ``tanh``, ``clip``, ``frobenius`` or ``none``.
        taus: radius of the bound of each layer, in the layer's own units.
        largest: norm of a bounded edit, weights and biases together, beyond which it is refused.
    """

    kind: str
    taus: dict[str, float]
    largest: float

    def bounded(self, changes: Changes) -> Changes:
        """Unbounded changes inside the bound, in float32."""
        return {name: self._layer(change, self.taus[name]) for name, change in changes.items()}

    def check(self, changes: Changes) -> None:
        """Refuse bounded changes that are not finite or too large.

        Raises:
            FormatError: an entry is not finite, or the norm is beyond ``largest``.
        """
        norm = sum(change.square_norm() for change in changes.values()) ** 0.5
        if not np.isfinite(norm):
            raise FormatError("this edit is not finite, so it is not used: ask for it again")
        if norm > self.largest:
            raise FormatError(
                f"this edit has a norm of {norm:.3g}, beyond the {self.largest:.3g} that this host trusts, so it is not "
                "used: ask for it again"
            )

    def _layer(self, change: Change, tau: float) -> Change:
        weight: Floats = change.weight.astype(np.float32)
        bias = None if change.bias is None else change.bias.astype(np.float32)
        norm = np.float64(np.linalg.norm(weight)) if self.kind == "frobenius" else None
        bound(weight, self.kind, float(np.float32(tau)), norm)
        return Change(weight, bias)
