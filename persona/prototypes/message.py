"""What travels to a device that holds the bank, on tensors: one byte to switch prototype, at most 64 to be nearly exact.

``persona.wire`` has the layout.

Shapes: B devices, m coefficients.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from persona.edit_format import decode_edit
from persona.edits import Edit
from persona.errors import ConfigError, DataError
from persona.prototypes.algebra import to_dtype
from persona.prototypes.bank import PrototypeBank
from persona.wire import (
    MAX_COEFFICIENTS,
    check_level,
    decode_prototype,
    decode_remainder,
    dequantise,
    encode_remainder,
    quantise,
)


def quantise_coefficients(coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """(B, m) -> int8 (B, m) and float32 scales (B,), exactly as messages carry them."""
    steps, scales = quantise(coefficients.detach().double().cpu().numpy())
    return torch.from_numpy(steps).to(coefficients.device), torch.from_numpy(scales).to(coefficients.device)


def sent_coefficients(coefficients: Tensor) -> Tensor:
    """(B, m) -> (B, m) float32, what a device decodes of them."""
    sent = dequantise(*quantise(coefficients.detach().double().cpu().numpy()))
    return torch.from_numpy(sent).to(coefficients.device)


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
    steps, scales = quantise(coefficients.detach().double().cpu().numpy())
    if not np.isfinite(scales).all():
        raise DataError("a remaining edit is not finite, so it cannot be sent: send the prototype alone")
    rows = zip(prototypes.tolist(), steps, scales, strict=True)
    return [encode_remainder(bank.version, index, row, scale) for index, row, scale in rows]


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
        return Edit.zeros(bank.prototypes.specs, host=bank.host, like=bank.weight_scales)
    if level == "full":
        return bank.bounded(decode_edit(message, bank.host))
    if level == "prototype":
        return bank.prototype(decode_prototype(message, len(bank)))
    said = decode_remainder(message, bank.version, len(bank), len(bank.basis))
    remaining = bank.basis.edits(torch.from_numpy(said.coefficients).unsqueeze(0))
    return bank.bounded(to_dtype(bank.prototypes[said.prototype] + remaining, torch.float32))
