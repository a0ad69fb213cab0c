"""The settings of a host, their presets and their limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from persona.errors import ConfigError, check_known
from persona.record import Record

# "paper" is method.md section 5; "modern" is what today's practice needs: wider, longer, regularised.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "paper": {
        "din": {"dim": 32, "max_length": 10, "feed_forward": 128},
        "gru4rec": {"dim": 32, "max_length": 10},
        "sasrec": {"dim": 32, "max_length": 10, "heads": 4, "feed_forward": 128},
    },
    "modern": {
        "din": {"dim": 64, "max_length": 50, "feed_forward": 256, "dropout": 0.2},
        "gru4rec": {"dim": 64, "max_length": 50, "dropout": 0.2},
        "sasrec": {"dim": 64, "max_length": 50, "heads": 2, "blocks": 2, "feed_forward": 256, "dropout": 0.2},
    },
}
KINDS = tuple(PRESETS["paper"])

# A setting that a kind does not use has to keep this value, so that no setting is silently ignored.
_UNUSED = {"heads": 1, "blocks": 1, "feed_forward": 0}
_USED = {"din": {"feed_forward"}, "gru4rec": {"blocks"}, "sasrec": {"heads", "blocks", "feed_forward"}}


@dataclass(frozen=True)
class HostConfig(Record):
    """What a host is built from.

    Attributes:
        kind: "din", "gru4rec" or "sasrec".
        n_items: V, items of the catalogue without padding.
        variant: the preset whose arrangement of layers is used. "paper" sends the history through one tanh layer, and
            SASRec normalises after each residual; "modern" reads the embeddings themselves, scores by them
            (the head adds to the state), and SASRec normalises before.
        dim: d, width of embeddings and states.
        max_length: T, the longest context.
        heads: attention heads (sasrec).
        blocks: encoder blocks (sasrec), stacked GRU layers (gru4rec).
        feed_forward: width of the feed-forward layer (sasrec), of the head's first layer (din).
        dropout: share of dropped activations in training.

    Raises:
        ConfigError: a setting is out of its range, or is not one of this kind.
    """

    kind_of_field: ClassVar[str] = "host setting"

    kind: str
    n_items: int
    variant: str = "paper"
    dim: int = 32
    max_length: int = 10
    heads: int = 1
    blocks: int = 1
    feed_forward: int = 0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_known("host", self.kind, KINDS)
        check_known("preset", self.variant, PRESETS)
        for name in ("n_items", "dim", "max_length", "heads", "blocks"):
            self.check_integer(name, 1)
        self.check_integer("feed_forward", 0)
        for name, neutral in _UNUSED.items():
            if name not in _USED[self.kind] and getattr(self, name) != neutral:
                raise ConfigError(f"{self.kind} has no setting {name!r}: leave it at {neutral}")
        if "feed_forward" in _USED[self.kind] and self.feed_forward < 2:
            raise ConfigError(f"feed_forward of {self.kind} has to be at least 2, not {self.feed_forward}")
        if isinstance(self.dropout, bool) or not isinstance(self.dropout, int | float) or not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout has to be a number from 0 to below 1, not {self.dropout!r}")
        if self.dim % self.heads:
            raise ConfigError(f"dim has to be a multiple of heads, but {self.dim} is none of {self.heads}")

    @classmethod
    def preset(cls, kind: str, preset: str, n_items: int, **overrides: Any) -> HostConfig:
        """The settings of ``preset`` for ``kind``, with ``overrides`` of single ones.

        Example::

            HostConfig.preset("sasrec", "modern", n_items=9_000, dropout=0.4)

        Raises:
            ConfigError: ``kind``, ``preset`` or an override is unknown, or a value is out of its range.
        """
        check_known("preset", preset, PRESETS)
        check_known("host", kind, KINDS)
        return cls.from_dict(
            {"kind": kind, "variant": preset, "n_items": n_items, **PRESETS[preset][kind], **overrides}
        )
