"""A classifier on a device, without torch: images in, classes out, and the context for the cloud.

Needs numpy, safetensors and onnxruntime, like ``persona.device``.

Shapes: n images, C channels, H height, W width, F features, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from persona.device import Device, DeviceBundle, Received
from persona.errors import DataError

TASK = "classification"


@dataclass(frozen=True)
class DeviceLabel:
    """The answer for one image: its class, the probability of each class (K,), and the level that answered."""

    name: str
    probabilities: NDArray[np.float32]
    level: str


class DeviceClassifier:
    """One device's classifier.

    Args:
        device: runs the bundle under the device's edit.

    Raises:
        MismatchError: the bundle is of another task.
    """

    def __init__(self, device: Device) -> None:
        device.bundle.expect(TASK)
        self.device = device
        self.classes: list[str] = list(device.bundle.settings["classes"])
        self.image_shape: tuple[int, ...] = tuple(device.bundle.settings["image_shape"])

    @classmethod
    def load(cls, folder: Path | str, state: Path | str | None = None) -> DeviceClassifier:
        """A classifier on the bundle in ``folder``; its own memory is in ``state``. Errors as ``DeviceBundle.load``."""
        return cls(Device(DeviceBundle.load(folder), state))

    def classify(self, image: NDArray[np.uint8]) -> DeviceLabel:
        """The class of an image (C, H, W) uint8, by the best level the device has.

        Raises:
            DataError: the image has another shape or type.
        """
        outputs = self.device.run({"images": self._checked(image)[None]})
        probabilities = _softmax(outputs.arrays["logits"][0])
        return DeviceLabel(self.classes[int(probabilities.argmax())], probabilities, outputs.level)

    def context(self, images: Iterable[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """(n, F + K) what the cloud reads of recent images: features and belief of the host without an edit.

        Raises:
            DataError: there are no images, or one has another shape or type.
        """
        rows = []
        for image in images:
            arrays = self.device.run({"images": self._checked(image)[None]}, plain=True).arrays
            rows.append(np.concatenate([arrays["features"][0], _softmax(arrays["logits"][0])]))
        if not rows:
            raise DataError("a context needs at least one image")
        return np.stack(rows)

    def receive(self, message: bytes, level: str) -> Received:
        """Take an edit; errors as in ``Device.receive``, after which nothing has changed."""
        return self.device.receive(message, level)

    def _checked(self, image: NDArray[Any]) -> NDArray[np.uint8]:
        if image.shape != self.image_shape or image.dtype != np.uint8:
            raise DataError(
                f"an image of shape {image.shape} and type {image.dtype} came, but this host reads uint8 of shape "
                f"{self.image_shape}: convert it"
            )
        return image


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    shifted = np.exp(logits - logits.max())
    probabilities: NDArray[np.float32] = shifted / shifted.sum()
    return probabilities
