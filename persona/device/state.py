"""What a device remembers across restarts: the message of its last good edit, and that of its last prototype.

    <folder>/edit.safetensors         level, host and bank of the message, and the message itself
    <folder>/prototype.safetensors    likewise, always at level prototype
    <folder>/bank-<version>/          a bank that came after the bundle's own

Each file is replaced at once or not at all, and carries a digest, so that one that was half written by other means is noticed.
What is kept is the message, not its outcome: it passes the same checks again when it is read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from persona.arrays import arrays_from_bytes, arrays_to_bytes, read_file
from persona.errors import FormatError
from persona.storage import atomic_file, atomic_folder, remove_folders

FORMAT, FORMAT_VERSION = "device state", 1
EDIT, PROTOTYPE = "edit", "prototype"


@dataclass(frozen=True)
class Remembered:
    """A message that was good when it came.

    Attributes:
        level: serving level of the message.
        message: as it came.
        host: digest of the host that it was for.
        bank: version of the bank that it speaks of; empty where it speaks of none.
    """

    level: str
    message: bytes
    host: str
    bank: str


class StateFolder:
    """The files of one device.

    Args:
        root: the device's own folder, made when something is first kept.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    def path(self, slot: str) -> Path:
        """The file of ``edit`` or ``prototype``."""
        return self.root / f"{slot}.safetensors"

    def bank(self, version: str) -> Path:
        """The folder of a bank version."""
        return self.root / f"bank-{version[:16]}"

    def banks(self) -> list[Path]:
        """The folders of banks, the one that came last first."""
        folders = [path for path in self.root.glob("bank-*") if path.is_dir()]
        return sorted(folders, key=lambda path: path.stat().st_mtime_ns, reverse=True)

    def keep_bank(self, version: str, files: Mapping[str, bytes]) -> None:
        """Write a bank, which appears at once or not at all, and remove those before it.

        Raises:
            OSError: the disk is full or cannot be written.
        """
        with atomic_folder(self.bank(version)) as new:
            for name, data in files.items():
                (new / name).write_bytes(data)
        with suppress(OSError):
            remove_folders(self.banks()[1:])

    def keep(self, slot: str, remembered: Remembered) -> None:
        """Write a message, replacing the one before at once.

        Raises:
            OSError: the disk is full or cannot be written.
        """
        header = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "level": remembered.level,
            "host": remembered.host,
            "bank": remembered.bank,
            "digest": hashlib.sha256(remembered.message).hexdigest(),
        }
        data = arrays_to_bytes({"message": np.frombuffer(remembered.message, dtype=np.uint8)}, header)
        with atomic_file(self.path(slot)) as temporary:
            temporary.write_bytes(data)

    def recall(self, slot: str) -> Remembered | None:
        """The message kept last, ``None`` if there was none.

        Raises:
            FormatError: the file is damaged or of another version.
        """
        path = self.path(slot)
        if not path.exists():
            return None
        arrays, header = arrays_from_bytes(read_file(path), str(path))
        if header.get("format") != FORMAT or header.get("version") != FORMAT_VERSION:
            raise FormatError(f"{path} is of another release: ask for a new edit")
        message = arrays.get("message", np.zeros(0, dtype=np.uint8)).tobytes()
        if hashlib.sha256(message).hexdigest() != header.get("digest"):
            raise FormatError(f"{path} is damaged (its digest differs): ask for a new edit")
        return Remembered(str(header.get("level")), message, str(header.get("host")), str(header.get("bank")))

    def forget(self) -> None:
        """Remove both messages: the device answers as the host again.

        Raises:
            OSError: the folder cannot be written.
        """
        for slot in (EDIT, PROTOTYPE):
            self.path(slot).unlink(missing_ok=True)
