"""The prototype bank of a bundle: its files in one message, as devices fetch it, and what people are told of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from persona.cloud import EditTables
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


def told_of_bank(tables: EditTables | None, stamp: Mapping[str, Any]) -> dict[str, Any] | None:
    """Members, norms and lineage of the bank that a model answers with; ``None`` without one.

    Args:
        tables: of the model.
        stamp: the versions that every answer carries.
    """
    if tables is None or not tables.bank:
        return None
    about = tables.about
    rows = zip(about["members"], about["norms"], about["origin"], strict=True)
    return {
        **stamp,
        "version": tables.bank,
        "parent": about["parent"],
        "editor": about["editor"],
        "prototypes": [
            {"index": i, "members": members, "norm": norm, "origin": origin if origin >= 0 else None}
            for i, (members, norm, origin) in enumerate(rows)
        ],
        "directions": about["energy"],
        "metadata": about["metadata"],
    }
