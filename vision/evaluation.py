"""Evaluation in stream order: the same windows of the same devices for every method.

A device sees its images one after the other. Every ``step`` images a method is given the device's last ``context`` images,
without labels, and classifies the newest ones::

    stream   0 1 2 3 4 5 6 7 8 9        context = 4, step = 2
    windows  0 1
             0 1 2 3                    classifies 2 3
                 2 3 4 5                classifies 4 5

With ``context = step = n`` this is test-time adaptation in batches of n; with ``step = 1`` every image is classified as it
arrives. A method may remember what it saw of a device, and forgets it when the next device starts.

Shapes: P images, n images of a window, m new ones, F features, C channels, H height, W width, K classes, U devices.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from persona.errors import ConfigError, DataError
from persona.torch_device import device_of, moved
from vision import metrics
from vision.data.images import DeviceImages
from vision.features import FeatureCache

Int64Array = NDArray[np.int64]


@dataclass(frozen=True)
class Window:
    """The last images of one device, oldest first.

    Attributes:
        images: (n, C, H, W) uint8.
        positions: (n,) where they stand in the data.
        new: m, how many at the end are to be classified.
        features: (n, F) of the host that methods share, without an edit, where they are known already.
    """

    images: Tensor
    positions: Int64Array
    new: int
    features: Tensor | None = None


class Classifier(Protocol):
    """Anything that can be evaluated; one with a ``host`` is asked, and answers, where that lies."""

    def start(self, device: int) -> None:
        """Forget the last device; images of ``device`` follow."""

    def predict(self, window: Window) -> Tensor:
        """Logits (m, K) of the newest images of a window."""


@dataclass(frozen=True)
class Evaluated:
    """What a method achieved.

    Attributes:
        summary: one number a metric.
        per_device: (U,) values a metric, aligned with ``devices``.
        devices: (U,) the devices, ascending.
        positions: (P,) the images that were classified, device by device, in stream order.
        predictions: (P,) their predicted classes.
    """

    summary: dict[str, float]
    per_device: dict[str, NDArray[np.float64]]
    devices: Int64Array
    positions: Int64Array
    predictions: Int64Array


class Evaluation:
    """Devices to evaluate on, and how their streams are cut into windows.

    Args:
        data: the images.
        devices: (U,) the devices.
        context: n, images that a method is given at most.
        step: images that arrive between two predictions, at most n.
        limit: use at most this many devices, drawn from ``seed`` (for validation during training).
        seed: of that draw.

    Raises:
        ConfigError: context or step out of range.
        DataError: there are no devices to evaluate on.
    """

    def __init__(
        self,
        data: DeviceImages,
        devices: Int64Array,
        *,
        context: int = 20,
        step: int = 20,
        limit: int | None = None,
        seed: int = 0,
    ) -> None:
        if not 1 <= step <= context:
            raise ConfigError(f"step is {step} images and context {context}, but it takes 1 <= step <= context")
        if not len(devices):
            raise DataError("there are no devices to evaluate on: the data has too few for this protocol")
        if limit is not None and limit < len(devices):
            devices = np.random.default_rng([seed, 17]).choice(devices, limit, replace=False)
        self.data, self.context, self.step = data, context, step
        self.devices = np.sort(devices)
        self.cache: FeatureCache | None = None

    def cached(self, cache: FeatureCache) -> Evaluation:
        """The same evaluation with features of the shared host in its windows: for methods that keep its body."""
        other = copy.copy(self)
        other.cache = cache
        return other

    def windows(self, device: int) -> Iterator[tuple[Int64Array, int]]:
        """The windows of one device: positions (n,) and how many of them are new."""
        start, stop = self.data.offsets[device], self.data.offsets[device + 1]
        for first in range(start, stop, self.step):
            end = min(first + self.step, stop)
            yield np.arange(max(start, end - self.context), end), end - first

    def run(self, classifier: Classifier) -> Evaluated:
        """Classify all streams and compute the metrics.

        ``ms_per_image``, the wall time of an image, is among them where no features were known before.
        """
        parts: list[Tensor] = []
        positions: list[Int64Array] = []
        seconds, place = 0.0, device_of(classifier)
        for device in self.devices.tolist():
            started = time.perf_counter()
            classifier.start(device)
            seconds += time.perf_counter() - started
            for own, new in self.windows(device):
                known = None if self.cache is None else self.cache[own]
                window = Window(self.data.tensor(own), own, new, known)
                started = time.perf_counter()
                parts.append(classifier.predict(moved(window, place)).detach().cpu())
                seconds += time.perf_counter() - started
                positions.append(own[-new:])
        timed = 1000 * seconds if self.cache is None else None
        return self.judge(torch.cat(parts), np.concatenate(positions), timed)

    def judge(self, logits: Tensor, positions: Int64Array, milliseconds: float | None = None) -> Evaluated:
        """The metrics of logits (P, K) at ``positions`` (P,)."""
        scores, labels = logits.double().numpy(), self.data.labels[positions]
        devices = self.data.device_of(positions)
        summary = metrics.summary(scores, labels, devices)
        if milliseconds is not None:
            summary["ms_per_image"] = milliseconds / len(positions)
        return Evaluated(
            summary=summary,
            per_device=metrics.per_device(scores, labels, devices),
            devices=np.unique(devices),
            positions=positions,
            predictions=scores.argmax(1).astype(np.int64),
        )
