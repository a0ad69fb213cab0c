"""Banks on disk: a folder is a bank, holds nothing personal, and can be given to devices.

<folder>/prototypes.safetensors   the prototype edits, with the digest of their host
<folder>/basis.safetensors        the directions of the shared basis, likewise
<folder>/bank.safetensors         centres, members and other tensors
<folder>/bank.json                settings and the version that all of it has to have
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from persona.bounds import Bound
from persona.edit_format import load_edit, save_edit
from persona.errors import FormatError, MismatchError, PersonaError
from persona.prototypes.bank import PrototypeBank
from persona.prototypes.basis import EditBasis
from persona.storage import load_tensors, read_json, save_tensors, write_json

FORMAT_VERSION = 1


def save_bank(folder: Path, bank: PrototypeBank) -> None:
    """Write the files of a bank into a folder of their own; ``bank.json`` comes last."""
    folder = Path(folder)
    save_edit(folder / "prototypes.safetensors", bank.prototypes)
    save_edit(folder / "basis.safetensors", bank.basis.directions)
    tensors = {name: t for name, t in bank.tensors().items() if "/" not in name}
    save_tensors(folder / "bank.safetensors", tensors, {})
    header = {"format": "prototype bank", "format_version": FORMAT_VERSION, "version": bank.version}
    write_json(folder / "bank.json", header | bank.settings())


def load_bank(folder: Path, host: str | None = None) -> PrototypeBank:
    """Read a bank and see that it is what its version says.

    Args:
        folder: of ``save_bank``.
        host: digest of the host the bank is wanted for.

    Raises:
        FormatError: a file is missing, damaged, exchanged or of another release.
        MismatchError: the bank was made for another host.
    """
    folder = Path(folder)
    header = read_json(folder / "bank.json")
    kind, version = (header.get("format"), header.get("format_version")) if isinstance(header, dict) else (None, None)
    if kind != "prototype bank" or version != FORMAT_VERSION:
        raise FormatError(
            f"{folder / 'bank.json'} has format {kind!r} version {version!r}, but a prototype bank of version "
            f"{FORMAT_VERSION} is needed: make it again with this release"
        )
    bank = _read(folder, header)
    if bank.version != header.get("version"):
        raise FormatError(f"the prototype bank in {folder} was changed or damaged after it was made: restore it")
    if host is not None and bank.host != host:
        raise MismatchError(
            f"the prototype bank in {folder} was made for the host {bank.host[:12] or '(none)'}, not for {host[:12]}: "
            "take the bank of this host's release"
        )
    return bank


def _read(folder: Path, header: dict[str, Any]) -> PrototypeBank:
    tensors, _ = load_tensors(folder / "bank.safetensors")
    energy = tensors.pop("energy", None)
    try:
        if energy is None:
            raise KeyError("energy")
        return PrototypeBank(
            prototypes=load_edit(folder / "prototypes.safetensors", header["host"]),
            basis=EditBasis(load_edit(folder / "basis.safetensors", header["host"]), energy),
            bound=Bound(header["bound"]["kind"], header["bound"]["tau"]),
            editor=header["editor"],
            parent=header["parent"],
            metadata=header["metadata"],
            **tensors,
        )
    except FormatError:
        raise
    except (KeyError, TypeError, AttributeError, PersonaError) as error:
        raise FormatError(
            f"the prototype bank in {folder} lacks a part or mixes two banks ({error}): restore it"
        ) from error
