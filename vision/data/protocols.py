"""Protocols: which devices train, adapt, validate and test. No device is ever in two parts.

The unit is the device, because a method is judged by what it does for devices that nobody has trained on. Where the data
has groups (populations, domains), the host learns from some of them and is deployed on others.

Letters: D devices, B devices of a part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from persona.errors import ConfigError, DataError, nearest
from vision.data.images import DeviceImages

# In the names of metrics: windows of devices that nobody has learned from, in stream order.
PROTOCOL = "stream"
PARTS = ("train", "adapt", "validation", "test")

Devices = NDArray[np.int64]


@dataclass(frozen=True)
class SplitConfig:
    """How devices are split.

    Attributes:
        host_groups: populations that the host learns from; empty for all.
        test_groups: populations that it is deployed on; empty for all.
        adapt_groups: populations of the devices that the editor learns from and that validate; empty takes
            ``test_groups``.
        adapt: share of the devices of ``adapt_groups`` that the editor learns from, where the host wants them as well.
        validation: share of the devices of ``adapt_groups`` that validate.
        test: share of the devices of ``test_groups`` that test, where the source reserves none.
        seed: of the draw.

    Raises:
        ConfigError: a share is out of range, or they leave nothing for the host.
    """

    host_groups: tuple[str, ...] = ()
    test_groups: tuple[str, ...] = ()
    adapt_groups: tuple[str, ...] = ()
    adapt: float = 0.3
    validation: float = 0.1
    test: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("adapt", "validation", "test"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"the share {name} of devices is {getattr(self, name)}, but it lies between 0 and 1")
        if self.adapt + self.validation >= 1:
            raise ConfigError(
                f"the shares adapt = {self.adapt} and validation = {self.validation} leave no device for the host: "
                "lower them"
            )


@dataclass(frozen=True, eq=False)
class Split:
    """The parts of a protocol: ascending (B,) devices, no device in two of them.

    Attributes:
        train: whose images the host learns from.
        adapt: whose images the host has never seen: the editor learns from them.
        validation: what early stopping and selection look at.
        test: what is reported, never selected on.
    """

    train: Devices
    adapt: Devices
    validation: Devices
    test: Devices

    def describe(self) -> dict[str, Any]:
        """The number of devices of each part; JSON values."""
        return {name: len(getattr(self, name)) for name in PARTS}


def make_split(data: DeviceImages, config: SplitConfig) -> Split:
    """Split the devices of ``data``.

    Test devices are those of ``test_groups`` that the source reserves for tests, or a share of them; where the host and
    the editor both know nothing of these groups, all of them. Reserved devices are in no other part. Where
    ``adapt_groups`` has devices of which the host learns nothing, adapt and validation take these alone and the host
    keeps all of its own.

    Raises:
        ConfigError: a group is unknown.
        DataError: a part would be empty.
    """
    host, deployed = _members(data, config.host_groups), _members(data, config.test_groups)
    eligible = _members(data, config.adapt_groups or config.test_groups)
    rng = np.random.default_rng([config.seed, 41])
    free = ~data.reserved
    if (deployed & data.reserved).any():
        test = np.flatnonzero(deployed & data.reserved)
    elif not (deployed & (host | eligible)).any():
        test = np.flatnonzero(deployed)
    else:
        test = _draw(rng, np.flatnonzero(deployed), config.test)
    free[test] = False
    own = eligible & ~host & free
    if own.any():
        pool = np.flatnonzero(own)
        validation = _draw(rng, pool, config.validation)
        adapt = np.setdiff1d(pool, validation)
    else:
        pool = np.flatnonzero(eligible & free)
        validation = _draw(rng, pool, config.validation)
        rest = np.setdiff1d(pool, validation)
        adapt = _draw(rng, rest, min(1.0, config.adapt / (1 - config.validation)))
    train = np.setdiff1d(np.flatnonzero(host & free), np.concatenate([adapt, validation]))
    split = Split(train, adapt, validation, test)
    empty = [name for name, count in split.describe().items() if not count]
    if empty:
        raise DataError(
            f"{data.n_devices} devices leave none for {' and '.join(empty)}: add devices, divide them into smaller ones, "
            "or choose other groups or shares"
        )
    return split


def _members(data: DeviceImages, groups: tuple[str, ...]) -> NDArray[np.bool_]:
    """(D,) whether a device belongs to one of ``groups``."""
    for group in groups:
        if group not in data.groups:
            raise ConfigError(f"no device belongs to the group {group!r}: {nearest(group, set(data.groups))}")
    return np.array([not groups or group in groups for group in data.groups])


def _draw(rng: np.random.Generator, pool: Devices, share: float) -> Devices:
    """A share of ``pool``, at least one device where there are any, ascending."""
    count = min(len(pool), max(1, round(share * len(pool))))
    return np.sort(rng.permutation(pool)[:count]).astype(np.int64)
