"""What a reader found, before it is made into ``DeviceImages``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from persona.errors import ConfigError, DataError
from vision.data.images import DeviceImages
from vision.data.sources.decode import Probe, UnreadableImage, decode, probe
from vision.data.sources.report import ImageReport

LARGEST_SIDE = 1024


@dataclass
class Found:
    """The images of a source with all that is known about each, in the order of the source.

    Attributes:
        source: path or name.
        format: for the report.
        columns: for the report.
        order: for the report.
        places: where each image stands, for a message.
        images: files or encoded bytes, or all pixels (N, H, W, C) at once.
        labels: (N,) class names.
        devices: (N,) ids.
        groups: (N,) populations, or None.
        tests: (N,) whether the source marks the image for tests, or None.
        skipped: lines about images left out.
        notes: what else a person should know.
    """

    source: str
    format: str
    columns: dict[str, str | None]
    order: str
    places: Sequence[str]
    images: Sequence[Path | bytes] | NDArray[np.uint8]
    labels: Sequence[str]
    devices: Sequence[str]
    groups: Sequence[str] | None = None
    tests: Sequence[bool] | None = None
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def build(found: Found, size: int | None) -> tuple[DeviceImages, ImageReport]:
    """Decode, number and group what was found.

    Args:
        found: what the reader found.
        size: side in pixels that all images are stretched to; ``None`` takes the commonest size of the source.

    Raises:
        ConfigError: the size is out of range.
        DataError: not a single image can be read, or there is only one class.
    """
    if size is not None and not 8 <= size <= LARGEST_SIDE:
        raise ConfigError(f"the size of images is {size} pixels, but it has to be between 8 and {LARGEST_SIDE}")
    pixels, kept = _pixels(found, size)
    labels = [found.labels[i] for i in kept]
    classes, label_codes = _codes(labels)
    if len(classes) < 2:
        raise DataError(f"{found.source}: all images are of the class {classes[0]!r}: a classifier needs at least two")
    devices, device_codes = _codes([found.devices[i] for i in kept])
    data = DeviceImages.from_arrays(
        pixels,
        label_codes,
        device_codes,
        device_ids=devices,
        class_names=classes,
        groups=_of_devices(found, "groups", kept, device_codes, len(devices), ""),
        reserved=_of_devices(found, "tests", kept, device_codes, len(devices), False),
    )
    report = ImageReport(
        source=found.source,
        format=found.format,
        columns=found.columns,
        images=data.n_images,
        devices=data.n_devices,
        classes=data.n_classes,
        size=(pixels.shape[1], pixels.shape[2], pixels.shape[3]),
        order=found.order,
        skipped=tuple(found.skipped),
        notes=tuple(found.notes),
    )
    return data.with_pixels(data.pixels, source=report.as_dict()), report


def _pixels(found: Found, size: int | None) -> tuple[NDArray[np.uint8], list[int]]:
    """Pixels (M, H, W, C) of the images that can be read, and which ones these are."""
    if isinstance(found.images, np.ndarray):
        return _resized(found.images, size), list(range(len(found.images)))
    probes: dict[int, Probe] = {}
    for i, source in enumerate(found.images):
        try:
            probes[i] = probe(source)
        except UnreadableImage as error:
            found.skipped.append(f"{found.places[i]}: {error}")
    if not probes:
        raise DataError(f"{found.source}: none of the {len(found.images):,} images can be read")
    shape = _shape(list(probes.values()), size, found)
    pixels = np.empty((len(probes), *shape), np.uint8)
    kept: list[int] = []
    for i in probes:
        try:
            pixels[len(kept)] = decode(found.images[i], shape)
        except UnreadableImage as error:
            found.skipped.append(f"{found.places[i]}: {error}")
            continue
        kept.append(i)
    if not kept:
        raise DataError(f"{found.source}: none of the {len(found.images):,} images can be read")
    return pixels[: len(kept)], kept


def _shape(probes: list[Probe], size: int | None, found: Found) -> tuple[int, int, int]:
    """(H, W, C): the size asked for or the commonest one, in colour if any image has colour."""
    channels = 3 if any(p.colour for p in probes) else 1
    if size is not None:
        return size, size, channels
    sizes = Counter((p.height, p.width) for p in probes)
    (height, width), count = max(sizes.items(), key=lambda item: (item[1], item[0]))
    if len(sizes) > 1:
        found.notes.append(
            f"{len(probes) - count:,} of {len(probes):,} images have another size and were stretched to {height} x {width}"
        )
    if max(height, width) > LARGEST_SIDE:
        raise DataError(f"{found.source}: the images have {height} x {width} pixels, give size= to make them smaller")
    return height, width, channels


def _resized(pixels: NDArray[np.uint8], size: int | None) -> NDArray[np.uint8]:
    if size is None or pixels.shape[1:3] == (size, size):
        return pixels
    from PIL import Image

    out = np.empty((len(pixels), size, size, pixels.shape[3]), np.uint8)
    for i, image in enumerate(pixels):
        picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
        out[i] = np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR)).reshape(out.shape[1:])
    return out


def _codes(values: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    """Distinct values in natural order ("2" before "10"), and the number of each value among them."""
    distinct = sorted(set(values), key=natural_key)
    index = {value: i for i, value in enumerate(distinct)}
    return distinct, np.array([index[value] for value in values], dtype=np.int64)


def natural_key(text: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sorts numbers inside of text by their value: "img2" before "img10"."""
    parts = re.findall(r"\d+|\D+", text)
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts], text


def _of_devices(
    found: Found, name: str, kept: list[int], codes: NDArray[np.int64], n_devices: int, default: Any
) -> list[Any]:
    """What is known of each image as one value a device; dropped, with a note, where a device has several."""
    values = getattr(found, name)
    if values is None:
        return [default] * n_devices
    seen: list[set[Any]] = [set() for _ in range(n_devices)]
    for i, device in zip(kept, codes, strict=True):
        seen[device].add(values[i])
    if any(len(of_device) > 1 for of_device in seen):
        found.notes.append(f"the {name} of the source differ within a device, so they were not used")
        return [default] * n_devices
    return [next(iter(of_device)) for of_device in seen]
