"""Images of devices from any source: an image folder, a parquet or npz file -> ``DeviceImages`` and a report."""

from vision.data.sources.reading import read_images
from vision.data.sources.report import ImageReport

__all__ = ["ImageReport", "read_images"]
