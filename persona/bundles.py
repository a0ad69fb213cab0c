"""What the folders of all bundles share: a header that is checked first, and parts that belong to each other.

A bundle is a folder with a JSON header, tensors that carry the digest of their host, and maybe a prototype bank. Which files
there are is the task's own affair. torch is loaded by the functions that need it, so that a device without it can read headers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona.errors import DataError, FormatError, MismatchError
from persona.storage import digest_tensors, load_tensors, read_json

if TYPE_CHECKING:
    from torch import nn

    from persona.prototypes import PrototypeBank

AGAIN = "release the bundle again"


@dataclass(frozen=True)
class BundleFormat:
    """How the header of a kind of bundle is recognised.

    Attributes:
        name: its ``format``.
        header: name of the JSON file.
        entries: what a header has to hold, for every version that can be read.
        kind: what an error calls it.
        make: how to get one where there is none.
        again: how to get one that can be read.
    """

    name: str
    header: str
    entries: Mapping[int, Collection[str]]
    make: str
    kind: str = "bundle"
    again: str = AGAIN

    def read(self, folder: Path) -> dict[str, Any]:
        """The header of the bundle in ``folder``.

        Raises:
            DataError: there is no such bundle in the folder.
            FormatError: it is damaged, or of a version that this release cannot read.
        """
        path = folder / self.header
        if not path.is_file():
            raise DataError(f"{folder} holds no {self.kind} (no {self.header}): {self.make}")
        header = read_json(path)
        found: dict[str, Any] = header if isinstance(header, dict) else {}
        version = found.get("version")
        if found.get("format") != self.name or not isinstance(version, int) or version not in self.entries:
            readable = " or ".join(map(str, self.entries))
            raise FormatError(
                f"{folder} has format {found.get('format')!r} version {version!r}, but {self.name!r} version "
                f"{readable} is needed: {self.again}"
            )
        missing = set(self.entries[version]) - found.keys()
        if missing:
            raise FormatError(f"{path} lacks {min(missing)!r}: {self.again}")
        return found


def load_state(module: nn.Module, path: Path, host: str, digest: str) -> None:
    """Fill ``module`` with the parameters of this ``digest``, which belong to the host with the digest ``host``.

    Raises:
        FormatError: the file is missing, damaged, or does not fit the module.
        MismatchError: it belongs to another host.
    """
    tensors, header = load_tensors(path)
    if header.get("host") != host:
        raise MismatchError(f"{path} belongs to another host than the rest of its bundle: fetch the bundle again")
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise FormatError(f"{path} does not fit the settings of its bundle: fetch the bundle again") from error
    if digest_tensors(tensors) != digest:
        raise FormatError(f"{path} is damaged (its digest differs): fetch the bundle again")


def read_bank(folder: Path, host: str, version: str | None, *, edited: bool) -> PrototypeBank | None:
    """The bank of this ``version``, made for this ``host``; ``persona.prototypes.Server`` refuses one of another editor.

    Args:
        folder: of the bank.
        host: digest of the host.
        version: that the bundle was released with; ``None`` where it has no bank.
        edited: whether the bundle has an editor.

    Raises:
        FormatError: the bank is damaged, or in a bundle without an editor.
        MismatchError: the bank is of another version or host.
    """
    from persona.prototypes import load_bank

    if version is None:
        return None
    if not edited:
        raise FormatError(f"{folder} is a prototype bank in a bundle without an editor: {AGAIN}")
    bank = load_bank(folder, host)
    if bank.version != version:
        raise MismatchError(
            f"{folder} holds the prototype bank {bank.version[:12]}, but its bundle was released with {version[:12]}: "
            "fetch the bundle again"
        )
    return bank
