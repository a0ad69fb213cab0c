"""Small images of a few devices, and helpers for the tests of the vision room."""

import numpy as np

from vision.data.images import DeviceImages

SIZE = 32


def toy_images(
    devices: int = 12, per_device: int = 8, classes: int = 3, channels: int = 1, size: int = SIZE, seed: int = 0
) -> DeviceImages:
    """Bars whose place is the class, on a background whose brightness is the device's own; groups alternate a, b."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, devices * per_device)
    owner = np.repeat(np.arange(devices), per_device)
    pixels = rng.normal(60, 12, (len(labels), size, size, channels)) + 5 * owner[:, None, None, None]
    width = size // classes
    for i, label in enumerate(labels):
        pixels[i, :, label * width : (label + 1) * width] += 70
    return DeviceImages.from_arrays(
        pixels.clip(0, 255).astype(np.uint8),
        labels,
        owner,
        device_ids=[f"d{i}" for i in range(devices)],
        class_names=[f"c{i}" for i in range(classes)],
        groups=["ab"[i % 2] for i in range(devices)],
    )
