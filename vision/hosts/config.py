"""The settings of a host and their limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from persona.errors import ConfigError, nearest

TORCHVISION_KINDS = ("mobilenet_v3_small", "mobilenet_v3_large", "resnet18", "shufflenet_v2")
# The last one needs packages of its own.
KINDS = (*TORCHVISION_KINDS, "compact", "efficientnet_lite0")
ADAPTIVE = ("classifier", "norms", "all")
# Up to this side in pixels a host keeps the resolution in its stem, where larger images lose three quarters of it.
SMALL_IMAGES = 64


@dataclass(frozen=True)
class HostConfig:
    """What a host is built from.

    Attributes:
        kind: ``mobilenet_v3_small``, ``mobilenet_v3_large``, ``resnet18``, ``shufflenet_v2``, ``compact`` or
            ``efficientnet_lite0``.
        n_classes: K.
        channels: 1 (gray) or 3.
        size: side of the images in pixels; up to 64 the stem keeps their resolution.
        adaptive: what an edit changes: the linear layers of the ``classifier``, the affine parameters of the ``norms``,
            or ``all`` of them.

    Raises:
        ConfigError: a setting is out of its range.
    """

    kind: str
    n_classes: int
    channels: int = 3
    size: int = 224
    adaptive: str = "classifier"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"unknown host {self.kind!r}: {nearest(str(self.kind), KINDS)}")
        if self.adaptive not in ADAPTIVE:
            raise ConfigError(f"unknown adaptive layers {self.adaptive!r}: {nearest(str(self.adaptive), ADAPTIVE)}")
        for name, least in (("n_classes", 2), ("size", 8)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"{name} has to be a whole number from {least} up, not {value!r}")
        if self.channels not in (1, 3):
            raise ConfigError(f"images have 1 or 3 channels, not {self.channels!r}")

    @property
    def small(self) -> bool:
        """Whether the stem keeps the resolution."""
        return self.size <= SMALL_IMAGES

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON values; ``from_dict`` reads them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> HostConfig:
        """The settings of ``as_dict``.

        Raises:
            ConfigError: a setting is unknown, missing or out of its range.
        """
        names = [field.name for field in fields(cls)]
        for name in values:
            if name not in names:
                raise ConfigError(f"unknown host setting {name!r}: {nearest(name, names)}")
        for name in ("kind", "n_classes"):
            if name not in values:
                raise ConfigError(f"the host setting {name!r} is missing: add it")
        return cls(**values)
