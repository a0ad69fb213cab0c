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

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from persona.errors import ConfigError, DataError, nearest
from vision.data.corruptions import CORRUPTIONS, check_corruption, corrupt
from vision.data.images import DeviceImages

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


def stream_suite(
    data: DeviceImages,
    config: StreamConfig,
    *,
    orders: tuple[str, ...] = ORDERS[:3],
    length: int = 60,
    adapt: float = 0.25,
    test: float = 0.25,
    unseen: tuple[str, ...] = (),
) -> DeviceImages:
    """Clean devices to learn from, and every order of every corruption over images that none of them holds.

    The images are divided at random into three parts without overlap: clean devices (group ``clean``), streams to adapt on and
    streams to test (reserved), the last two cut into pieces of ``length`` images, each of which becomes one stream for every
    order and corruption. A stream is named ``<order>/<corruption>/<piece>`` and belongs to the group of its order. A protocol
    takes ``clean`` as the groups of the host and the orders as those of the test.

    Args:
        data: images, whoever they are of.
        config: severity, period, corruptions, seed; its order is not used.
        orders: of the streams.
        length: images of a piece, at most.
        adapt: share of the images in streams to adapt on.
        test: share of the images in streams to test.
        unseen: corruptions of test streams alone; the streams to adapt on then have all others. By default both have all.

    Raises:
        ConfigError: an order or an unseen corruption is unknown, shares or length are out of range, or the package of corruptions is missing.
        DataError: there are too few images.
    """
    _check_suite(config, length, adapt, test, unseen)
    order_of = np.random.default_rng([config.seed, 53]).permutation(data.n_images)
    n_adapt, n_test = round(adapt * data.n_images), round(test * data.n_images)
    if min(n_adapt, n_test, data.n_images - n_adapt - n_test) < 2:
        raise DataError(f"{data.n_images} images are too few for streams: give more")
    parts = _Parts([], [], [], [], [])
    for i, piece in enumerate(_pieces(order_of[n_adapt + n_test :], length)):
        parts.add(data, piece, f"clean/{i}", "clean", False)
    seen = tuple(name for name in config.corruptions if name not in unseen)
    halves = ((False, seen, order_of[:n_adapt]), (True, unseen or seen, order_of[n_adapt : n_adapt + n_test]))
    for reserved, kinds, pool in halves:
        for order in orders:
            for kind in kinds:
                own = replace(config, order=order, corruptions=(kind,))
                for i, piece in enumerate(_pieces(pool, length)):
                    name = f"{order}/{kind}/{'test' if reserved else 'adapt'}{i}"
                    parts.add(data, piece, name, order, reserved, own)
    described = {**asdict(config), "orders": list(orders), "length": length, "unseen": list(unseen)}
    return parts.build(data, {"streams": described})


def _check_suite(config: StreamConfig, length: int, adapt: float, test: float, unseen: tuple[str, ...]) -> None:
    """Refuse what makes no suite of streams."""
    if length < 1 or not (0 < adapt < 1 and 0 < test < 1 and adapt + test < 1):
        raise ConfigError(
            "streams need a length of at least 1 and shares to adapt and to test that leave images for the host"
        )
    for name in unseen:
        if name not in config.corruptions:
            raise ConfigError(f"{name!r} cannot be left to test streams: {nearest(name, config.corruptions)}")
    if unseen and set(unseen) == set(config.corruptions):
        raise ConfigError(
            "all corruptions are left to test streams, so there is nothing to adapt on: leave some others"
        )


@dataclass
class _Parts:
    """Devices as they are gathered."""

    pixels: list[NDArray[np.uint8]]
    labels: list[NDArray[np.int64]]
    names: list[str]
    groups: list[str]
    reserved: list[bool]

    def add(
        self,
        data: DeviceImages,
        positions: NDArray[np.int64],
        name: str,
        group: str,
        reserved: bool,
        config: StreamConfig | None = None,
    ) -> None:
        """One device, its images corrupted as ``config`` says."""
        pixels = data.pixels[positions].copy()
        if config is not None:
            kinds, severities = plan(0, len(positions), config)
            # The seed goes by the order, too: the same image is corrupted anew in each of its streams.
            seed = [config.seed, ORDERS.index(config.order)]
            for i in np.flatnonzero(kinds != CLEAN):
                name_of = CORRUPTIONS[kinds[i]]
                pixels[i] = corrupt(pixels[i], name_of, int(severities[i]), [*seed, int(positions[i])])
        self.pixels.append(pixels)
        self.labels.append(data.labels[positions])
        self.names.append(name)
        self.groups.append(group)
        self.reserved.append(reserved)

    def build(self, data: DeviceImages, meta: dict[str, Any]) -> DeviceImages:
        """All of them as data of their own."""
        return DeviceImages.from_arrays(
            np.concatenate(self.pixels),
            np.concatenate(self.labels),
            np.repeat(np.arange(len(self.names)), [len(labels) for labels in self.labels]),
            device_ids=self.names,
            class_names=data.class_names,
            groups=self.groups,
            reserved=self.reserved,
            meta={**data.meta, **meta},
        )


def _pieces(positions: NDArray[np.int64], length: int) -> list[NDArray[np.int64]]:
    return list(np.array_split(positions, -(-len(positions) // length)))
