"""What becomes a bundle: a trained classifier with its classes and its prototype bank. Needs torch; answers do not.

    Release(model, class_names, image_shape, info, bank).compile().save(folder)  ->  Classifier.load(folder)

What trains, refines or exports a released model reads it here; what answers is ``vision.serving.classifier.Classifier``.

Shapes: n images, C channels, H height, W width, K classes, L layers, d code width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from persona.bundles import digests, load_state, read_bank, read_compiled, write_compiled
from persona.editor import EditorConfig
from persona.errors import ConfigError, FormatError
from persona.prototypes import PrototypeBank, Server, save_bank
from persona.storage import atomic_folder, digest_tensors, save_tensors, write_json
from vision.contexts import ContextReader
from vision.hosts import Host, HostConfig, make_host
from vision.personalised import Personalised, make_editor
from vision.serving.bundle import (
    BANK,
    CONTEXT_IMAGES,
    EDITOR,
    FORMAT,
    FORMAT_VERSION,
    HEADER,
    HEADER_OF,
    HOST,
    READER,
)
from vision.serving.classifier import Classifier, as_rows
from vision.serving.compile import compile_model, with_tables
from vision.serving.graphs import BODY, CompiledModel


class Release:
    """A trained classifier and all that a bundle says of it.

    Args:
        model: host, reader and editor.
        class_names: (K,).
        image_shape: (C, H, W) of the images that the host has learned from.
        info: what ``bundle.json`` tells about training: settings, metrics, data digest, lineage.
        bank: prototypes made with this host and editor.
        compiled: what ``compile`` made before, files by name.

    Attributes:
        server: serving levels of the bank, ``None`` without one.
        host_digest: what edits of this host carry.

    Raises:
        ConfigError: a bank without an editor.
        MismatchError: the bank was made with another host or editor.
    """

    def __init__(
        self,
        model: Personalised,
        class_names: Sequence[str],
        image_shape: tuple[int, int, int],
        info: Mapping[str, Any] | None = None,
        bank: PrototypeBank | None = None,
        compiled: Mapping[str, bytes] | None = None,
    ) -> None:
        self.model, self.class_names, self.image_shape = model.eval(), list(class_names), image_shape
        self.info = dict(info or {})
        self.host_digest = model.host.digest()
        self.compiled = None if compiled is None else dict(compiled)
        self.server: Server | None = None
        if model.editor is not None:
            model.editor.host = self.host_digest
        if bank is not None:
            if model.editor is None:
                raise ConfigError(
                    "a prototype bank needs the editor that it was made with: give a model with an editor"
                )
            self.server = Server(model.editor, bank)

    @property
    def context_images(self) -> int:
        """n, the images that the editor has learned to read at most."""
        return int(self.info.get("settings", {}).get("context_images", CONTEXT_IMAGES))

    @property
    def bank(self) -> PrototypeBank | None:
        """The prototype bank, if there is one."""
        return None if self.server is None else self.server.bank

    @property
    def compiled_files(self) -> dict[str, bytes]:
        """What answers are made with, files by name; compiled now if that was not done yet."""
        if self.compiled is None:
            self.compile()
        assert self.compiled is not None
        return self.compiled

    def compile(self) -> Release:
        """Make what answers are made with, which ``save`` keeps in the bundle; takes some seconds.

        Raises:
            ConfigError: this host or editor cannot be compiled.
        """
        self.compiled = compile_model(self.model, self.image_shape, self.bank)
        return self

    def with_bank(self, bank: PrototypeBank) -> Release:
        """The same model with another bank, whose graphs need not be compiled again where they fit it."""
        assert self.model.editor is not None
        files = None if self.compiled is None else with_tables(self.compiled, self.model.editor, bank)
        return Release(self.model, self.class_names, self.image_shape, self.info, bank, files)

    def classifier(self) -> Classifier:
        """What answers from the bundle that ``save`` would write."""
        model = CompiledModel(self.compiled_files)
        return Classifier(model, self.class_names, self.image_shape, self.host_digest, self.context_images)

    @torch.inference_mode()
    def codes(self, images: NDArray[np.uint8]) -> Tensor:
        """Editing codes (1, L, d) of a device's images (n, H, W, C), for assignment and refinement.

        Raises:
            ConfigError: the bundle has no editor.
        """
        if self.model.editor is None:
            raise ConfigError("this bundle is the host alone and makes no codes: release one with an editor")
        shown = torch.from_numpy(as_rows(images, self.image_shape))
        return self.model.codes(self.model.host.features(shown).unsqueeze(0))

    def save(self, folder: Path) -> None:
        """Write the bundle; the folder appears at once or not at all."""
        host, reader, editor = self.model.host, self.model.reader, self.model.editor
        parts: dict[str, torch.nn.Module] = {HOST: host}
        if editor is not None and reader is not None:
            parts |= {READER: reader, EDITOR: editor}
        of_parts = {name: digest_tensors(part.state_dict()) for name, part in parts.items()}
        header = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "host": host.config.as_dict(),
            "image_shape": list(self.image_shape),
            "classes": self.class_names,
            "context": None if reader is None else reader.kind,
            "editor": None if editor is None else editor.config.as_dict(),
            "digests": of_parts,
            "bank_version": None if self.bank is None else self.bank.version,
            "compiled": None if self.compiled is None else digests(self.compiled),
            "info": self.info,
        }
        with atomic_folder(Path(folder)) as new:
            for name, part in parts.items():
                save_tensors(new / name, part.state_dict(), {"host": of_parts[HOST]})
            if self.bank is not None:
                save_bank(new / BANK, self.bank)
            if self.compiled is not None:
                write_compiled(new, self.compiled)
            write_json(new / HEADER, header)

    @classmethod
    def load(cls, folder: Path | str) -> Release:
        """Read what ``save`` wrote.

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
        of_host = header["digests"][HOST]
        for name, part in ((HOST, model.host), (READER, model.reader), (EDITOR, model.editor)):
            if part is not None:
                load_state(part, folder / name, of_host, header["digests"].get(name))
        bank = read_bank(folder / BANK, of_host, header["bank_version"], edited=model.editor is not None)
        shape = tuple(header["image_shape"])
        return cls(model, header["classes"], shape, header["info"], bank, read_compiled(folder, header, BODY))


def _built(header: Mapping[str, Any]) -> Personalised:
    """Host, reader and editor, yet without their parameters."""
    host: Host = make_host(HostConfig.from_dict(header["host"]))
    if header["editor"] is None:
        return Personalised(host)
    config = EditorConfig.from_dict(header["editor"])
    editor = make_editor(host, config)
    editor.host = header["digests"][HOST]
    return Personalised(host, ContextReader(header["context"], host), editor)
