"""What only classifiers have of the steps: images of devices in, as they are or as corrupted streams.

    prepare -> pretrain -> edit -> evaluate -> prototypes -> release -> classify
                                                   ^                       |
                                                   +- refine <- replay <---+

Each step finds what it needs in the workspace and can be run again alone; what is already there is not trained again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipelines import tracking
from pipelines.steps.workspace import Workspace
from pipelines.tracking import vision_figures
from vision.data import catalogue
from vision.data.images import DeviceImages
from vision.data.sources import ImageReport, read_images
from vision.data.streams import StreamConfig, stream_suite
from vision.hosts.config import SMALL_IMAGES
from vision.task import VISION

# What a workspace of small images starts from: a host whose wide layers are narrow enough for whole edits.
FOR_SMALL_IMAGES = {"host": "compact", "adaptive": "classifier", "head": "full", "bound": "tanh"}
# Streams take this share of the images to adapt on, and as many to test.
STREAM_SHARE = 0.15


@dataclass(frozen=True)
class Streams:
    """How images without devices become corrupted streams.

    Attributes:
        orders: of ``vision.data.streams.ORDERS``.
        severity: the full severity, 1 to 5.
        length: images of a stream.
        seed: of all that is random.
        unseen: corruptions that only test streams have.
    """

    orders: tuple[str, ...] = ("abrupt",)
    severity: int = 5
    length: int = 60
    seed: int = 0
    unseen: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prepared:
    """What ``prepare`` understood and kept."""

    devices: int
    images: int
    classes: int
    groups: dict[str, int]
    digest: str
    understood: list[str]


def prepare(
    source: str,
    work: Workspace,
    *,
    columns: Mapping[str, str | None] | None = None,
    size: int | None = None,
    divide: int = 0,
    streams: Streams | None = None,
    seed: int = 0,
    name: str = "",
) -> Prepared:
    """Read images of devices from any source and keep them.

    Args:
        source: an image folder ``device/class/*.png``, a Parquet or npz file, or the name of a data set of a package.
        work: where to.
        columns: explicit names of the columns ``image``, ``label``, ``device``, ``group``, ``order``, ``test``.
        size: side in pixels that images are stretched to; the commonest of the source by default.
        divide: cut every device into devices of at most so many images; 0 leaves them.
        streams: make corrupted streams of the images, whoever they are of.
        seed: of the division.
        name: what the data is called in MLflow; by default as before, or like its file or folder.
    """
    named = {role: column for role, column in (columns or {}).items() if column is not None}
    name = work.name_of(source, name)
    work.connect(VISION, name)
    with tracking.run("prepare", tags={"step": "prepare"}):
        tracking.log_params({"source": source, "size": size, "divide": divide, "streams": streams})
        data, report = read_images(source, size=size, **named) if named else catalogue.resolve(source, size=size)
        if divide:
            data = data.divided(divide, seed)
        suggested = dict(FOR_SMALL_IMAGES) if max(data.image_shape) <= SMALL_IMAGES else {}
        if streams is not None:
            data = _streamed(data, streams)
            suggested |= {"host_groups": "clean", "test_groups": ",".join(streams.orders)}
        data.save(work.prepared)
        work.suggest(**suggested)
        prepared = _describe(data, report)
        tracking.log_params({"data_digest": data.digest})
        tracking.log_metrics_batch({"devices": data.n_devices, "images": data.n_images, "classes": data.n_classes})
        tracking.log_json(data.meta, "data/report.json")
        tracking.log_figure(vision_figures.sample_of_devices(data), "figures/devices.png")
        work.call(name, source)
        _log_data(data, name)
    return prepared


def _streamed(data: DeviceImages, streams: Streams) -> DeviceImages:
    return stream_suite(
        data,
        StreamConfig(severity=streams.severity, seed=streams.seed),
        orders=streams.orders,
        length=streams.length,
        adapt=STREAM_SHARE,
        test=STREAM_SHARE,
        unseen=streams.unseen,
    )


def _describe(data: DeviceImages, report: ImageReport) -> Prepared:
    names, counts = np.unique(np.array(data.groups), return_counts=True)
    groups = {str(name): int(count) for name, count in zip(names, counts, strict=True)}
    shown = ", ".join(f"{name or 'no group'}: {count:,}" for name, count in groups.items())
    lines = [*report.lines(), f"{data.n_images:,} images of {data.n_devices:,} devices kept; devices by group: {shown}"]
    return Prepared(data.n_devices, data.n_images, data.n_classes, groups, data.digest, lines)


def _log_data(data: DeviceImages, name: str) -> None:
    """The data set, as MLflow shows it beside a run: its devices, with how many images they have."""
    import polars as pl
    from mlflow.data import polars_dataset

    devices = pl.DataFrame(
        {"device": list(data.device_ids), "group": list(data.groups), "images": np.diff(data.offsets)}
    )
    tracking.log_dataset(polars_dataset.from_polars(devices, name=name, digest=data.digest[:32]))
