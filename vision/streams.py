"""Streams: what a device sees over time. The natural stream is the order of its images; these ones are corrupted.

==========  =========================================================================================================
order       what happens to a device
==========  =========================================================================================================
abrupt      the first third of the stream is clean, the rest has one corruption at full severity
gradual     the severity of one corruption rises from clean to full in equal parts of the stream
recurring   clean periods and periods of one corruption at full severity alternate
mixed       every period draws a corruption and a severity up to the full one anew
==========  =========================================================================================================

Letters: N images, n images of one device.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from persona.errors import ConfigError, nearest
from vision.corruptions import CORRUPTIONS, check_corruption, corrupt
from vision.images import DeviceImages

ORDERS = ("abrupt", "gradual", "recurring", "mixed")
CLEAN = -1


@dataclass(frozen=True)
class StreamConfig:
    """How streams are corrupted.

    Attributes:
        order: ``abrupt``, ``gradual``, ``recurring`` or ``mixed``.
        corruptions: device d gets number d modulo their count; ``mixed`` draws among them.
        severity: the full severity, 1 to 5.
        period: images of a period of ``recurring`` and ``mixed``.
        seed: of all that is random.

    Raises:
        ConfigError: a setting is unknown or out of range.
    """

    order: str = "abrupt"
    corruptions: tuple[str, ...] = CORRUPTIONS
    severity: int = 5
    period: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise ConfigError(f"unknown order {self.order!r} of a stream: {nearest(self.order, ORDERS)}")
        if not self.corruptions:
            raise ConfigError("a corrupted stream needs at least one corruption: name it, or take all of them")
        for name in self.corruptions:
            check_corruption(name, self.severity)
        if self.period < 1:
            raise ConfigError(f"the period of a stream is {self.period} images, but it has to be at least 1")


@dataclass(frozen=True, eq=False)
class Stream:
    """A corrupted stream and what was done to each image.

    Attributes:
        data: the stream.
        corruption: (N,) index into ``CORRUPTIONS``, -1 where the image is clean.
        severity: (N,) 1 to 5, 0 where the image is clean.
    """

    data: DeviceImages
    corruption: NDArray[np.int64]
    severity: NDArray[np.int64]


def corrupt_streams(data: DeviceImages, config: StreamConfig) -> Stream:
    """Corrupt every device's stream. An image's corruption depends on the seed and its position alone.

    Raises:
        ConfigError: the package of corruptions is not installed.
    """
    corruption = np.full(data.n_images, CLEAN, np.int64)
    severity = np.zeros(data.n_images, np.int64)
    for device in range(data.n_devices):
        own = slice(data.offsets[device], data.offsets[device + 1])
        corruption[own], severity[own] = plan(device, own.stop - own.start, config)
    pixels = data.pixels.copy()
    for i in np.flatnonzero(corruption != CLEAN):
        pixels[i] = corrupt(data.pixels[i], CORRUPTIONS[corruption[i]], int(severity[i]), [config.seed, int(i)])
    return Stream(data.with_pixels(pixels, stream=asdict(config)), corruption, severity)


def plan(device: int, length: int, config: StreamConfig) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Corruption (n,) and severity (n,) of every image of one device's stream of ``length`` images."""
    t = np.arange(length)
    period = t // config.period
    chosen = [CORRUPTIONS.index(name) for name in config.corruptions]
    kind = np.full(length, chosen[device % len(chosen)], np.int64)
    if config.order == "abrupt":
        severity = np.where(t < length // 3, 0, config.severity)
    elif config.order == "gradual":
        severity = t * (config.severity + 1) // length
    elif config.order == "recurring":
        severity = np.where(period % 2 == 0, 0, config.severity)
    else:
        rng = np.random.default_rng([config.seed, 37, device])
        periods = period[-1] + 1
        kind = rng.choice(chosen, periods)[period]
        severity = rng.integers(1, config.severity + 1, periods)[period]
    return np.where(severity > 0, kind, CLEAN).astype(np.int64), severity.astype(np.int64)
