"""Read the images of devices from any source."""

from __future__ import annotations

from pathlib import Path

from persona.errors import DataError
from vision.data.images import DeviceImages
from vision.data.sources.folder import read_folder
from vision.data.sources.found import build
from vision.data.sources.report import ImageReport
from vision.data.sources.tables import read_npz, read_parquet

ROLES = ("image", "label", "device", "group", "order", "test")


def read_images(
    source: str | Path, *, size: int | None = None, **columns: str | None
) -> tuple[DeviceImages, ImageReport]:
    r"""The images of a source by device, and a report of how it was understood.

    A broken or oversized image is left out with a line in the report that names it.

    Args:
        source: an image folder ``device/class/*.png``, a ``.parquet`` or an ``.npz`` file with one row an image.
        size: side in pixels that all images are stretched to; by default they keep the commonest size of the source.
        **columns: explicit names of the columns ``image``, ``label``, ``device``, ``group``, ``order``, ``test``.

    Raises:
        ConfigError: the size is out of range.
        DataError: the source does not exist, is damaged, or cannot be understood.

    Example::

        data, report = read_images("writers.npz", device="writer", group="hsf")
        print(*report.lines(), sep="\n")
    """
    path = Path(source)
    for role in columns:
        if role not in ROLES:
            raise TypeError(f"read_images has no column {role!r}")
    named = {role: column for role, column in columns.items() if column is not None}
    if path.is_dir():
        if named:
            raise DataError(f"{path} is a folder, whose levels are device and class: leave out {', '.join(named)}=")
        return build(read_folder(path), size)
    if not path.is_file():
        raise DataError(f"{path} does not exist: give an image folder, a .parquet or an .npz file")
    reader = {".parquet": read_parquet, ".npz": read_npz}.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path} is neither a folder nor a .parquet nor an .npz file: convert it to one of them")
    return build(reader(path, dict(named)), size)
