"""The cloud's side of an edit without torch: codes in, prototypes, edits and messages out.

A service answers from graphs and from these tables alone, so that it starts in a second and stays small. The numbers are
those of ``persona.prototypes.Server`` and ``persona.bounds.Bound``; ``persona.prototypes.tables`` writes them out at release.

Do no harm: an edit that is not finite, or outside its trust region (``persona.wire``), is never used.

Shapes: B devices, L layers, d code width, K prototypes, m directions, P entries of a flat edit (per layer dW^T, then db).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from persona.arrays import arrays_from_bytes, arrays_to_bytes
from persona.errors import FormatError
from persona.wire import (
    LEVELS,
    MAX_COEFFICIENTS,
    NOT_FINITE,
    NOT_TRUSTED,
    TIE,
    Doubles,
    Floats,
    bound,
    dequantise,
    edit_header,
    encode_remainder,
    quantise,
    trust_radius,
)

FORMAT, FORMAT_VERSION = "edit tables", 1

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Layer:
    """An adaptive layer in a flat edit: its weights are [start, middle), its biases [middle, stop)."""

    name: str
    out_features: int
    in_features: int
    start: int
    middle: int
    stop: int
    tau: float


@dataclass(frozen=True)
class Chosen:
    """What B devices apply.

    Attributes:
        edits: (B, P) float32, bounded; zero at level ``host``.
        levels: (B,) level of every device's edit.
        reasons: (B,) why it is a lower one than was asked for, empty where it is not.
        norms: (B,) Frobenius norms.
        prototypes: (B,) nearest prototype, ``None`` without a bank.
        distances: (B, K) norm of the remaining edit from every prototype, ``None`` without a bank.
    """

    edits: Floats
    levels: list[str]
    reasons: list[str]
    norms: Doubles
    prototypes: Indices | None
    distances: Doubles | None


class EditTables:
    """Assignment, serving levels and messages from plain arrays.

    Args:
        tensors: by the names that ``persona.prototypes.tables`` gives them.
        header: layers, bound, digests.

    Attributes:
        host: digest of the host whose edits these are.
        bank: version of the prototype bank, empty without one.
        about: what is told of the bank: members, parent, metadata.
        trust_radius: the largest norm of an edit that is used.

    Raises:
        FormatError: a part is missing or does not fit the others.
    """

    def __init__(self, tensors: Mapping[str, NDArray[Any]], header: Mapping[str, Any]) -> None:
        try:
            self.host: str = header["host"]
            self.bank: str = header["bank"]
            self.about: dict[str, Any] = dict(header["about"])
            self.bound: str = header["bound"]["kind"]
            self.layers = _layers(header["layers"], header["bound"]["tau"], header["scales"])
            weight_norm = float(header["weight_norm"])
            self._has_bank = bool(self.bank)
            if self._has_bank:
                self.prototypes: Floats = tensors["prototypes"]
                self._square: Doubles = tensors["square"]
                # One product measures codes against the prototypes and against themselves.
                self._measure: Doubles = np.hstack([tensors["projected"], _block_diagonal(tensors["grams"])])
                self._directions: Doubles = tensors["directions"].astype(np.float64)
                self._basis: Doubles = tensors["basis"]
                self._start: Doubles = tensors["start"]
        except (KeyError, TypeError) as error:
            raise FormatError(f"the edit tables lack {error}: release the bundle again") from error
        self.size = self.layers[-1].stop
        if self._has_bank and not self.prototypes.shape[1] == self._directions.shape[1] == self.size:
            raise FormatError("the edit tables mix the layers of two hosts: release the bundle again")
        self.trust_radius = trust_radius(self.bound, float(header["bound"]["tau"]), weight_norm)

    @classmethod
    def from_bytes(cls, data: bytes) -> EditTables:
        """Tables as a release stores them.

        Raises:
            FormatError: the bytes are damaged or of another version.
        """
        tensors, header = arrays_from_bytes(data, "the file of edit tables")
        if header.get("format") != FORMAT or header.get("version") != FORMAT_VERSION:
            raise FormatError(
                f"the edit tables have format {header.get('format')!r} version {header.get('version')!r}, but "
                f"{FORMAT!r} version {FORMAT_VERSION} is needed: release the bundle again"
            )
        return cls(tensors, header)

    @property
    def levels(self) -> tuple[str, ...]:
        """The serving levels that these tables can make."""
        return LEVELS if self._has_bank else ("host", "edit")

    def square_distances(self, codes: Doubles) -> tuple[Doubles, Doubles]:
        """(B, L, d) -> (B, K) squared norms of the remaining edits, and (B, 1) the size of the numbers they are made of."""
        flat = codes.reshape(len(codes), -1)
        measured = flat @ self._measure
        count = len(self._square)
        own = np.einsum("bi,bi->b", measured[:, count:], flat).clip(0)[:, None]
        return (own + self._square - 2 * measured[:, :count]).clip(0), own + self._square.max()

    def assign(self, codes: Floats) -> tuple[Indices, Doubles]:
        """(B, L, d) -> (B,) nearest prototype, ties to the lowest, and (B, K) distances to all of them."""
        square, scale = self.square_distances(codes.astype(np.float64))
        tied = square <= square.min(axis=1, keepdims=True) + TIE * scale
        return tied.argmax(axis=1), np.sqrt(square)

    def coefficients(self, codes: Floats, prototypes: Indices) -> Doubles:
        """(B, L, d) and (B,) -> (B, m) remaining edits along the basis, as many as a message holds."""
        flat = codes.reshape(len(codes), -1).astype(np.float64)
        return (flat @ self._basis - self._start[prototypes])[:, :MAX_COEFFICIENTS]

    def bounded(self, edits: NDArray[Any]) -> Floats:
        """(B, P) unbounded -> (B, P) inside the bound, a new array."""
        bounded = edits.astype(np.float32)
        for layer in self.layers:
            weights = bounded[:, layer.start : layer.middle]
            norms = np.linalg.norm(weights, axis=1, keepdims=True) if self.bound == "frobenius" else None
            bound(weights, self.bound, layer.tau, norms)
        return bounded

    def choose(self, codes: Floats, unbounded: Floats, levels: Sequence[str]) -> Chosen:
        """What every device applies at the level it asked for, or at the next that can be trusted.

        Args:
            codes: (B, L, d).
            unbounded: (B, P) the editor's own edits.
            levels: (B,) of ``self.levels``.
        """
        with np.errstate(all="ignore"):  # codes that are not finite are refused below, not warned of
            prototypes, distances = self.assign(codes) if self._has_bank else (None, None)
            edits = self._wanted(levels, codes, unbounded, prototypes)
            reasons, norms = self._refused(edits, codes)
            reasons = ["" if level == "host" else reason for level, reason in zip(levels, reasons, strict=True)]
            used, failed = list(levels), [i for i, reason in enumerate(reasons) if reason]
            if self._has_bank and (rows := [i for i in failed if levels[i] != "prototype"]):
                edits[rows] = self._edits("prototype", rows, codes, unbounded, prototypes)
                again, norms[rows] = self._refused(edits[rows], codes[rows])
                saved = [i for i, reason in zip(rows, again, strict=True) if not reason]
                used = ["prototype" if i in saved else level for i, level in enumerate(used)]
                failed = [i for i in failed if i not in saved]
            edits[failed], norms[failed] = 0.0, 0.0
            used = ["host" if i in failed else level for i, level in enumerate(used)]
        return Chosen(edits, used, reasons, norms, prototypes, distances)

    def remainder_message(self, prototype: int, coefficients: Doubles) -> bytes:
        """The message of level ``basis`` to one device: (m,) coefficients in int8, at most 64 bytes."""
        steps, scales = quantise(coefficients[None])
        return encode_remainder(self.bank, prototype, steps[0], scales[0])

    def full_message(self, unbounded: Floats) -> bytes:
        """(P,) -> the whole edit in float32, as ``persona.edit_format`` reads it."""
        tensors = {}
        for layer in self.layers:
            shape = (1, layer.in_features, layer.out_features)
            tensors[f"{layer.name}/weight"] = unbounded[layer.start : layer.middle].reshape(shape)
            if layer.stop > layer.middle:
                tensors[f"{layer.name}/bias"] = unbounded[None, layer.middle : layer.stop]
        kinds = {layer.name: "dense" for layer in self.layers}
        return arrays_to_bytes(tensors, edit_header(self.host, kinds, "float32"))

    def _wanted(self, levels: Sequence[str], codes: Floats, unbounded: Floats, prototypes: Indices | None) -> Floats:
        """The bounded edits of all rows, each at its own level, whether they can be trusted or not."""
        distinct = set(levels)
        if len(distinct) == 1 and "host" not in distinct:  # the common case, without copies of rows
            return self._edits(levels[0], slice(None), codes, unbounded, prototypes)
        edits = np.zeros((len(codes), self.size), dtype=np.float32)
        for level in distinct - {"host"}:
            rows = [i for i, wanted in enumerate(levels) if wanted == level]
            edits[rows] = self._edits(level, rows, codes, unbounded, prototypes)
        return edits

    def _edits(
        self, level: str, rows: list[int] | slice, codes: Floats, unbounded: Floats, prototypes: Indices | None
    ) -> Floats:
        """The bounded edits of some rows at one level above ``host``."""
        if level == "edit" or prototypes is None:
            return self.bounded(unbounded[rows])
        nearest = prototypes[rows]
        if level == "prototype":
            return self.bounded(self.prototypes[nearest])
        sent = dequantise(*quantise(self.coefficients(codes[rows], nearest)))
        remaining = sent.astype(np.float64) @ self._directions[: sent.shape[1]]
        return self.bounded(self.prototypes[nearest] + remaining)

    def _refused(self, edits: Floats, codes: Floats) -> tuple[list[str], Doubles]:
        """Why every edit must not be used, empty where it may, and its norm."""
        norms = np.sqrt(np.einsum("bp,bp->b", edits, edits)).astype(np.float64)
        finite = np.isfinite(norms) & np.isfinite(codes).all(axis=(1, 2))
        sound = finite & (norms <= self.trust_radius)
        if sound.all():
            return [""] * len(edits), norms
        reasons = np.where(finite, np.where(sound, "", NOT_TRUSTED), NOT_FINITE)
        return reasons.tolist(), norms


def _block_diagonal(blocks: Doubles) -> Doubles:
    """(L, d, d) -> (L d, L d) with the blocks on the diagonal."""
    count, width, _ = blocks.shape
    whole = np.zeros((count, width, count, width))
    whole[np.arange(count), :, np.arange(count)] = blocks
    return whole.reshape(count * width, count * width)


def _layers(listed: Sequence[Sequence[Any]], tau: float, scales: Sequence[float]) -> tuple[Layer, ...]:
    layers, start = [], 0
    for (name, out_features, in_features, bias), scale in zip(listed, scales, strict=True):
        middle = start + out_features * in_features
        stop = middle + (out_features if bias else 0)
        layers.append(Layer(name, out_features, in_features, start, middle, stop, tau * scale))
        start = stop
    return tuple(layers)
