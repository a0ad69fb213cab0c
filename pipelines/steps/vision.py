"""The steps of the vision pipeline: typed config in, typed result out, everything logged to MLflow.

    prepare -> pretrain -> edit -> evaluate -> prototypes -> release -> classify
                                                   ^                       |
                                                   +- refine <- replay <---+

Each step finds what it needs in the workspace and can be run again alone; what is already there is not trained again. The steps
around prototypes are in ``vision_bank``, answers in ``answers``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from persona.comparison import Measured, compare, metric_name, with_host
from persona.prototypes import Lineage
from persona.storage import write_json
from persona.training.objective import FitResult
from pipelines import tracking
from pipelines.steps.evaluate import Comparison
from pipelines.steps.train import TrainedStep, log_epochs, mode_tags
from pipelines.steps.vision_workspace import VisionWorkspace
from pipelines.tracking import registry, vision_figures, vision_registry
from pipelines.versions import snapshots, vision_snapshots
from vision.config import VisionConfig
from vision.data import catalogue
from vision.data.images import DeviceImages
from vision.data.protocols import PROTOCOL
from vision.data.sources import ImageReport, read_images
from vision.data.streams import StreamConfig, stream_suite
from vision.hosts.config import SMALL_IMAGES
from vision.methods import METHODS, Problem, measure, personalised, train_configured
from vision.personalised import Personalised
from vision.serving.release import Release

EXPERIMENT = "vision"
# Metrics that tables and figures show; all are logged.
HEADLINES = ("accuracy", "logloss")
# What a workspace of small images starts from: a host whose wide layers are narrow enough for whole edits.
FOR_SMALL_IMAGES = {"host": "compact", "adaptive": "classifier", "head": "full", "bound": "tanh"}
# Streams take this share of the images to adapt on, and as many to test.
STREAM_SHARE = 0.15

OnEpoch = Callable[[str, dict[str, float]], None]
Notify = Callable[[str, str, dict[str, float] | None], None]


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
    work: VisionWorkspace,
    *,
    columns: Mapping[str, str | None] | None = None,
    size: int | None = None,
    divide: int = 0,
    streams: Streams | None = None,
    seed: int = 0,
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
    """
    named = {role: column for role, column in (columns or {}).items() if column is not None}
    tracking.connect(EXPERIMENT)
    with tracking.run("prepare", tags={"step": "prepare"}):
        tracking.log_params({"source": source, "size": size, "divide": divide, "streams": streams})
        data, report = read_images(source, size=size, **named) if named else catalogue.resolve(source, size=size)
        if divide:
            data = data.divided(divide, seed)
        suggested = dict(FOR_SMALL_IMAGES) if max(data.image_shape) <= SMALL_IMAGES else {}
        if streams is not None:
            config = StreamConfig(severity=streams.severity, seed=streams.seed)
            orders = streams.orders
            data = stream_suite(
                data,
                config,
                orders=orders,
                length=streams.length,
                adapt=STREAM_SHARE,
                test=STREAM_SHARE,
                unseen=streams.unseen,
            )
            suggested |= {"host_groups": "clean", "test_groups": ",".join(orders)}
        data.save(work.prepared)
        work.suggest(**suggested)
        prepared = _describe(data, report)
        tracking.log_params({"data_digest": data.digest})
        tracking.log_metrics_batch({"devices": data.n_devices, "images": data.n_images, "classes": data.n_classes})
        tracking.log_json(data.meta, "data/report.json")
        tracking.log_figure(vision_figures.sample_of_devices(data), "figures/devices.png")
        _log_data(data, source)
    return prepared


def _describe(data: DeviceImages, report: ImageReport) -> Prepared:
    names, counts = np.unique(np.array(data.groups), return_counts=True)
    groups = {str(name): int(count) for name, count in zip(names, counts, strict=True)}
    shown = ", ".join(f"{name or 'no group'}: {count:,}" for name, count in groups.items())
    lines = [*report.lines(), f"{data.n_images:,} images of {data.n_devices:,} devices kept; devices by group: {shown}"]
    return Prepared(data.n_devices, data.n_images, data.n_classes, groups, data.digest, lines)


def pretrain(config: VisionConfig, work: VisionWorkspace, on_epoch: OnEpoch | None = None) -> TrainedStep:
    """Train the host whose adaptive layers will be edited."""

    def train(problem: Problem) -> tuple[str, FitResult]:
        problem.base_host()
        return "host", problem.trainings.results["host"]

    return _train_step("pretrain", config, work, train, on_epoch)


def edit(config: VisionConfig, work: VisionWorkspace, on_epoch: OnEpoch | None = None) -> TrainedStep:
    """Train the parameter editor in the mode of the settings (and its host, if it is not there yet)."""

    def train(problem: Problem) -> tuple[str, FitResult]:
        mode, trained = train_configured(problem)
        return f"persona_{mode}", trained.result

    return _train_step("edit", config, work, train, on_epoch)


def _train_step(
    name: str,
    config: VisionConfig,
    work: VisionWorkspace,
    train: Callable[[Problem], tuple[str, FitResult]],
    on_epoch: OnEpoch | None,
) -> TrainedStep:
    tracking.connect(EXPERIMENT)
    with tracking.run(name, tags={"step": name}):
        tracking.log_params(config.as_dict())
        problem = Problem(work.data(), config, folder=work.cells, on_epoch=on_epoch)
        training, result = train(problem)
        log_epochs(training, result, config.monitor, PROTOCOL)
    work.remember(config)
    return TrainedStep.of(training, result, problem.split.describe())


