"""A device: one user's edits on a bundle, and answers whatever happens.

Levels fall back last edit -> prototype -> host. A message that is damaged, hostile, too large, or made for another host or
bank is refused with a ``PersonaError`` and changes nothing. Edits are folded into the weights once, when they come, so an
edited host costs what the host costs.

A device may be used from several threads: the edit in use is replaced in one assignment.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from persona.arrays import Floats
from persona.device.bank import DeviceBank, read_bank, unpack_bank
from persona.device.bundle import DeviceBundle, Weighted
from persona.device.changes import Changes, decode_edits
from persona.device.state import EDIT, PROTOTYPE, Remembered, StateFolder
from persona.errors import DataError, FormatError, PersonaError
from persona.wire import check_level, decode_prototype

# What may come beyond the numbers of a float32 edit: names, shapes and header.
FRAMING_BYTES = 1 << 16


@dataclass(frozen=True)
class Outputs:
    """What the graph computed, and by which level's weights."""

    arrays: dict[str, NDArray[Any]]
    level: str


@dataclass(frozen=True)
class Received:
    """A message that was accepted.

    Attributes:
        level: what the device answers by from now on.
        size: bytes of the message.
        prototype: index of the prototype that it names, if it does.
        kept: whether it will be there after a restart; not, if the disk refused it or the device has no state folder.
    """

    level: str
    size: int
    prototype: int | None
    kept: bool


@dataclass(frozen=True)
class _Active:
    """The graph under the weights in use, and what made them."""

    level: str
    graph: Weighted


