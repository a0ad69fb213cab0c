"""The servable classifier: a device's images in, their classes out, at any serving level.

    level       what classifies                                                  falls back to
    host        the host as it is, the same for everybody
    prototype   the prototype nearest to what the device shows                   host
    basis       the prototype, and the remaining edit in the bank's basis        prototype, host
    edit        the whole edit                                                   prototype, host

Do no harm: an edit that is not finite is never used; the next level answers, and says why.

Shapes: n images, C channels, H height, W width, K classes, L layers, d code width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from persona.edits import Edit
from persona.errors import ConfigError, DataError, MismatchError, nearest
from persona.prototypes import PrototypeBank, Server
from persona.wire import LEVELS
from vision.data.sources.decode import UnreadableImage, decode
from vision.personalised import Personalised
from vision.serving.bundle import Bundle

# What answers in turn where a level cannot.
FALLBACKS = {level: tuple(dict.fromkeys((level, "prototype", "host"))) for level in LEVELS[1:]} | {"host": ("host",)}

NO_EDITOR = "the bundle has no editor"
NO_BANK = "the bundle has no prototypes"
NOT_FINITE = "the edit is not finite"


@dataclass(frozen=True)
class Classification:
    """The answer for the images of one device.

    Attributes:
        classes: (n,) name of the likeliest class of each image.
        probabilities: (n, K) in the order of the classifier's ``class_names``.
        level: what answered, one of ``LEVELS``.
        edit_norm: Frobenius norm of the edit that was applied, 0 at level ``host``.
        prototype: index of the prototype that the answer stands on, at levels ``prototype`` and ``basis``.
        bank: version of the bundle's prototype bank, empty if it has none.
        fallback: why a lower level answered than the one asked for; empty if none did.
    """

    classes: list[str]
    probabilities: list[list[float]]
    level: str
    edit_norm: float = 0.0
    prototype: int | None = None
    bank: str = ""
    fallback: str = ""


class Classifier:
    """A personalised image classifier, ready to answer.

    Args:
        model: host, reader and editor.
        class_names: (K,) names of the classes.
        image_shape: (C, H, W) of the images that the host has learned from.
        info: what ``bundle.json`` tells about training: settings, metrics, data digest, lineage.
        bank: prototypes made with this host and editor.

    Attributes:
        server: serving levels of the bank, ``None`` without one.
        host_digest: what edits of this host carry.

    Raises:
        ConfigError: a bank without an editor.
        MismatchError: the bank was made with another host or editor.

    Example::

        classifier = Classifier.load("work/bundle")
        answer = classifier.classify(pixels)  # the last images of one device, uint8 (n, H, W, C)
        print(answer.classes, answer.level)
    """

    def __init__(
        self,
        model: Personalised,
        class_names: Sequence[str],
        image_shape: tuple[int, int, int],
        info: Mapping[str, Any] | None = None,
        bank: PrototypeBank | None = None,
    ) -> None:
        self.model, self.class_names, self.image_shape = model.eval(), list(class_names), image_shape
        self.info = dict(info or {})
        self.host_digest = model.host.digest()
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
        return int(self.info.get("settings", {}).get("context_images", 20))

    @property
    def bank(self) -> PrototypeBank | None:
        """The prototype bank, if there is one."""
        return None if self.server is None else self.server.bank

    @torch.inference_mode()
    def classify(self, images: NDArray[np.uint8], *, level: str = "edit", context: int | None = None) -> Classification:
        """Classify images of one device, each under the edit that all of them together ask for.

        Args:
            images: (n, H, W, C) or (n, H, W) uint8, oldest first.
            level: one of ``LEVELS``.
            context: the edit reads the last so many images; by default as many as the editor has learned from.

        Raises:
            ConfigError: the level is unknown, or ``context`` is below 1.
            DataError: there is no image.
            MismatchError: the images have another size or other channels than those that the host has learned from.
        """
        if level not in LEVELS:
            raise ConfigError(f"unknown level {level!r}: {nearest(level, LEVELS)}")
        if context is not None and context < 1:
            raise ConfigError(f"context is {context}, but the edit has to read at least one image")
        shown = self._tensor(images)
        features = self.model.host.features(shown)
        edit, answered, prototype, fallback = self._edit(features[-(context or self.context_images) :], level)
        changed = edit is not None and not self.model.host.shared_features
        logits = self.model.host.classify(self.model.host.features(shown, edit) if changed else features, edit)
        return Classification(
            classes=[self.class_names[i] for i in logits.argmax(1).tolist()],
            probabilities=logits.softmax(1).tolist(),
            level=answered,
            edit_norm=0.0 if edit is None else float(edit.norm()[0]),
            prototype=prototype,
            bank="" if self.bank is None else self.bank.version,
            fallback=fallback,
        )

    @torch.inference_mode()
    def codes(self, images: NDArray[np.uint8]) -> Tensor:
        """Editing codes (1, L, d) of a device's images, for assignment and refinement.

        Raises:
            ConfigError: the bundle has no editor.
        """
        if self.model.editor is None:
            raise ConfigError("this bundle is the host alone and makes no codes: release one with an editor")
        return self.model.codes(self.model.host.features(self._tensor(images)).unsqueeze(0))

    def read(self, paths: Sequence[Path]) -> tuple[NDArray[np.uint8], list[Path], list[str]]:
        """Image files as this classifier reads them, stretched to its size.

        Returns:
            Pixels (n, H, W, C), the files they come from, and a line for every file that was left out.

        Raises:
            DataError: not a single file can be read.
        """
        channels, height, width = self.image_shape
        pixels, kept, skipped = [], [], []
        for path in paths:
            try:
                pixels.append(decode(path, (height, width, channels)))
                kept.append(path)
            except UnreadableImage as error:
                skipped.append(f"{path}: {error}")
        if not pixels:
            raise DataError(
                f"none of the {len(paths)} image(s) can be read ({'; '.join(skipped[:3])}): give image files"
            )
        return np.stack(pixels), kept, skipped

    def save(self, folder: Path) -> None:
        """Write the bundle; the folder appears at once or not at all."""
        Bundle(self.model, self.class_names, self.image_shape, self.info, self.bank).write(Path(folder))

    @classmethod
    def load(cls, folder: Path | str) -> Classifier:
        """Read what ``save`` wrote; see ``vision.serving.bundle.Bundle.read`` for what it refuses."""
        bundle = Bundle.read(folder)
        return cls(bundle.model, bundle.class_names, bundle.image_shape, bundle.info, bundle.bank)

    def _edit(self, features: Tensor, level: str) -> tuple[Edit | None, str, int | None, str]:
        """The edit for a device from features (n, F), the level that made it, its prototype, and why no higher one did."""
        if level == "host":
            return None, "host", None, ""
        if self.model.editor is None:
            return None, "host", None, NO_EDITOR
        codes = self.model.codes(features.unsqueeze(0))
        if not bool(torch.isfinite(codes).all()):
            return None, "host", None, NOT_FINITE
        reason = ""
        for tried in FALLBACKS[level][:-1]:
            if tried != "edit" and self.server is None:
                reason = reason or NO_BANK
                continue
            edit, prototype = self._at(tried, codes)
            if bool(edit.is_finite().all()):
                return edit, tried, prototype, reason
            reason = reason or NOT_FINITE
        return None, "host", None, reason

    def _at(self, level: str, codes: Tensor) -> tuple[Edit, int | None]:
        assert self.model.editor is not None
        if level == "edit" or self.server is None:
            return self.model.editor.bounded(self.model.editor.unbounded(codes)), None
        return self.server.edit(codes, level), int(self.server.assign(codes)[0])

    def _tensor(self, images: NDArray[np.uint8]) -> Tensor:
        """(n, C, H, W) uint8."""
        given = np.asarray(images)
        given = given[..., None] if given.ndim == 3 else given
        if given.ndim != 4 or not len(given):
            raise DataError(
                f"images of one device are (n, height, width, channels) with n from 1 up, not {given.shape}"
            )
        shape = (given.shape[3], given.shape[1], given.shape[2])
        if shape != self.image_shape or given.dtype != np.uint8:
            c, h, w = self.image_shape
            raise MismatchError(
                f"these images have {shape[1]} x {shape[2]} pixels, {shape[0]} channel(s) and type {given.dtype}, but the "
                f"host reads {h} x {w}, {c} channel(s) and uint8: convert them"
            )
        return torch.from_numpy(np.ascontiguousarray(given.transpose(0, 3, 1, 2)))