def evaluate(
    config: VisionConfig,
    work: VisionWorkspace,
    *,
    methods: Sequence[str] = (),
    seeds: int = 1,
    notify: Notify = lambda cell, training, metrics: None,
) -> Comparison:
    """Train and test methods on the same windows of the same devices, and compare them with the host.

    Args:
        config: settings.
        work: where the data is and the results go.
        methods: all by default; the host is always among them.
        seeds: how many, counting up from the settings' seed.
        notify: called after each epoch and each method.
    """
    chosen = with_host(methods, METHODS)
    tracking.connect(EXPERIMENT)
    with tracking.run("evaluate", tags={"step": "evaluate"}):
        tracking.log_params({**config.as_dict(), "seeds": seeds, "compared": ",".join(chosen)})
        data = work.data()
        measured = [_measure(data, config, config.seed + i, work, chosen, notify) for i in range(seeds)]
        comparison = Comparison.of_seeds(
            measured, protocol=PROTOCOL, settings=config.as_dict(), unit="devices", headlines=HEADLINES
        )
        write_json(work.comparison, comparison.as_dict())
        comparison.log()
    work.remember(config)
    return comparison


def _measure(
    data: DeviceImages, config: VisionConfig, seed: int, work: VisionWorkspace, methods: Sequence[str], notify: Notify
) -> dict[str, Measured]:
    """Every method of one seed."""
    cell = f"{config.host} seed {seed}"
    settings = VisionConfig.from_dict({**config.as_dict(), "seed": seed})
    problem = Problem(data, settings, folder=work.cells, on_epoch=lambda name, metrics: notify(cell, name, metrics))
    measured = {}
    for method in methods:
        measured[method] = measure(problem, method)
        notify(cell, method, None)
    return measured


@dataclass(frozen=True)
class Released:
    """A servable bundle and its version in the registry; its editor was trained in ``mode``."""

    bundle: Path
    model: registry.Registered
    mode: str
    host_digest: str
    bank: str
    metrics: dict[str, float] = field(default_factory=dict)


def release(config: VisionConfig, work: VisionWorkspace, on_epoch: OnEpoch | None = None) -> Released:
    """Pack host, editor and the head of the prototype versions as a bundle, register it and call it the candidate."""
    tracking.connect(EXPERIMENT)
    with tracking.run("release", tags={"step": "release"}):
        tracking.log_params(config.as_dict())
        problem = Problem(work.data(), config, folder=work.cells, on_epoch=on_epoch)
        mode, trained = train_configured(problem)
        method = f"persona_{mode}"
        measured = {name: measure(problem, name) for name in ("host", method)}
        metrics = {metric_name(PROTOCOL, name): value for name, value in measured[method].summary.items()}
        packed = pack(personalised(trained), problem, work, metrics)
        packed.compile().save(work.bundle)
        tracking.log_metrics_batch(metrics)
        bank = "" if packed.bank is None else packed.bank.version
        tags = {
            **{name: getattr(config, name) for name in ("host", "adaptive", "seed")},
            **mode_tags(mode, trained.chosen),
            "protocol": PROTOCOL,
            "host_digest": packed.host_digest,
            "data_digest": problem.data.digest,
            "bank": bank,
            **tracking.commit_tags(),
            **compare([measured])[1].gains(PROTOCOL),
        }
        snapshots.log(vision_snapshots.of_release(problem, measured[method], packed))
        registered = vision_registry.register(work.bundle, packed, tags, metrics)
    work.remember(config)
    return Released(work.bundle, registered, mode, packed.host_digest, bank, metrics)


def pack(model: Personalised, problem: Problem, work: VisionWorkspace, metrics: Mapping[str, float]) -> Release:
    """The trained model with its classes, and the bank that is served if there is one of this very model."""
    config, data = problem.config, problem.data
    info = {"settings": config.as_dict(), "metrics": dict(metrics), "data_digest": data.digest, "parent": None}
    packed = Release(model, data.class_names, data.image_shape, info)
    lineage = work.lineage(packed.host_digest)
    if not lineage.head or not served_by(lineage, model):
        return packed
    return Release(model, data.class_names, data.image_shape, info, lineage.load())


def served_by(lineage: Lineage, model: Personalised) -> bool:
    """Whether the bank at the head was made with this host and editor."""
    from persona.prototypes import HeadMetric, load_bank

    assert model.editor is not None
    bank = load_bank(lineage.root / lineage.head / "bank")
    metric = HeadMetric(model.editor)
    return bool(bank.host == metric.host and bank.editor == metric.editor)


def _log_data(data: DeviceImages, source: str) -> None:
    """The data set, as MLflow shows it beside a run: its devices, with how many images they have."""
    import polars as pl
    from mlflow.data import polars_dataset

    devices = pl.DataFrame(
        {"device": list(data.device_ids), "group": list(data.groups), "images": np.diff(data.offsets)}
    )
    tracking.log_dataset(polars_dataset.from_polars(devices, name=Path(source).stem, digest=data.digest[:32]))
