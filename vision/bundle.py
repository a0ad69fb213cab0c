"""The folder that a classifier is kept in: all a server needs, and nothing that has to be unpickled.

bundle.json             format, settings, classes, digests, metrics, lineage
host.safetensors        the host's parameters and running statistics
reader.safetensors      the scale of the context (absent, as the editor, if the bundle is the host alone)
editor.safetensors      the editor's parameters
bank/                   the prototype bank (see ``persona.prototypes``; absent if there is none)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from persona.editor import EditorConfig
from persona.errors import ConfigError, DataError, FormatError, MismatchError
from persona.prototypes import PrototypeBank, load_bank, save_bank
from persona.storage import atomic_folder, digest_tensors, load_tensors, read_json, save_tensors, write_json
from vision.contexts import ContextReader
from vision.hosts import Host, HostConfig, make_host
from vision.personalised import Personalised, make_editor

FORMAT = "persona-vision-bundle"
FORMAT_VERSION = 1

HEADER, HOST, READER, EDITOR, BANK = (
    "bundle.json",
    "host.safetensors",
    "reader.safetensors",
    "editor.safetensors",
    "bank",
)
_ENTRIES = ("host", "image_shape", "classes", "context", "editor", "digests", "bank_version", "info")


@dataclass(frozen=True)
class Bundle:
    """What the folder holds.

    Attributes:
        model: host, reader and editor.
        class_names: (K,).
        image_shape: (C, H, W) of the images that the host has learned from.
        info: what is told about training: settings, metrics, data digest, lineage.
        bank: prototypes of this host and editor.
    """

    model: Personalised
    class_names: list[str]
    image_shape: tuple[int, int, int]
    info: dict[str, Any]
    bank: PrototypeBank | None = None

    def write(self, folder: Path) -> None:
        """Write the folder, which appears at once or not at all."""
        host, reader, editor = self.model.host, self.model.reader, self.model.editor
        parts: dict[str, torch.nn.Module] = {HOST: host}
        if editor is not None and reader is not None:
            parts |= {READER: reader, EDITOR: editor}
        digests = {name: digest_tensors(part.state_dict()) for name, part in parts.items()}
        header = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "host": host.config.as_dict(),
            "image_shape": list(self.image_shape),
            "classes": self.class_names,
            "context": None if reader is None else reader.kind,
            "editor": None if editor is None else editor.config.as_dict(),
            "digests": digests,
            "bank_version": None if self.bank is None else self.bank.version,
            "info": self.info,
        }
        with atomic_folder(Path(folder)) as new:
            for name, part in parts.items():
                save_tensors(new / name, part.state_dict(), {"host": digests[HOST]})
            if self.bank is not None:
                save_bank(new / BANK, self.bank)
            write_json(new / HEADER, header)

    @classmethod
    def read(cls, folder: Path | str) -> Bundle:
        """Read what ``write`` wrote.

        Raises:
            DataError: there is no bundle in the folder.
            FormatError: the bundle is damaged, or of a version that this release cannot read.
            MismatchError: files of the folder belong to different bundles.
        """
        folder = Path(folder)
        header = _read_header(folder)
        try:
            model = _built(header)
        except (ConfigError, TypeError, AttributeError) as error:
            problem = f"{folder / HEADER} has settings that make no model ({error})"
            raise FormatError(f"{problem}: release the bundle again") from error
        for name, part in ((HOST, model.host), (READER, model.reader), (EDITOR, model.editor)):
            if part is not None:
                _load_state(part, folder / name, header["digests"][HOST], header["digests"].get(name))
        return cls(
            model,
            list(header["classes"]),
            tuple(header["image_shape"]),
            header["info"],
            _read_bank(folder / BANK, model, header["bank_version"]),
        )


def _read_header(folder: Path) -> dict[str, Any]:
    path = folder / HEADER
    if not path.is_file():
        raise DataError(f"{folder} holds no bundle (no {HEADER}): run `persona vision release` first")
    header = read_json(path)
    found = header if isinstance(header, dict) else {}
    if found.get("format") != FORMAT or found.get("version") != FORMAT_VERSION:
        raise FormatError(
            f"{folder} has format {found.get('format')!r} version {found.get('version')!r}, but {FORMAT!r} version "
            f"{FORMAT_VERSION} is needed: release the bundle again"
        )
    missing = set(_ENTRIES) - found.keys()
    if missing:
        raise FormatError(f"{path} lacks {min(missing)!r}: release the bundle again")
    return found


def _built(header: Mapping[str, Any]) -> Personalised:
    """Host, reader and editor, yet without their parameters."""
    host: Host = make_host(HostConfig.from_dict(header["host"]))
    if header["editor"] is None:
        return Personalised(host)
    config = EditorConfig.from_dict(header["editor"])
    editor = make_editor(host, config)
    editor.host = header["digests"][HOST]
    return Personalised(host, ContextReader(header["context"], host), editor)


def _load_state(module: torch.nn.Module, path: Path, host: str, digest: str) -> None:
    """Fill ``module`` with the parameters of this ``digest``, which belong to the host with the digest ``host``."""
    tensors, header = load_tensors(path)
    if header.get("host") != host:
        raise MismatchError(f"{path} belongs to another host than the rest of its bundle: fetch the bundle again")
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise FormatError(f"{path} does not fit the settings of its bundle: fetch the bundle again") from error
    if digest_tensors(tensors) != digest:
        raise FormatError(f"{path} is damaged (its digest differs): fetch the bundle again")


def _read_bank(folder: Path, model: Personalised, version: str | None) -> PrototypeBank | None:
    """The bank of this ``version``, which was made for this host; ``Server`` refuses one of another editor."""
    if version is None:
        return None
    if model.editor is None:
        raise FormatError(f"{folder} is a prototype bank in a bundle without an editor: release the bundle again")
    bank = load_bank(folder, model.editor.host)
    if bank.version != version:
        raise MismatchError(
            f"{folder} holds the prototype bank {bank.version[:12]}, but its bundle was released with {version[:12]}: "
            "fetch the bundle again"
        )
    return bank
