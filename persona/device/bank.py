"""The prototype bank on a device: the files of ``persona.prototypes.save_bank``, and the messages that speak of it.

A bank travels as one safetensors message that holds its files byte by byte, so that its version, a digest of all that is in
them, can be checked wherever it arrives.

Shapes: K prototypes, m basis directions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from persona.arrays import Arrays, arrays_from_bytes, arrays_to_bytes, digest_arrays, read_file
from persona.device.changes import Changes, Layer, Region, Stack, decode_edits
from persona.errors import FormatError, MismatchError
from persona.storage import digest_json
from persona.wire import check_prototype, decode_remainder

FORMAT_VERSION = 1
HEADER, PROTOTYPES, BASIS, TENSORS = "bank.json", "prototypes.safetensors", "basis.safetensors", "bank.safetensors"
FILES = (HEADER, PROTOTYPES, BASIS, TENSORS)
MESSAGE_FORMAT = "prototype bank files"


@dataclass(frozen=True)
class DeviceBank:
    """K prototypes of one host.

    Attributes:
        version: SHA-256, in hex, of everything in the bank.
        host: digest of the host.
        layers: the host's adaptive layers.
        region: where edits may lie.
        prototypes: unbounded, K a layer.
        directions: the shared basis of remaining edits, m a layer.
    """

    version: str
    host: str
    layers: tuple[Layer, ...]
    region: Region
    prototypes: dict[str, Stack]
    directions: dict[str, Stack]

    def __len__(self) -> int:
        return len(next(iter(self.prototypes.values())))

    @classmethod
    def load(cls, folder: Path, layers: Sequence[Layer], host: str, region: Region) -> DeviceBank:
        """Read a folder; arguments and errors otherwise as ``of``."""
        return cls.of(read_bank(folder), layers, host, region, f"the prototype bank in {folder}")

    @classmethod
    def of(
        cls, files: Mapping[str, bytes], layers: Sequence[Layer], host: str, region: Region, source: str = "this bank"
    ) -> DeviceBank:
        """Read the files of a bank and see that it is what its version says.

        Raises:
            FormatError: a file is missing, damaged, exchanged or of another release.
            MismatchError: the bank was made for another host.
        """
        header, parts = _contents(files, source)
        if header.get("host") != host:
            raise MismatchError(
                f"{source} was made for the host {str(header.get('host'))[:12]}, not for {host[:12]}: fetch the bank of "
                "this host"
            )
        _check_version(header, parts, str(header.get("version")), source)
        prototypes = decode_edits(files[PROTOTYPES], layers, host, source, len(parts.get("members", ())))
        directions = decode_edits(files[BASIS], layers, host, source, len(parts.get("energy", ())))
        return cls(header["version"], host, tuple(layers), region, prototypes, directions)

    def prototype(self, index: int) -> Changes:
        """The unbounded edit of one prototype.

        Raises:
            FormatError: the bank has no such prototype.
        """
        index = check_prototype(index, len(self))
        return {name: stack.at(index) for name, stack in self.prototypes.items()}

    def with_remainder(self, message: bytes) -> tuple[int, Changes]:
        """A message of level ``basis`` -> its prototype, and that with the remaining edit, unbounded.

        Raises:
            FormatError: the message is damaged or of another layout.
            MismatchError: it was made for another bank version.
        """
        directions = len(next(iter(self.directions.values())))
        said = decode_remainder(message, self.version, len(self), directions)
        with np.errstate(all="ignore"):  # a hostile scale is refused with the edit it makes
            coefficients = said.coefficients.astype(np.float64)
            change = self.prototype(said.prototype)
            added = {name: stack.combined(coefficients) for name, stack in self.directions.items()}
            return said.prototype, {name: change[name] + added[name] for name in change}


def read_bank(folder: Path) -> dict[str, bytes]:
    """The files of a bank by name.

    Raises:
        FormatError: one of them cannot be read.
    """
    return {name: read_file(Path(folder) / name) for name in FILES}


def pack_bank(files: Mapping[str, bytes]) -> bytes:
    """The files of a bank as one message."""
    arrays = {name: np.frombuffer(files[name], dtype=np.uint8) for name in FILES}
    return arrays_to_bytes(arrays, {"format": MESSAGE_FORMAT, "version": FORMAT_VERSION})


def unpack_bank(message: bytes) -> dict[str, bytes]:
    """Inverse of ``pack_bank``.

    Raises:
        FormatError: the message is damaged, or none that holds a bank.
    """
    arrays, header = arrays_from_bytes(message, "this prototype bank")
    if (header.get("format"), header.get("version")) != (MESSAGE_FORMAT, FORMAT_VERSION) or set(arrays) != set(FILES):
        raise FormatError("this message holds no prototype bank that this release can read: fetch it again")
    return {name: array.tobytes() for name, array in arrays.items()}


def check_version(files: Mapping[str, bytes], version: str, source: str) -> None:
    """See that the files of a bank are those of this version.

    Raises:
        FormatError: a file is missing, damaged, exchanged or of another release.
    """
    _check_version(*_contents(files, source), version, source)


def _check_version(header: Mapping[str, Any], parts: Arrays, version: str, source: str) -> None:
    settings = {key: header.get(key) for key in ("host", "editor", "parent", "bound", "metadata")}
    if not len(parts.get("members", ())) or digest_json([digest_arrays(parts), settings]) != version:
        raise FormatError(f"{source} was changed or damaged after it was made: fetch it again")


def _contents(files: Mapping[str, bytes], source: str) -> tuple[dict[str, Any], Arrays]:
    """Header and tensors of a bank, by the names under which its version counts them."""
    try:
        header = json.loads(files[HEADER])
    except ValueError as error:
        raise FormatError(f"{source} has a header that is not valid JSON: fetch it again") from error
    if not isinstance(header, dict) or header.get("format_version") != FORMAT_VERSION:
        raise FormatError(f"{source} is no prototype bank of version {FORMAT_VERSION}: fetch it again")
    parts, _ = arrays_from_bytes(files[TENSORS], source)
    for name, part in ((PROTOTYPES, "prototypes"), (BASIS, "basis")):
        parts |= {f"{part}/{key}": array for key, array in arrays_from_bytes(files[name], source)[0].items()}
    return header, parts
