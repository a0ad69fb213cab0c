"""What travels to a device that holds the bank: one byte to switch prototype, at most 64 to be nearly exact.

Within a session that agreed on a bank version, a prototype is its index, one byte. A remaining edit in the shared basis is a
message that stands for itself (numbers little-endian):

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

Shapes: B devices, m coefficients.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from persona.edit_format import decode_edit, encode_edit
from persona.edits import Edit
from persona.errors import ConfigError, DataError, FormatError, MismatchError, nearest
from persona.prototypes.algebra import to_dtype
from persona.prototypes.bank import PrototypeBank

LEVELS = ("host", "prototype", "basis", "low_rank", "full")
LAYOUT = 1
_HEADER = struct.Struct("<cB8sBBf")
_CHECKSUM = struct.Struct("<I")
OVERHEAD = _HEADER.size + _CHECKSUM.size
MAX_BYTES = 64
MAX_COEFFICIENTS = MAX_BYTES - OVERHEAD


@dataclass(frozen=True)
class Remainder:
    """A decoded message.

    Attributes:
        prototype: index into the bank.
        coefficients: (m,) float32 along the leading directions of the bank's basis.
    """

    prototype: int
    coefficients: Tensor


def message_bytes(coefficients: int) -> int:
    """Length of a message with so many coefficients."""
    return OVERHEAD + coefficients


def quantise_coefficients(coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """(B, m) -> int8 (B, m) and float32 scales (B,), exactly as messages carry them."""
    scale = (coefficients.abs().amax(1) / 127).float() if coefficients.shape[1] else torch.zeros(len(coefficients))
    steps = coefficients / scale.double().clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(1)
    return steps.round().clamp(-127, 127).to(torch.int8), scale


def encode_remainders(bank: PrototypeBank, prototypes: Tensor, coefficients: Tensor) -> list[bytes]:
    """One message a device.

    Args:
        bank: whose basis the coefficients are in.
        prototypes: (B,) indices.
        coefficients: (B, m) along its leading directions.

    Raises:
        ConfigError: more coefficients than a message or the basis holds.
        DataError: a coefficient is not finite, or its scale is beyond float32.
    """
    most = min(MAX_COEFFICIENTS, len(bank.basis))
    if coefficients.shape[1] > most:
        raise ConfigError(f"a message to this bank holds at most {most} coefficients, not {coefficients.shape[1]}")
    steps, scales = quantise_coefficients(coefficients.double())
    if not torch.isfinite(scales).all():
        raise DataError("a remaining edit is not finite, so it cannot be sent: send the prototype alone")
    prefix = bytes.fromhex(bank.version[:16])
    messages = []
    for index, scale, row in zip(prototypes.tolist(), scales.tolist(), steps.cpu().numpy(), strict=True):
        body = _HEADER.pack(b"P", LAYOUT, prefix, index, len(row), scale) + row.tobytes()
        messages.append(body + _CHECKSUM.pack(zlib.crc32(body)))
    return messages


def decode_remainder(bank: PrototypeBank, message: bytes) -> Remainder:
    """What a message to a device with ``bank`` says.

    Raises:
        FormatError: the message is damaged or of another layout.
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
    _check_prefix(bank, prefix)
    if count > len(bank.basis):
        raise FormatError(f"this message names {count} directions, but the bank has {len(bank.basis)}: fetch it again")
    steps = torch.frombuffer(bytearray(body[_HEADER.size :]), dtype=torch.int8) if count else torch.zeros(0)
    return Remainder(_index(bank, index), (steps.double() * scale).float())


def encode_edits(bank: PrototypeBank, prototypes: Tensor, remaining: Edit) -> list[bytes]:
    """One message a device: the bank's version and the prototype as above (8 + 1 bytes), then the remaining edit in int8.

    Args:
        bank: that the devices hold.
        prototypes: (B,) indices.
        remaining: of any form, batch B.
    """
    prefix = bytes.fromhex(bank.version[:16])
    return [prefix + bytes([j]) + encode_edit(remaining[i], "int8") for i, j in enumerate(prototypes.tolist())]


def receive(bank: PrototypeBank, message: bytes, level: str) -> Edit:
    """The bounded edit (batch 1, float32) that a device with ``bank`` applies after a message.

    Args:
        bank: that the device holds.
        message: of ``Server.messages``.
        level: the serving level of the message.

    Raises:
        ConfigError: unknown level.
        FormatError: the message is damaged, or names a prototype that the bank does not have.
        MismatchError: it was made for another bank version or host.
    """
    check_level(level)
    if level == "host":
        return Edit.zeros(bank.prototypes.specs, host=bank.host)
    if level == "full":
        return bank.bounded(decode_edit(message, bank.host))
    if level == "prototype":
        if len(message) != 1:
            raise FormatError(f"a prototype is named by one byte, but {len(message)} came: ask for it again")
        return bank.prototype(_index(bank, message[0]))
    if level == "basis":
        said = decode_remainder(bank, message)
        index, remaining = said.prototype, bank.basis.edits(said.coefficients.unsqueeze(0))
    else:
        _check_prefix(bank, message[:8])
        index, remaining = _index(bank, message[8]), decode_edit(message[9:], bank.host)
    return bank.bounded(to_dtype(bank.prototypes[index] + remaining, torch.float32))


def check_level(level: str) -> None:
    """Refuse an unknown serving level.

    Raises:
        ConfigError: it is none of ``LEVELS``.
    """
    if level not in LEVELS:
        raise ConfigError(f"unknown serving level {level!r}: {nearest(level, LEVELS)}")


def _check_prefix(bank: PrototypeBank, prefix: bytes) -> None:
    if prefix.hex() != bank.version[:16]:
        raise MismatchError(
            f"this message is for the prototype bank {prefix.hex()[:12]}, but the device holds {bank.version[:12]}: "
            "fetch that bank, or ask for a message to this one"
        )


def _index(bank: PrototypeBank, index: int) -> int:
    if index >= len(bank):
        raise FormatError(f"prototype {index} is not in this bank of {len(bank)}: fetch the bank again")
    return index
