"""The prototype bank of a bundle as devices fetch it: its files in one message, checked when the bundle is loaded."""

from __future__ import annotations

from pathlib import Path

from persona.device.bank import check_version, pack_bank, read_bank

FOLDER = "bank"


def bank_message(bundle: Path, version: str) -> bytes | None:
    """The bank of a bundle, ``None`` if there is none in it.

    Args:
        bundle: folder.
        version: that the bank has to have.

    Raises:
        FormatError: a file is missing or damaged, or the bank is another one.
    """
    folder = bundle / FOLDER
    if not version or not folder.is_dir():
        return None
    files = read_bank(folder)
    check_version(files, version, f"the prototype bank in {folder}")
    return pack_bank(files)