class Device:
    """One user's device.

    Args:
        bundle: the host, which many devices may share in one process.
        state: a folder of this device alone; without one nothing outlives the process.

    Attributes:
        bank: the prototype bank in use: the newest that was installed, else the bundle's own.
        notes: why something that was remembered could not be used, newest last.

    Example::

        device = Device(DeviceBundle.load("bundle"), "state")
        try:
            device.receive(message, "basis")
        except PersonaError as refused:
            print(refused)                    # the device goes on as before
        outputs = device.run(inputs)
    """

    def __init__(self, bundle: DeviceBundle, state: Path | str | None = None) -> None:
        self.bundle = bundle
        self.notes: list[str] = []
        self._state = None if state is None else StateFolder(state)
        self._host = _Active("host", bundle.plain)
        self._active = self._host
        self.bank: DeviceBank | None = bundle.bank
        if self._state is not None:
            self._recall_bank(self._state)
            self._recall_edit(self._state)

    @property
    def level(self) -> str:
        """What answers now: ``full``, ``basis``, ``prototype`` or ``host``."""
        return self._active.level

    def run(self, inputs: Mapping[str, NDArray[Any]], *, plain: bool = False) -> Outputs:
        """Compute the graph under the edit in use.

        Args:
            inputs: data by the names of ``bundle.inputs``.
            plain: under the host's own weights instead, for example to read a context.

        Raises:
            DataError: an input is missing or has another shape or type.
        """
        active = self._host if plain else self._active
        arrays = self._compute(inputs, active)
        # The squared norm of the first output is not finite where any entry is not; one product, for small graphs take 50
        # microseconds.
        if active is not self._host and not math.isfinite(_square_norm(arrays[self.bundle.outputs[0]])):
            # The edit was sound, but not what the host made of it for this input.
            active = self._host
            arrays = self._compute(inputs, active)
        return Outputs(arrays, active.level)

    def receive(self, message: bytes, level: str) -> Received:
        """Take an edit from the cloud: check it, answer by it from now on, and remember it.

        Args:
            message: as ``persona.prototypes.Server.messages`` makes it.
            level: its serving level; ``host`` returns to the host and forgets what was remembered.

        Raises:
            ConfigError: unknown level.
            FormatError: the message is damaged, too large, not finite, or outside the region that is trusted.
            MismatchError: it was made for another host or bank.
        """
        check_level(level)
        if level == "host":
            self._active = self._host
            return Received("host", len(message), None, self._forget())
        active, prototype = self._prepared(message, level)
        self._active = active
        return Received(level, len(message), prototype, self._remember(message, level, prototype))

    def install_bank(self, folder: Path | str) -> None:
        """Change to the prototype bank in a folder; otherwise as ``receive_bank``."""
        self._install(read_bank(Path(folder)))

    def receive_bank(self, message: bytes) -> str:
        """Change to another version of the prototype bank, which came from the cloud, and keep it.

        The edit in use stays. Messages about the bank before are refused from now on.

        Args:
            message: as ``persona.device.bank.pack_bank`` makes it.

        Returns:
            Its version.

        Raises:
            FormatError: the bank is damaged; nothing has changed.
            MismatchError: it is of another host; nothing has changed.
        """
        return self._install(unpack_bank(message))

    def _install(self, files: Mapping[str, bytes]) -> str:
        bundle = self.bundle
        bank = DeviceBank.of(files, bundle.layers, bundle.host, bundle.region)
        if self._state is not None:
            try:
                self._state.keep_bank(bank.version, files)
            except OSError as error:
                self.notes.append(f"the prototype bank could not be kept ({error.strerror}): free some space")
        self.bank = bank
        return bank.version

    def _compute(self, inputs: Mapping[str, NDArray[Any]], active: _Active) -> dict[str, NDArray[Any]]:
        try:
            values = active.graph.run(self.bundle.outputs, inputs)
        except Exception as error:  # onnxruntime raises classes of its own making
            wanted = ", ".join(f"{name} {given.dtype} {given.shape}" for name, given in self.bundle.inputs.items())
            raise DataError(f"the graph cannot run on this input ({error}): it reads {wanted}") from error
        return dict(zip(self.bundle.outputs, values, strict=True))

    def _prepared(self, message: bytes, level: str) -> tuple[_Active, int | None]:
        """Weights under a message that passed all checks, and the prototype it names."""
        if len(message) > self.bundle.edit_bytes + FRAMING_BYTES:
            raise FormatError(
                f"{len(message):,} bytes came, more than any edit of this host has ({self.bundle.edit_bytes:,} and a "
                "header): ask for it again"
            )
        changes, prototype = self._decoded(message, level)
        region = self.bundle.region
        with np.errstate(all="ignore"):  # what overflows is refused below
            bounded = region.bounded(changes)
            region.check(bounded)
        active = _Active(level, self.bundle.under(_edited(self.bundle.weights, bounded)))
        self._try(active)
        return active, prototype

    def _decoded(self, message: bytes, level: str) -> tuple[Changes, int | None]:
        """The unbounded edit of a message, and the prototype it names."""
        if level == "full":
            stacks = decode_edits(message, self.bundle.layers, self.bundle.host, "this edit")
            return {name: stack.at(0) for name, stack in stacks.items()}, None
        if self.bank is None:
            raise FormatError(f"this device holds no prototype bank, so it cannot read level {level!r}: ask for 'full'")
        if level == "prototype":
            index = decode_prototype(message, len(self.bank))
            return self.bank.prototype(index), index
        index, changes = self.bank.with_remainder(message)
        return changes, index

    def _try(self, active: _Active) -> None:
        """Run once on an empty context: an edit whose answers are not finite is not used."""
        inputs = {name: np.zeros(given.shape, dtype=given.dtype) for name, given in self.bundle.inputs.items()}
        for name, array in self._compute(inputs, active).items():
            if not np.isfinite(array).all():
                raise FormatError(f"under this edit {name!r} is not finite, so it is not used: ask for it again")

    def _remember(self, message: bytes, level: str, prototype: int | None) -> bool:
        if self._state is None:
            return False
        version = "" if level == "full" or self.bank is None else self.bank.version
        try:
            self._state.keep(EDIT, Remembered(level, message, self.bundle.host, version))
            if prototype is not None:
                named = Remembered("prototype", bytes([prototype]), self.bundle.host, version)
                self._state.keep(PROTOTYPE, named)
        except OSError as error:
            self.notes.append(f"the edit could not be kept ({error.strerror}): free some space")
            return False
        return True

    def _forget(self) -> bool:
        if self._state is None:
            return False
        try:
            self._state.forget()
        except OSError as error:
            self.notes.append(f"the last edit could not be removed ({error.strerror}): make the folder writable")
            return False
        return True

    def _recall_bank(self, state: StateFolder) -> None:
        for folder in state.banks():
            try:
                self.bank = DeviceBank.load(folder, self.bundle.layers, self.bundle.host, self.bundle.region)
                return
            except PersonaError as error:
                self.notes.append(str(error))

    def _recall_edit(self, state: StateFolder) -> None:
        for slot in (EDIT, PROTOTYPE):
            try:
                remembered = state.recall(slot)
                if remembered is None:
                    continue
                self._check_owner(remembered)
                self._active = self._prepared(remembered.message, remembered.level)[0]
                return
            except PersonaError as error:
                self.notes.append(str(error))

    def _check_owner(self, remembered: Remembered) -> None:
        """A single byte does not say which host and bank it belongs to; what was kept beside it does."""
        check_level(remembered.level)
        bank = "" if self.bank is None else self.bank.version
        if remembered.host != self.bundle.host or (remembered.bank and remembered.bank != bank):
            raise FormatError("the last edit was made for another host or bank: ask for a new one")


def _square_norm(array: NDArray[Any]) -> float:
    return float(np.vdot(array, array))


def _edited(weights: Mapping[str, Floats], changes: Changes) -> dict[str, Floats]:
    """W + dW and b + db of every adaptive layer, by the names that the graph has for them."""
    edited = dict(weights)
    for name, change in changes.items():
        edited[f"{name}.weight"] = np.ascontiguousarray(weights[f"{name}.weight"] + change.weight)
        if change.bias is not None:
            edited[f"{name}.bias"] = weights[f"{name}.bias"] + change.bias
    return edited
