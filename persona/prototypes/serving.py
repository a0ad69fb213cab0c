"""Serving levels (``persona.wire``) on tensors: codes in, the edits and messages of a level out.

Shapes: B devices, L layers, d code width, m coefficients.
"""

from __future__ import annotations

import torch
from torch import Tensor

from persona.edit_format import encode_edit
from persona.editor import ParameterEditor
from persona.edits import Edit
from persona.errors import ConfigError
from persona.prototypes.algebra import inner, to_dtype
from persona.prototypes.assign import Assigner
from persona.prototypes.bank import PrototypeBank
from persona.prototypes.message import encode_remainders, quantise_coefficients, sent_coefficients
from persona.prototypes.metric import HeadMetric
from persona.torch_device import on_cpu
from persona.wire import MAX_COEFFICIENTS, check_level, message_bytes


class Server:
    """Codes in, the edits and messages of a level out.

    Args:
        editor: that makes the codes; one on a graphics card is copied, for banks are served on the CPU.
        bank: made with this editor.
        coefficients: of the basis level; by default as many as the basis and a message hold.

    Raises:
        MismatchError: the bank was made with another host or editor.
        ConfigError: more coefficients than the basis and a message hold.

    Example::

        server = Server(editor, bank)
        edit = server.edit(editor.codes(context, lengths), "basis")
    """

    def __init__(self, editor: ParameterEditor, bank: PrototypeBank, *, coefficients: int | None = None) -> None:
        editor = on_cpu(editor)
        metric = HeadMetric(editor)
        bank.check(metric)
        most = min(MAX_COEFFICIENTS, len(bank.basis))
        self.editor, self.bank = editor, bank
        self.coefficients_sent = most if coefficients is None else coefficients
        if not 0 <= self.coefficients_sent <= most:
            raise ConfigError(f"0 to {most} coefficients can be sent with this bank, not {coefficients}")
        self._precision = next(editor.parameters()).dtype
        self.assigner = Assigner(metric, bank.prototypes)
        directions = to_dtype(bank.basis.directions[slice(self.coefficients_sent)], torch.float64)
        # <R, B_i> = <M z, B_i> - <Q_j, B_i>, so coefficients come from codes without an edit written out.
        self._projected = metric.project(directions).flatten(1).mT
        self._start = inner(self.assigner.offset, directions).sum(-1)

    def assign(self, codes: Tensor) -> Tensor:
        """(B, L, d) -> (B,) index of the nearest prototype."""
        return self.assigner(codes).prototypes

    def coefficients(self, codes: Tensor, prototypes: Tensor) -> Tensor:
        """(B, L, d) and (B,) -> (B, m) remaining edits along the basis, float64."""
        return codes.detach().double().flatten(1) @ self._projected - self._start[prototypes]

    def edit(self, codes: Tensor, level: str) -> Edit:
        """(B, L, d) -> the bounded edit that each device applies at a level: what it decodes, rounding included.

        Raises:
            ConfigError: unknown level.
        """
        check_level(level)
        if level == "host":
            return Edit.zeros(self.editor.specs, len(codes), self.bank.host, self.bank.weight_scales)
        if level == "full":
            return self.editor.bounded(self._exact(codes))
        prototypes = self.assign(codes)
        if level == "prototype":
            return self.bank.prototype(prototypes)
        remaining = self.bank.basis.edits(sent_coefficients(self.coefficients(codes, prototypes)))
        return self.bank.bounded(to_dtype(self.bank.prototypes[prototypes] + remaining, torch.float32))

    def messages(self, codes: Tensor, level: str) -> list[bytes]:
        """(B, L, d) -> what is sent to each device at a level.

        Raises:
            ConfigError: unknown level.
        """
        check_level(level)
        if level == "host":
            return [b""] * len(codes)
        if level == "full":
            edits = self._exact(codes)
            return [encode_edit(edits[i]) for i in range(len(codes))]
        prototypes = self.assign(codes)
        if level == "prototype":
            return [bytes([j]) for j in prototypes.tolist()]
        return encode_remainders(self.bank, prototypes, self.coefficients(codes, prototypes))

    def payload_bytes(self, level: str) -> int:
        """Bytes to one device at a level; for encoded edits, those of the first prototype's."""
        if level == "basis":
            return message_bytes(self.coefficients_sent)
        return len(self.messages(self.bank.centres[:1], level)[0])

    def energy(self, codes: Tensor, level: str) -> tuple[Tensor, Tensor]:
        """(B, L, d) -> (B,) energy ||R||^2 of the remaining edits, and (B,) what a level leaves of it.

        Unbounded; ``host`` is measured like any level, so it may leave more than there is.
        """
        check_level(level)
        nearest = self.assigner(codes)
        whole = nearest.distances.square()
        if level == "full":
            return whole, torch.zeros_like(whole)
        if level == "prototype":
            return whole, whole
        if level == "host":
            return whole, to_dtype(self._exact(codes), torch.float64).norm().square()
        exact = self.coefficients(codes, nearest.prototypes)
        steps, scales = quantise_coefficients(exact)
        rounding = (steps.double() * scales.double().unsqueeze(1) - exact).square().sum(1)
        return whole, (whole - exact.square().sum(1)).clamp_min(0) + rounding

    def _exact(self, codes: Tensor) -> Edit:
        """(B, L, d) -> unbounded edits in the editor's own precision."""
        return self.editor.unbounded(codes.to(self._precision)).detach()
