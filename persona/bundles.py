"""What the folders of all bundles share: a header that is checked first, and parts that belong to each other.

A bundle is a folder with a JSON header, tensors that carry the digest of their host, maybe a prototype bank, and what answers are
made with: graphs and tables in the folder ``compiled``. Which files there are is the task's own affair. torch is loaded by the
functions that need it, so that a service or a device without it can read the rest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona.errors import DataError, FormatError, MismatchError, PersonaError
from persona.storage import digest_tensors, load_tensors, read_json
from persona.task import found_at

if TYPE_CHECKING:
    from torch import nn

    from persona.cloud import EditTables
    from persona.prototypes import PrototypeBank

AGAIN = "release the bundle again"
# Where the parts lie that bundles of all tasks have.
HOST, EDITOR, BANK, COMPILED = "host.safetensors", "editor.safetensors", "bank", "compiled"


@dataclass(frozen=True)
class BundleFormat:
    """How the header of a kind of bundle is recognised.

    Attributes:
        name: its ``format``.
        header: name of the JSON file.
        entries: what a header has to hold, for every version that can be read; the latest one is written.
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

    def answering(self, folder: Path, needed: str, task: str) -> tuple[dict[str, Any], dict[str, bytes]]:
        """The header of a bundle and its compiled files; made now, by torch, where an earlier release left them out.

        Args:
            folder: of the bundle.
            needed: name of the file that every compiled bundle has.
            task: whose bundle it is.

        Raises:
            DataError: there is no bundle, or it was never compiled and torch is not installed.
            FormatError: a file is missing or damaged.
        """
        header = self.read(folder)
        files = read_compiled(folder, header, needed)
        if files is None:
            try:
                files = dict(found_at(f"{task}.serving.release:Release.load")(folder).compiled_files)
            except ModuleNotFoundError as error:
                raise DataError(
                    f"{folder} was released without its compiled form: run `persona {task} release` again"
                ) from error
        return header, files


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


def digests(files: Mapping[str, bytes]) -> dict[str, str]:
    """SHA-256, in hex, of every compiled file: what the bundle's header lists."""
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def write_compiled(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write the compiled files of the bundle that is being made in ``folder``."""
    (folder / COMPILED).mkdir()
    for name, data in files.items():
        (folder / COMPILED / name).write_bytes(data)


def read_compiled(folder: Path, header: Mapping[str, Any], needed: str) -> dict[str, bytes] | None:
    """The compiled files of a bundle by name; ``None`` if it was released without them.

    Args:
        folder: of the bundle.
        header: of the bundle.
        needed: name of the file that every compiled bundle has.

    Raises:
        FormatError: a file is missing or damaged.
    """
    listed = header.get("compiled")
    if listed is None:
        return None
    files = {}
    for name, digest in listed.items():
        path = folder / COMPILED / Path(name).name
        try:
            files[name] = path.read_bytes()
        except OSError as error:
            raise FormatError(f"{path} cannot be read ({error.strerror}): fetch the bundle again") from error
        if hashlib.sha256(files[name]).hexdigest() != digest:
            raise FormatError(f"{path} is damaged (its digest differs): fetch the bundle again")
    if needed not in files:
        raise FormatError(f"{folder} lacks the graph {needed}: fetch the bundle again")
    return files


@contextmanager
def fitting(folder: Path) -> Iterator[None]:
    """A block that puts the parts of a bundle together.

    Raises:
        FormatError: they do not fit: onnxruntime raises many kinds of errors, and a damaged header lacks any key.
    """
    try:
        yield
    except PersonaError:
        raise
    except Exception as error:
        raise FormatError(f"{folder} does not fit together ({type(error).__name__}): release it again") from error


def check_tables(folder: Path, host: str, version: str | None, tables: EditTables | None) -> None:
    """Refuse edit tables that are not those of the bundle's host and prototype bank.

    Raises:
        MismatchError: they were made for another host or bank.
    """
    if tables is not None and tables.host != host:
        raise MismatchError(
            f"the edit tables of {folder} were made for the host {tables.host[:12]}, but the bundle holds {host[:12]}: {AGAIN}"
        )
    if (version or "") != ("" if tables is None else tables.bank):
        raise MismatchError(f"{folder} holds the tables of another prototype bank: {AGAIN}")
