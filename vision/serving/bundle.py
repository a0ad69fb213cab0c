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

from persona.bundles import BundleFormat, load_state, read_bank
from persona.editor import EditorConfig
from persona.errors import ConfigError, FormatError
from persona.prototypes import PrototypeBank, save_bank
from persona.storage import atomic_folder, digest_tensors, save_tensors, write_json
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
HEADER_OF = BundleFormat(FORMAT, HEADER, {FORMAT_VERSION: _ENTRIES}, "run `persona vision release` first")


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
        header = HEADER_OF.read(folder)
        try:
            model = _built(header)
        except (ConfigError, TypeError, AttributeError) as error:
            problem = f"{folder / HEADER} has settings that make no model ({error})"
            raise FormatError(f"{problem}: release the bundle again") from error
        for name, part in ((HOST, model.host), (READER, model.reader), (EDITOR, model.editor)):
            if part is not None:
                load_state(part, folder / name, header["digests"][HOST], header["digests"].get(name))
        return cls(
            model,
            list(header["classes"]),
            tuple(header["image_shape"]),
            header["info"],
            read_bank(folder / BANK, header["digests"][HOST], header["bank_version"], edited=model.editor is not None),
        )


def _built(header: Mapping[str, Any]) -> Personalised:
    """Host, reader and editor, yet without their parameters."""
    host: Host = make_host(HostConfig.from_dict(header["host"]))
    if header["editor"] is None:
        return Personalised(host)
    config = EditorConfig.from_dict(header["editor"])
    editor = make_editor(host, config)
    editor.host = header["digests"][HOST]
    return Personalised(host, ContextReader(header["context"], host), editor)
