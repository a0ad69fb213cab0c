"""Image folders: ``device/class/*.png``, or any other kind of image file."""

from __future__ import annotations

import os
from pathlib import Path

from persona.errors import DataError
from vision.data.sources.found import Found, natural_key

SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".jp2"}
)
# Folder levels above an image: device and class.
DEPTH = 2


def read_folder(root: Path) -> Found:
    """Find all images below ``root``; the first folder level is the device, the second the class.

    A device's stream follows the file names of all its classes together, numbers by their value.

    Raises:
        DataError: there are no images, or none two levels deep.
    """
    files = sorted(_walk(root), key=lambda path: (path.parts[0], natural_key(path.name), path.as_posix()))
    images = [path for path in files if path.suffix.lower() in SUFFIXES]
    chosen = [path for path in images if len(path.parts) == DEPTH + 1]
    if not chosen:
        if images:
            raise DataError(
                f"{root}: {images[0].as_posix()!r} does not lie in a folder of its class inside a folder of its device: "
                "arrange images as device/class/image.png"
            )
        raise DataError(f"{root} holds no images: arrange them as device/class/image.png")
    skipped = [
        f"{root / path}: it does not lie two folders deep (device/class)" for path in images if path not in set(chosen)
    ]
    others = len(files) - len(images)
    return Found(
        source=str(root),
        format="image folder",
        columns={"device": "first folder", "label": "second folder"},
        order="order of the file names",
        places=[str(root / path) for path in chosen],
        images=[root / path for path in chosen],
        labels=[path.parts[1] for path in chosen],
        devices=[path.parts[0] for path in chosen],
        skipped=skipped,
        notes=[f"{others:,} files are no images by their suffix and were left out"] if others else [],
    )


def _walk(root: Path) -> list[Path]:
    """All files below ``root``, relative to it, hidden ones left out."""
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [(Path(folder) / name).relative_to(root) for name in names if not name.startswith(".")]
    return found
