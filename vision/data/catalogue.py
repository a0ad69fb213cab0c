"""Named public data sets that ship inside installed packages, for anybody's first run."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from persona.catalogue import check_listed, own_data
from persona.errors import ConfigError
from vision.data.images import DeviceImages
from vision.data.sources import ImageReport, read_images
from vision.data.sources.found import Found, build

# What the corruptions need at least; the digits themselves have 8 pixels.
DIGITS_SIZE = 32


@dataclass(frozen=True)
class Entry:
    """A data set of the catalogue.

    Attributes:
        about: one line for a person.
        install: the line that installs it.
        read: reads it from the installed package.
    """

    about: str
    install: str
    read: Callable[[], tuple[DeviceImages, ImageReport]]


def load(name: str) -> tuple[DeviceImages, ImageReport]:
    """Read a data set of the catalogue.

    Raises:
        ConfigError: the name is unknown, or its package is not installed; the message holds the line that installs it.
    """
    check_listed(name, CATALOGUE)
    entry = CATALOGUE[name]
    try:
        return entry.read()
    except ImportError as error:
        raise ConfigError(f"data set {name!r} needs a package ({error}): {entry.install}") from error


def resolve(source: str | Path, *, size: int | None = None) -> tuple[DeviceImages, ImageReport]:
    """Read the data set of this name, or else the images at this path.

    Raises:
        ConfigError: see ``load``.
        DataError: neither a data set nor a path, or the source is broken.
    """
    path = own_data(source, CATALOGUE, "a path")
    return load(str(source)) if path is None else read_images(path, size=size)


def _digits() -> tuple[DeviceImages, ImageReport]:
    """One device of 1,797 images: ``divided`` makes it many."""
    bunch = importlib.import_module("sklearn.datasets").load_digits()
    # 17 levels of gray, 0 to 16.
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    found = Found(
        source="digits of scikit-learn",
        format="NumPy arrays",
        columns={"image": "images", "label": "target"},
        order="order of the data set",
        places=[f"digit {i}" for i in range(len(pixels))],
        images=pixels,
        labels=[str(label) for label in bunch.target],
        devices=["digits"] * len(pixels),
        notes=["the source knows no devices: divide it"],
    )
    return build(found, DIGITS_SIZE)


CATALOGUE: dict[str, Entry] = {
    "digits": Entry(
        about="1,797 handwritten digits of 8 x 8 pixels, enlarged to 32 x 32, without devices",
        install="pip install scikit-learn",
        read=_digits,
    ),
}
