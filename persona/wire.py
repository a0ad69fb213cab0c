"""What cloud and device agree on: names of serving levels, bytes of messages, rounding, bounds, and the region that is trusted.

numpy alone, so that a service and a device read it without torch; the torch side converts at its edge. How much of an edit a
device receives, from nothing to all of it:

    level       the device applies                                     on the wire
    host        nothing                                                0 bytes
    prototype   P_j                                                    1 byte, its index
    basis       P_j + the remaining edit in the shared basis, int8     at most 64 bytes
    edit        E(x)                                                   an encoded edit, float32

A message of level ``edit`` is called ``full``. Within a session that agreed on a bank version, a prototype is its index. A
remaining edit in the shared basis is a message that stands for itself (numbers little-endian):

    byte   size  field
    0      1     "P"
    1      1     version of this layout, 1
    2      8     first bytes of the bank's version (SHA-256)
    10     1     index of the prototype
    11     1     m, number of coefficients
    12     4     scale s, float32
    16     m     coefficients, int8: the edit has s q_i along direction i
    16+m   4     CRC-32 of everything before

All coefficients share one scale, s = max|c| / 127: directions are orthonormal, so an equal step in each of them makes the
error of the edit smallest for its largest coefficient; each errs by at most s / 2.

Every level is unbounded first and bounded last, so that all of them approach the same edit. The bound keeps weights, but not
biases, near the host's. The region that is trusted is a ball of ``TRUST`` times the radius that the bound allows all weights
together; an edit outside of it, or one that is not finite, is never used.

Shapes: B devices, m coefficients.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from persona.errors import FormatError, MismatchError, check_known

# What answers, and what a message is called.
LEVELS = ("host", "prototype", "basis", "edit")
MESSAGE_LEVELS = ("host", "prototype", "basis", "full")

LAYOUT = 1
PREFIX_BYTES = 8
MAX_BYTES = 64
_HEADER = struct.Struct(f"<cB{PREFIX_BYTES}sBBf")
_CHECKSUM = struct.Struct("<I")
OVERHEAD = _HEADER.size + _CHECKSUM.size
MAX_COEFFICIENTS = MAX_BYTES - OVERHEAD

EDIT_FORMAT, EDIT_VERSION = "edit", 1

BOUNDS = ("tanh", "clip", "frobenius", "none")
TRUST = 2.0
NOT_FINITE = "the edit is not finite"
NOT_TRUSTED = "the edit leaves its trust region"

# Squared distances to prototypes that differ by less than this share of the numbers they are made of differ by rounding alone.
TIE = 1e-12

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Steps = NDArray[np.int8]


@dataclass(frozen=True)
class Remainder:
    """A decoded message of level ``basis``.

    Attributes:
        prototype: index into the bank.
        coefficients: (m,) float32 along the leading directions of the bank's basis.
    """

    prototype: int
    coefficients: Floats


def check_level(level: str) -> None:
    """Refuse an unknown level of a message.

    Raises:
        ConfigError: it is none of ``MESSAGE_LEVELS``.
    """
    check_known("serving level", level, MESSAGE_LEVELS)


def message_bytes(coefficients: int) -> int:
    """Length of a message with so many coefficients."""
    return OVERHEAD + coefficients


def quantise(coefficients: Doubles) -> tuple[Steps, Floats]:
    """(B, m) -> int8 (B, m) and float32 scales (B,), as messages carry them; an infinite scale cannot be sent."""
    if not coefficients.shape[1]:
        return np.zeros(coefficients.shape, dtype=np.int8), np.zeros(len(coefficients), dtype=np.float32)
    with np.errstate(all="ignore"):  # what is not finite is refused by whoever sends it
        scales = (np.abs(coefficients).max(axis=1) / 127).astype(np.float32)
        safe = np.maximum(scales.astype(np.float64), np.finfo(np.float32).tiny)[:, None]
        return np.rint(coefficients / safe).clip(-127, 127).astype(np.int8), scales


def dequantise(steps: Steps, scales: Floats) -> Floats:
    """(B, m) steps and (B,) scales -> (B, m), rounded to float32 as a device rounds what it decodes."""
    with np.errstate(all="ignore"):  # a hostile scale is refused with the edit it makes
        return (steps.astype(np.float64) * scales.astype(np.float64)[:, None]).astype(np.float32)


def encode_remainder(bank: str, prototype: int, steps: Steps, scale: float) -> bytes:
    """The message of level ``basis`` to one device.

    Args:
        bank: version, in hex, of the bank that the device holds.
        prototype: index.
        steps: (m,) of ``quantise``, at most ``MAX_COEFFICIENTS``.
        scale: of the steps.
    """
    body = _HEADER.pack(b"P", LAYOUT, _prefix(bank), prototype, len(steps), scale) + steps.tobytes()
    return body + _CHECKSUM.pack(zlib.crc32(body))


def decode_remainder(message: bytes, bank: str, prototypes: int, directions: int) -> Remainder:
    """What a message of level ``basis`` says to a device.

    Args:
        message: as it came.
        bank: version, in hex, of the bank that the device holds.
        prototypes: how many this bank has.
        directions: of its basis.

    Raises:
        FormatError: the message is damaged, of another layout, or names what the bank does not have.
        MismatchError: it was made for another bank version.
    """
    if len(message) < OVERHEAD or message[:1] != b"P":
        raise FormatError(f"{len(message)} bytes that are no message about a remaining edit: ask for it again")
    _, layout, prefix, index, count, scale = _HEADER.unpack_from(message)
    if layout != LAYOUT:
        raise FormatError(
            f"this message has layout {layout}, but layout {LAYOUT} is known: update the device's release"
        )
    body, checksum = message[: -_CHECKSUM.size], _CHECKSUM.unpack(message[-_CHECKSUM.size :])[0]
    if len(message) != message_bytes(count) or zlib.crc32(body) != checksum:
        raise FormatError("this message about a remaining edit was damaged on its way: ask for it again")
    if prefix != _prefix(bank):
        raise MismatchError(
            f"this message is for the prototype bank {prefix.hex()[:12]}, but the device holds {bank[:12]}: "
            "fetch that bank, or ask for a message to this one"
        )
    if count > directions:
        raise FormatError(
            f"this message names {count} directions, more than the bank has ({directions}): fetch the bank again"
        )
    steps = np.frombuffer(body[_HEADER.size :], dtype=np.int8)
    coefficients = dequantise(steps[None], np.array([scale], dtype=np.float32))[0]
    return Remainder(check_prototype(index, prototypes), coefficients)


def decode_prototype(message: bytes, prototypes: int) -> int:
    """The index that a message of level ``prototype`` names, in a bank of so many ``prototypes``.

    Raises:
        FormatError: the message is not one byte, or the bank has no such prototype.
    """
    if len(message) != 1:
        raise FormatError(f"a prototype is named by one byte, but {len(message)} came: ask for it again")
    return check_prototype(message[0], prototypes)


def check_prototype(index: int, prototypes: int) -> int:
    """The index, if a bank of so many ``prototypes`` has it.

    Raises:
        FormatError: it has not.
    """
    if index >= prototypes:
        raise FormatError(f"prototype {index} is not in this bank of {prototypes}: fetch the bank again")
    return index


def edit_header(host: str, kinds: dict[str, str], precision: str) -> dict[str, Any]:
    """What an encoded edit says of itself.

    Args:
        host: digest of the host that it is for.
        kinds: ``dense`` or ``factored`` by layer.
        precision: of its numbers.
    """
    return {"format": EDIT_FORMAT, "version": EDIT_VERSION, "host": host, "layers": kinds, "precision": precision}


def bound(weights: Floats, kind: str, tau: float, norms: NDArray[np.floating] | np.floating | None = None) -> None:
    """Bring weights of one layer inside their bound, in place; ``persona.bounds`` has the formulas.

    Args:
        weights: of any shape, with a leading dimension B where they are those of B devices.
        kind: of ``BOUNDS``.
        tau: radius in the layer's own units.
        norms: Frobenius norms, which broadcast against the weights; wanted by ``frobenius`` alone. The factor is worked
            out in their precision.
    """
    if kind == "tanh":
        np.multiply(np.tanh(weights / np.float32(tau)), np.float32(tau), out=weights)
    elif kind == "clip":
        np.clip(weights, -tau, tau, out=weights)
    elif kind == "frobenius":
        assert norms is not None
        entries = weights.size // norms.size
        factor = np.minimum(1.0, tau * entries**0.5 / np.maximum(norms, 1e-30))
        np.multiply(weights, factor.astype(np.float32, copy=False), out=weights)


def trust_radius(kind: str, tau: float, weight_norm: float) -> float:
    """The largest norm of a bounded edit, weights and biases together, that is used.

    Args:
        kind: of ``BOUNDS``.
        tau: radius of the bound, in units of a layer's root-mean-square weight.
        weight_norm: Frobenius norm of the host's own adaptive weights; 0 for a host whose layers are generated whole, which
            has no weights to compare with.
    """
    tau = 1.0 if kind == "none" else tau
    return TRUST * tau * weight_norm if weight_norm > 0 else float("inf")


def _prefix(bank: str) -> bytes:
    """The first bytes of a bank's version."""
    return bytes.fromhex(bank[: 2 * PREFIX_BYTES])
