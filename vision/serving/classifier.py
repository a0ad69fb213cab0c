"""The classifier that every door answers with: command line, notebook, MLflow, service. Graphs and tables, without torch.

    images ─> body.onnx ─> features ─> edit.onnx ─> codes, edit ─> EditTables: level, trust ─> body.onnx, head.onnx ─> classes

The levels and what they fall back to stand in ``persona.answering``. ``vision.serving.compile`` makes the files at release; they lie in
the folder ``compiled`` of a bundle.

Shapes: n images, C channels, H height, W width, F features, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from persona.answering import HOST, Answering, Contexts, check_level, plan
from persona.bundles import HOST as HOST_FILE
from persona.bundles import check_tables, fitting
from persona.errors import ConfigError, DataError, MismatchError
from vision.data.sources.decode import UnreadableImage, decode
from vision.serving.bundle import CONTEXT_IMAGES, HEADER_OF
from vision.serving.graphs import BODY, CompiledModel, softmax


@dataclass(frozen=True)
class Classification:
    """The answer for the images of one device.

    Attributes:
        classes: (n,) name of the likeliest class of each image.
        probabilities: (n, K) in the order of the classifier's ``class_names``.
        level: what answered, one of ``persona.wire.LEVELS``.
        edit_norm: Frobenius norm of the edit that was applied, 0 at level ``host``.
        prototype: nearest prototype, whatever the level, if there is a bank.
        bank: version of the bundle's prototype bank, empty if it has none.
        fallback: why a lower level answered than the one asked for; empty if none did.
        distance: norm of the remaining edit from the nearest prototype.
    """

    classes: list[str]
    probabilities: list[list[float]]
    level: str
    edit_norm: float = 0.0
    prototype: int | None = None
    bank: str = ""
    fallback: str = ""
    distance: float | None = None


class Classifier(Answering):
    """A bundle, ready to answer.

    Args:
        model: graphs and tables.
        class_names: (K,).
        image_shape: (C, H, W) of the images that the host has learned from.
        host: digest of the host.
        context_images: the images that the editor has learned to read at most.

    Example::

        classifier = Classifier.load("work/bundle")
        answer = classifier.classify(pixels)  # the last images of one device, uint8 (n, H, W, C)
        print(answer.classes, answer.level)
    """

    model: CompiledModel

    def __init__(
        self,
        model: CompiledModel,
        class_names: Sequence[str],
        image_shape: tuple[int, int, int],
        host: str,
        context_images: int = CONTEXT_IMAGES,
    ) -> None:
        self.model, self.class_names, self.image_shape = model, list(class_names), image_shape
        self.host, self.context_images = host, context_images

    @classmethod
    def load(cls, folder: Path | str) -> Classifier:
        """Read what answers are made with.

        Raises:
            DataError: there is no bundle in the folder, or it was never compiled.
            FormatError: a file is damaged.
            MismatchError: files of the folder belong to different bundles.
        """
        folder = Path(folder)
        header, files = HEADER_OF.answering(folder, BODY, "vision")
        with fitting(folder):
            host = str(header["digests"][HOST_FILE])
            context = int(header["info"].get("settings", {}).get("context_images", CONTEXT_IMAGES))
            made = cls(CompiledModel(files), header["classes"], tuple(header["image_shape"]), host, context)
        check_tables(folder, host, header["bank_version"], made.tables)
        return made

    def classify(self, images: NDArray[np.uint8], *, level: str = "edit", context: int | None = None) -> Classification:
        """Classify images of one device, each under the edit that all of them together ask for.

        Args:
            images: (n, H, W, C) or (n, H, W) uint8, oldest first.
            level: one of ``persona.wire.LEVELS``.
            context: the edit reads the last so many images; by default as many as the editor has learned from.

        Raises:
            ConfigError: the level is unknown, or ``context`` is below 1.
            DataError: there is no image.
            MismatchError: the images have another size or other channels than those that the host has learned from.
        """
        check_level(level)
        if context is not None and context < 1:
            raise ConfigError(f"context is {context}, but the edit has to read at least one image")
        shown = self._checked(images)
        features = self.model.features(shown)
        read = features[-(context or self.context_images) :]
        chosen = plan(self.tables, [level], [""], lambda: self.model.contexts(read))
        edit = None if chosen.levels[0] == HOST else chosen.edits
        logits = self.model.logits(
            self.model.features(shown, edit) if edit is not None and self.model.edits_features else features, edit
        )
        if edit is not None and not np.isfinite(logits).all():
            chosen.refuse(0)
            logits = self.model.logits(features)
        used, fallback, prototype, distance, norm = chosen.of(0)
        classes = [self.class_names[i] for i in logits.argmax(axis=1).tolist()]
        probabilities = softmax(logits).tolist()
        return Classification(classes, probabilities, used, norm, prototype, self.bank, fallback, distance)

    def contexts(self, images: NDArray[np.uint8]) -> Contexts:
        """What the editor says of the last images of one device; arguments and errors as ``classify`` has them."""
        return self.model.contexts(self.model.features(self._checked(images)[-self.context_images :]))

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

    def _checked(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(n, C, H, W) of images that this host reads."""
        return as_rows(images, self.image_shape)


def as_rows(images: NDArray[np.uint8], image_shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Images of one device, (n, H, W, C) or (n, H, W) uint8 -> (n, C, H, W).

    Args:
        images: as they are given.
        image_shape: (C, H, W) that they have to have.

    Raises:
        DataError: there is no image.
        MismatchError: they have another size, other channels or another type.
    """
    given = np.asarray(images)
    given = given[..., None] if given.ndim == 3 else given
    if given.ndim != 4 or not len(given):
        raise DataError(f"images of one device are (n, height, width, channels) with n from 1 up, not {given.shape}")
    shape = (given.shape[3], given.shape[1], given.shape[2])
    if shape != image_shape or given.dtype != np.uint8:
        c, h, w = image_shape
        raise MismatchError(
            f"these images have {shape[1]} x {shape[2]} pixels, {shape[0]} channel(s) and type {given.dtype}, but the "
            f"host reads {h} x {w}, {c} channel(s) and uint8: convert them"
        )
    return np.ascontiguousarray(given.transpose(0, 3, 1, 2))
