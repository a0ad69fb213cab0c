"""How a source of images was understood, and what was found in it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

# More skipped images than this are counted, not named.
NAMED = 20


@dataclass(frozen=True)
class ImageReport:
    """What a reader understood.

    Attributes:
        source: path or name of the source.
        format: "image folder", "Parquet" or "NumPy archive".
        columns: which column or folder level plays which role.
        images: images kept.
        devices: distinct devices.
        classes: distinct classes.
        size: (H, W, C) of the images kept.
        order: what the stream order of a device is.
        skipped: one line for every image that was left out, with its place and the reason.
        notes: what else a person should know.
    """

    source: str
    format: str
    columns: dict[str, str | None]
    images: int
    devices: int
    classes: int
    size: tuple[int, int, int]
    order: str
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {**asdict(self), "size": list(self.size), "skipped": list(self.skipped), "notes": list(self.notes)}

    def lines(self) -> list[str]:
        """The report for a person to read."""
        height, width, channels = self.size
        lines = [
            f"{self.source}: {self.format}",
            ", ".join(f"{role} = {name}" for role, name in self.columns.items() if name is not None),
            f"{self.images:,} images of {self.devices:,} devices in {self.classes:,} classes",
            f"{height} x {width} pixels, {'gray' if channels == 1 else 'colour'}, streams in {self.order}",
            *self.notes,
            *(f"skipped {line}" for line in self.skipped[:NAMED]),
        ]
        if len(self.skipped) > NAMED:
            lines.append(f"skipped {len(self.skipped) - NAMED:,} more images")
        return lines
