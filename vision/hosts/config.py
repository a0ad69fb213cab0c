"""The settings of a host and their limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from persona.errors import ConfigError, check_known
from persona.record import Record

TORCHVISION_KINDS = ("mobilenet_v3_small", "mobilenet_v3_large", "resnet18", "shufflenet_v2")
# The last one needs packages of its own.
KINDS = (*TORCHVISION_KINDS, "compact", "efficientnet_lite0")
ADAPTIVE = ("classifier", "norms", "all")
# Up to this side in pixels a host keeps the resolution in its stem, where larger images lose three quarters of it.
SMALL_IMAGES = 64


@dataclass(frozen=True)
class HostConfig(Record):
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

    kind_of_field: ClassVar[str] = "host setting"

    kind: str
    n_classes: int
    channels: int = 3
    size: int = 224
    adaptive: str = "classifier"

    def __post_init__(self) -> None:
        check_known("host", self.kind, KINDS)
        check_known("adaptive layers", self.adaptive, ADAPTIVE)
        self.check_integer("n_classes", 2)
        self.check_integer("size", 8)
        if self.channels not in (1, 3):
            raise ConfigError(f"images have 1 or 3 channels, not {self.channels!r}")

    @property
    def small(self) -> bool:
        """Whether the stem keeps the resolution."""
        return self.size <= SMALL_IMAGES
