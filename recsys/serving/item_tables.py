"""Item tables in 8 or 4 bits a number, without torch: rows of whole numbers, each with a scale and a minimum of its own.

    x = low + scale * code,   code in 0 .. 2^bits - 1,   |error| about scale / 2

Row-wise min-max quantisation, as TorchRec's quantised embeddings have it, but with scale and minimum in float16 at 8 bits as well:
a row of width 32 takes 36 bytes at 8 bits and 20 at 4 bits, instead of 128.

Shapes: V rows, d width, n rows asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from persona.errors import DataError, FormatError, check_known

FloatArray = NDArray[np.float32]

BITS = {"int8": 8, "int4": 4}
KINDS = ("float32", *BITS)
# Rows that are quantised at once.
_BLOCK = 1 << 16


class Vectors(Protocol):
    """A table of rows of one width, however it is kept."""

    def __len__(self) -> int: ...

    @property
    def width(self) -> int:
        """Width d of a row."""

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""

    def rows(self, index: slice | NDArray[np.integer]) -> FloatArray:
        """Some rows, (n,) or a slice -> (n, d) float32."""

    def tensors(self) -> dict[str, NDArray[Any]]:
        """What ``from_tensors`` reads."""


@dataclass(frozen=True)
class FloatTable:
    """Rows as they are.

    Attributes:
        values: (V, d) float32.
    """

    values: FloatArray

    def __len__(self) -> int:
        return len(self.values)

    @property
    def width(self) -> int:
        """Width d of a row."""
        return int(self.values.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.values.nbytes

    def rows(self, index: slice | NDArray[np.integer]) -> FloatArray:
        """Some rows (n, d)."""
        found: FloatArray = self.values[index]
        return found

    def tensors(self) -> dict[str, NDArray[Any]]:
        """The one array."""
        return {"values": self.values}


@dataclass(frozen=True)
class QuantisedTable:
    """Rows of whole numbers.

    Attributes:
        codes: (V, d) uint8; with 4 bits (V, (d + 1) // 2), two numbers a byte, the lower half first.
        scale: (V,) float16, the step between two codes; 1 where it would be too small for float16, and the row one number.
        low: (V,) float16, the minimum of every row.
        bits: 8 or 4.
        width: d.
    """

    codes: NDArray[np.uint8]
    scale: NDArray[np.float16]
    low: NDArray[np.float16]
    bits: int
    width: int

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.codes.nbytes + self.scale.nbytes + self.low.nbytes

    def rows(self, index: slice | NDArray[np.integer]) -> FloatArray:
        """Some rows (n, d), as near as the bits allow."""
        codes = self.codes[index]
        if self.bits == 4:
            wide = np.empty((len(codes), 2 * codes.shape[1]), dtype=np.uint8)
            wide[:, 0::2], wide[:, 1::2] = codes & 15, codes >> 4
            codes = wide[:, : self.width]
        found = codes.astype(np.float32)
        found *= self.scale[index].astype(np.float32)[:, None]
        found += self.low[index].astype(np.float32)[:, None]
        return found

    def tensors(self) -> dict[str, NDArray[Any]]:
        """The arrays, and bits and width as another one."""
        return {
            "codes": self.codes,
            "scale": self.scale,
            "low": self.low,
            "form": np.array([self.bits, self.width], dtype=np.int64),
        }


def as_table(values: FloatArray, kind: str) -> Vectors:
    """A table (V, d) in one of ``KINDS``.

    Raises:
        ConfigError: unknown kind.
        DataError: a value is not finite, or too large for float16.
    """
    check_known("table", kind, KINDS)
    values = np.ascontiguousarray(values, dtype=np.float32)
    if kind == "float32":
        return FloatTable(values)
    if not np.isfinite(values).all() or np.abs(values).max(initial=0) > np.finfo(np.float16).max:
        raise DataError("a table has values that are not finite or beyond 65504, which cannot be quantised")
    return _quantised(values, BITS[kind])


def to_bytes(tables: Mapping[str, Vectors]) -> bytes:
    """Named tables as one safetensors message."""
    from safetensors.numpy import save

    parts = {f"{name}/{part}": t for name, table in tables.items() for part, t in table.tensors().items()}
    return save({name: np.ascontiguousarray(tensor) for name, tensor in parts.items()})


def from_bytes(data: bytes) -> dict[str, Vectors]:
    """Inverse of ``to_bytes``.

    Raises:
        FormatError: the message is damaged, or its parts make no tables.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        parts = load(data)
    except (SafetensorError, ValueError) as error:
        raise FormatError(f"the item tables are damaged ({error}): release the bundle again") from error
    named: dict[str, dict[str, NDArray[Any]]] = {}
    for name, tensor in parts.items():
        table, _, part = name.partition("/")
        named.setdefault(table, {})[part] = tensor
    return {table: from_tensors(tensors) for table, tensors in named.items()}


def from_tensors(tensors: Mapping[str, NDArray[Any]]) -> Vectors:
    """Inverse of ``tensors``.

    Raises:
        FormatError: parts are missing or do not fit together.
    """
    if set(tensors) == {"values"}:
        return FloatTable(tensors["values"])
    if set(tensors) != {"codes", "scale", "low", "form"} or tensors["form"].shape != (2,):
        raise FormatError(
            f"a table has the parts {', '.join(sorted(tensors))}, which make none: release the bundle again"
        )
    bits, width = tensors["form"].tolist()
    codes, scale, low = (tensors[name] for name in ("codes", "scale", "low"))
    if bits not in BITS.values() or codes.shape != (len(scale), _bytes(width, bits)) or low.shape != scale.shape:
        raise FormatError("the parts of a table do not fit together: release the bundle again")
    return QuantisedTable(codes, scale, low, bits, width)


def _bytes(width: int, bits: int) -> int:
    """Bytes of the codes of a row."""
    return width if bits == 8 else (width + 1) // 2


def _quantised(values: FloatArray, bits: int) -> QuantisedTable:
    levels = 2**bits - 1
    count, width = values.shape
    codes = np.empty((count, _bytes(width, bits)), dtype=np.uint8)
    scales, lows = np.empty(count, dtype=np.float16), np.empty(count, dtype=np.float16)
    for start in range(0, count, _BLOCK):
        rows = slice(start, start + _BLOCK)
        block = values[rows]
        # Codes are counted from the rounded minimum in rounded steps, so that rounding these adds no error of its own.
        low = block.min(axis=1).astype(np.float16)
        scale = ((block.max(axis=1) - low.astype(np.float32)) / levels).astype(np.float16)
        scale[scale <= 0] = 1
        steps = (block - low.astype(np.float32)[:, None]) / scale.astype(np.float32)[:, None]
        found = np.clip(np.rint(steps), 0, levels).astype(np.uint8)
        if bits == 4:
            if width % 2:
                found = np.pad(found, ((0, 0), (0, 1)))
            found = found[:, 0::2] | (found[:, 1::2] << 4)
        codes[rows], scales[rows], lows[rows] = found, scale, low
    return QuantisedTable(codes, scales, lows, bits, width)
