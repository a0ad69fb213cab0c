"""Answers of a released classifier: what do these images of one device show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from persona.errors import ConfigError, DataError, nearest
from pipelines import tracking
from pipelines.steps.workspace import Workspace
from pipelines.tracking import registry
from vision.serving.classifier import Classification, Classifier
from vision.task import VISION


@dataclass(frozen=True)
class Answer:
    """Which images were classified, and how."""

    images: list[str]
    truth: list[str]
    skipped: list[str]
    classification: Classification


def classify(
    source: str | Path,
    *,
    work: Workspace | None = None,
    device: str | None = None,
    images: Sequence[Path] | None = None,
    level: str = "edit",
) -> Answer:
    """Answer "what do these images of one device show".

    Args:
        source: a bundle folder, or a registered model such as ``models:/persona-vision@candidate``.
        work: where ``device`` is looked up.
        device: an id of the prepared data, whose last images are classified; or
        images: files, oldest first, or folders of them.
        level: one of ``persona.wire.LEVELS``.

    Raises:
        ConfigError: neither or both of ``device`` and ``images`` are given.
        DataError: the device is unknown, or no image can be read.
    """
    if (device is None) == (not images):
        raise ConfigError("give either a device of the prepared data (--device) or files of images (--images)")
    classifier = load_classifier(source)
    if images:
        pixels, kept, skipped = classifier.read(_files(images))
        return Answer([str(path) for path in kept], [], skipped, classifier.classify(pixels, level=level))
    if work is None:
        raise ConfigError("a device is looked up in a workspace: give --work, or --images instead")
    data = work.data(VISION)
    if device not in data.device_ids:
        raise DataError(f"no device {device!r} in {work.root}: {nearest(str(device), data.device_ids)}")
    own = data.positions_of(np.array([data.device_ids.index(device)]))[-classifier.context_images :]
    names = [data.class_names[i] for i in data.labels[own]]
    numbers = [f"{device} image {i}" for i in own - own[0] + 1]
    return Answer(numbers, names, [], classifier.classify(data.pixels[own], level=level))


def _files(given: Sequence[Path]) -> list[Path]:
    """Files as they are, and those of folders in the order of their names."""
    found: list[Path] = []
    for path in given:
        if not path.exists():
            raise DataError(f"{path} does not exist: give image files or folders of them")
        found += sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return found


def load_classifier(source: str | Path) -> Classifier:
    """The classifier of a bundle folder or of a registered model's URI."""
    if str(source).startswith(("models:", "runs:")):
        tracking.connect(VISION.name)
        return Classifier.load(registry.download(str(source)))
    return Classifier.load(source)
