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
from torch import Tensor, nn

from persona import release
from persona.bundles import EDITOR, HOST
from persona.editor import EditorConfig
from persona.errors import ConfigError
from persona.prototypes import PrototypeBank
from vision.contexts import ContextReader
from vision.hosts import HostConfig, make_host
from vision.personalised import Personalised, make_editor
from vision.serving.bundle import CONTEXT_IMAGES, HEADER_OF, READER
from vision.serving.classifier import Classifier, as_rows
from vision.serving.compile import compile_model, with_tables
from vision.serving.graphs import BODY, CompiledModel


class Release(release.Release[Personalised]):
    """A trained classifier and all that a bundle says of it; ``info``, ``bank``, ``compiled`` and errors as in the base.

    Args:
        model: host, reader and editor.
        class_names: (K,).
        image_shape: (C, H, W) of the images that the host has learned from.
    """

    bundle, needed = HEADER_OF, BODY

    def __init__(
        self,
        model: Personalised,
        class_names: Sequence[str],
        image_shape: tuple[int, int, int],
        info: Mapping[str, Any] | None = None,
        bank: PrototypeBank | None = None,
        compiled: Mapping[str, bytes] | None = None,
    ) -> None:
        super().__init__(model, info, bank, compiled)
        self.class_names, self.image_shape = list(class_names), image_shape

    @property
    def context_images(self) -> int:
        """n, the images that the editor has learned to read at most."""
        return int(self.info.get("settings", {}).get("context_images", CONTEXT_IMAGES))

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

    @staticmethod
    def _parts(model: Personalised) -> dict[str, nn.Module]:
        parts = {HOST: model.host, READER: model.reader, EDITOR: model.editor}
        return {name: part for name, part in parts.items() if part is not None}

    @staticmethod
    def _built(header: Mapping[str, Any]) -> Personalised:
        host = make_host(HostConfig.from_dict(header["host"]))
        if header["editor"] is None:
            return Personalised(host)
        editor = make_editor(host, EditorConfig.from_dict(header["editor"]))
        return Personalised(host, ContextReader(header["context"], host), editor)

    def _entries(self, of_parts: Mapping[str, str]) -> dict[str, Any]:
        host, reader, editor = self.model.host, self.model.reader, self.model.editor
        return {
            "host": host.config.as_dict(),
            "image_shape": list(self.image_shape),
            "classes": self.class_names,
            "context": None if reader is None else reader.kind,
            "editor": None if editor is None else editor.config.as_dict(),
            "digests": dict(of_parts),
            "bank_version": None if self.bank is None else self.bank.version,
        }

    @staticmethod
    def _digests(header: Mapping[str, Any]) -> dict[str, str]:
        return dict(header["digests"])

    @staticmethod
    def _own(folder: Path, header: Mapping[str, Any]) -> dict[str, Any]:
        return {"class_names": header["classes"], "image_shape": tuple(header["image_shape"])}
