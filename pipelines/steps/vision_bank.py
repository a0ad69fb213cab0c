"""The steps around prototypes: fit a bank, replay streams through the bundle, refine the bank by what devices showed.

Shapes: W windows, L adaptive layers, d code width, P images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from persona.bootstrap import SeedsInterval
from persona.cloud import LEVELS
from persona.comparison import Measured, metric_name
from persona.errors import ConfigError, DataError
from persona.prototypes import HeadMetric, PrototypeBank, RefineConfig, Refinement, Server, UserStatistics, refine
from persona.storage import atomic_folder, load_tensors, save_tensors
from pipelines import tracking
from pipelines.steps.vision import EXPERIMENT, OnEpoch, served_by
from pipelines.steps.vision_workspace import VisionWorkspace
from pipelines.tracking import bank_figures, registry, vision_figures
from pipelines.tracking.banks import (
    BankVersion,
    Edits,
    as_metrics,
    bank_metrics,
    deltas,
    refinement_tags,
    register_bank,
    sample_edits,
)
from pipelines.versions import snapshots, vision_snapshots
from pipelines.versions.vision_snapshots import METRICS, PROTOTYPE
from vision.config import VisionConfig
from vision.data.protocols import PROTOCOL
from vision.evaluation import Evaluated
from vision.methods import Problem, fit_chosen, personalised, train_configured
from vision.objectives import batched_logits
from vision.personalised import Personalised
from vision.prototypes import window_codes, window_statistics
from vision.serving.release import Release

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODEL = "persona-vision-prototypes"
# Levels at which versions of a bank differ.
SERVED = (PROTOTYPE, "basis")
_PREFIX = f"{PROTOCOL} {PROTOTYPE}"
ANSWERS, STATISTICS = "answers.parquet", "statistics.safetensors"


@dataclass(frozen=True)
class Banked:
    """A version of the bank.

    Attributes:
        version: of the bank.
        parent: that it was made from, empty for a first one.
        k: number of prototypes.
        model: its version in the registry.
        report: what the step has to say.
        served: whether it is the head of the lineage, which ``release`` packs.
    """

    version: str
    parent: str
    k: int
    model: registry.Registered
    report: dict[str, Any]
    served: bool = True


def prototypes(config: VisionConfig, work: VisionWorkspace, on_epoch: OnEpoch | None = None) -> Banked:
    """Fit a bank on what the editor's devices showed, of the size that validation asks for, and register it."""
    tracking.connect(EXPERIMENT)
    with tracking.run("prototypes", tags={"step": "prototypes"}):
        tracking.log_params(config.as_dict())
        problem = Problem(work.data(), config, folder=work.cells, on_epoch=on_epoch)
        model = trained_model(problem)
        assert model.editor is not None
        chosen = fit_chosen(problem, model)
        fitted, codes, owners = chosen.fitted, chosen.codes, chosen.owners
        devices = len(np.unique(owners))
        report = {"choice": chosen.choice.as_dict(), "devices": devices, "windows": len(codes)}
        work.lineage(model.editor.host).save(fitted.bank, fitted.statistics, report)
        classifier = Release(model, problem.data.class_names, problem.data.image_shape, bank=fitted.bank)
        measured, changes = _against_host(problem, classifier)
        tracking.log_json(report, "prototypes/report.json")
        figures = {
            "gallery": vision_figures.gallery(problem.data, owners, fitted.labels.numpy(), len(fitted.bank)),
            "prototype_map": bank_figures.prototype_map(server_of(classifier), codes),
        }
        scores = {f"{config.monitor}_k{c.k}": c.score for c in chosen.choice.candidates}
        text = f"{len(fitted.bank)} prototypes, fitted on {len(codes):,} windows of {devices:,} devices."
        version = BankVersion(
            fitted.bank,
            server_of(classifier),
            _described(text, changes),
            bank_metrics(fitted.bank) | scores | _summary(measured) | as_metrics(changes),
            {"data_digest": problem.data.digest, "chosen": "validation and stability", "served": "True"},
            _sampled(classifier, problem, codes, owners),
            figures,
        )
        registered = _log_version(problem, classifier, measured, version)
    work.remember(config)
    return Banked(fitted.bank.version, fitted.bank.parent, len(fitted.bank), registered, report)


def trained_model(problem: Problem) -> Personalised:
    """The model that ``edit`` trained, whose edits carry the digest of their host."""
    model = personalised(train_configured(problem)[1])
    assert model.editor is not None
    model.editor.host = model.host.digest()
    return model


@dataclass(frozen=True)
class Replayed:
    """What the bundle answered in the streams of the test devices."""

    devices: int
    images: int
    windows: int
    accuracy: dict[str, float]
    worst: list[dict[str, Any]]
    most_improved: list[dict[str, Any]]


def replay(config: VisionConfig, work: VisionWorkspace) -> Replayed:
    """Play the streams of the test devices through the released bundle, in their order and at every level.

    Leaves every answer in the workspace, and what refinement may read of the devices: sums of codes, without labels.
    """
    tracking.connect(EXPERIMENT)
    with tracking.run("replay", tags={"step": "replay"}):
        tracking.log_params(config.as_dict())
        problem = Problem(work.data(), config)
        classifier = Release.load(work.bundle)
        levels = LEVELS if classifier.bank is not None else ("host", "edit")
        answers, codes, owners = _play(classifier, problem, levels)
        with atomic_folder(work.replay) as folder:
            answers.write_parquet(folder / ANSWERS)
            if classifier.server is not None:
                _save(window_statistics(classifier.server, codes, owners), classifier.server.bank.version, folder)
        result = _judge(answers, levels, len(codes))
        tracking.log_metrics_batch({f"accuracy_{level}": value for level, value in result.accuracy.items()})
        tracking.log_json(asdict(result), "replay.json")
        for name, figure in vision_figures.of_replay(problem.data, answers, levels).items():
            tracking.log_figure(figure, f"figures/{name}.png")
    work.remember(config)
    return result


def _play(classifier: Release, problem: Problem, levels: tuple[str, ...]) -> tuple[pl.DataFrame, Tensor, Any]:
    data, evaluation, answering = problem.data, problem.test, classifier.classifier()
    rows: list[dict[str, Any]] = []
    codes: list[Tensor] = []
    owners: list[int] = []
    for device in evaluation.devices.tolist():
        for own, new in evaluation.windows(device):
            answers = {level: answering.classify(data.pixels[own], level=level) for level in levels}
            codes.append(classifier.codes(data.pixels[own]))
            owners.append(device)
            for i in range(len(own) - new, len(own)):
                row = {"device": device, "position": int(own[i]), "time": int(own[i] - data.offsets[device])}
                truth = data.class_names[data.labels[own[i]]]
                prototype = next((a.prototype for a in answers.values() if a.prototype is not None), None)
                rows.append(
                    row | {"truth": truth, "prototype": prototype} | {k: a.classes[i] for k, a in answers.items()}
                )
    return pl.DataFrame(rows), torch.cat(codes), np.array(owners, np.int64)


def _judge(answers: pl.DataFrame, levels: tuple[str, ...], windows: int) -> Replayed:
    right = [(pl.col(level) == pl.col("truth")).mean().alias(level) for level in levels]
    devices = answers.group_by("device", maintain_order=True).agg(*right)
    gain = (pl.col("edit") - pl.col("host")).alias("gain")
    ranked = devices.with_columns(gain)
    return Replayed(
        devices=len(devices),
        images=len(answers),
        windows=windows,
        accuracy={level: float(np.mean(devices[level].to_numpy())) for level in levels},
        worst=ranked.sort("edit").head(5).to_dicts(),
        most_improved=ranked.sort("gain", descending=True).head(5).to_dicts(),
    )


def _save(statistics: UserStatistics, bank: str, folder: Any) -> None:
    tensors = {name: getattr(statistics, name) for name in ("users", "prototypes", "counts", "sums")}
    save_tensors(folder / STATISTICS, tensors, {"k": statistics.k, "bank": bank})


def refine_bank(config: VisionConfig, work: VisionWorkspace, limits: RefineConfig | None = None) -> Banked:
    """A new version of the bank from what devices showed in the last replay; no label, no gradient.

    The new version is compared with its parent on the streams that were replayed; one that is behind, with its interval below
    zero, is kept in the lineage and registered, but is no candidate, and its parent goes on being served.

    Raises:
        ConfigError: there is no bank of this model yet.
        DataError: nothing was replayed, or with another bank.
    """
    limits = limits or RefineConfig(seed=config.seed)
    tracking.connect(EXPERIMENT)
    with tracking.run("refine", tags={"step": "refine"}):
        tracking.log_params({**config.as_dict(), "limits": asdict(limits)})
        problem = Problem(work.data(), config, folder=work.cells)
        model = trained_model(problem)
        assert model.editor is not None
        lineage = work.lineage(model.editor.host)
        if not lineage.head or not served_by(lineage, model):
            raise ConfigError(f"{work.prototypes} has no bank of this model: run `persona vision prototypes` first")
        bank = lineage.load()
        window = _window(work, bank)
        refinement = refine(bank, HeadMetric(model.editor), window, limits)
        report = refinement.report()
        lineage.save(refinement.bank, window, report)
        parent, child = (
            Release(model, problem.data.class_names, problem.data.image_shape, bank=version)
            for version in (bank, refinement.bank)
        )
        measured, changes = _against_host(problem, child)
        old = vision_snapshots.at_levels(problem, parent, (PROTOTYPE,))[PROTOTYPE]
        found = deltas(_measured(PROTOTYPE, measured[PROTOTYPE]), _measured("parent", old), _PREFIX, METRICS)
        served = not _behind(found)
        if not served:
            lineage.restore(bank.version)
        changes |= found
        tracking.log_json(report | {"changes": {k: v.as_dict() for k, v in changes.items()}}, "refinement.json")
        version = BankVersion(
            refinement.bank,
            server_of(child),
            _described(_refined_text(refinement, served), changes),
            bank_metrics(refinement.bank, refinement) | _summary(measured) | as_metrics(changes),
            refinement_tags(refinement.bank, refinement) | {"data_digest": problem.data.digest, "served": str(served)},
            _sampled(child, problem, *window_codes(model, problem.test, problem.features_of(model.host))),
            _moved(refinement),
        )
        registered = _log_version(problem, child, measured, version, candidate=served)
    work.remember(config)
    new = refinement.bank
    return Banked(new.version, new.parent, len(new), registered, report, served)


def _window(work: VisionWorkspace, bank: PrototypeBank) -> UserStatistics:
    path = work.replay / STATISTICS
    if not path.exists():
        raise DataError(
            f"{work.replay} holds nothing that devices showed: run `persona vision release` and `replay` first"
        )
    tensors, header = load_tensors(path)
    if header["bank"] != bank.version:
        raise DataError(
            f"{work.replay} was played with the bank {header['bank'][:12]}, but {bank.version[:12]} is to be refined: run "
            "`persona vision release` and `replay` again"
        )
    return UserStatistics(**tensors, k=header["k"])


def server_of(classifier: Release) -> Server:
    """The server of a classifier that has a bank."""
    assert classifier.server is not None
    return classifier.server


def _log_version(
    problem: Problem,
    classifier: Release,
    measured: Mapping[str, Evaluated],
    version: BankVersion,
    *,
    candidate: bool = True,
) -> registry.Registered:
    """Leave what versions are compared by in the run, and register the version."""
    values = {level: found.per_device for level, found in measured.items()}
    snapshots.log(vision_snapshots.taken(problem, values, classifier, level=PROTOTYPE))
    tracking.log_metrics_batch(version.metrics)
    return register_bank(MODEL, version, candidate=candidate)


def _against_host(problem: Problem, classifier: Release) -> tuple[dict[str, Evaluated], dict[str, SeedsInterval]]:
    """What a bank achieves on the test devices by level, and the gain of its prototypes over the host."""
    measured = vision_snapshots.at_levels(problem, classifier, SERVED)
    positions, logits = batched_logits(
        Personalised(classifier.model.host), problem.test, problem.features_of(classifier.model.host)
    )
    host = _measured("host", problem.test.judge(logits, positions))
    return measured, deltas(_measured(PROTOTYPE, measured[PROTOTYPE]), host, _PREFIX, METRICS)


def _measured(name: str, found: Evaluated) -> Measured:
    return Measured(name, found.summary, found.per_device, found.devices)


def _summary(measured: Mapping[str, Evaluated]) -> dict[str, float]:
    return {
        metric_name(f"{PROTOCOL} {level}", name): v for level, e in measured.items() for name, v in e.summary.items()
    }


def _behind(changes: Mapping[str, SeedsInterval]) -> bool:
    """Whether the accuracy of prototypes is surely below that of the parent's."""
    accuracy = changes.get(f"{metric_name(_PREFIX, 'accuracy')}_vs_parent")
    return accuracy is not None and accuracy.interval.high < 0


def _sampled(classifier: Release, problem: Problem, codes: Tensor, owners: Any) -> Edits:
    return sample_edits(server_of(classifier), codes, [problem.data.device_ids[d] for d in owners], unit="device")


def _moved(refinement: Refinement) -> dict[str, Figure]:
    layers = [spec.name for spec in refinement.bank.prototypes.specs]
    return {
        "movement": bank_figures.movement(refinement.movement, layers),
        "flow": bank_figures.assignment_flow(refinement.flow, refinement.bank.origin.tolist(), unit="device"),
    }


def _refined_text(refinement: Refinement, served: bool) -> str:
    """What a refinement did, for people."""
    text = (
        f"Refined from {refinement.bank.parent[:12]} with {int(refinement.contexts.sum()):,} windows of replayed streams: no "
        f"labels, no gradients. {len(refinement.moved):,} devices changed prototype; the largest movement of a layer is "
        f"{float(refinement.movement.max()):.4g}; {len(refinement.split)} split, {len(refinement.retired)} retired, "
        f"{len(refinement.held)} held for want of devices."
    )
    return text if served else f"{text} Behind its parent on these streams, so the parent goes on being served."


def _described(text: str, changes: Mapping[str, SeedsInterval]) -> str:
    """A description with one line a difference."""
    lines = [text]
    for name, change in changes.items():
        metric, _, other = name.rpartition("/")[2].partition("_vs_")
        lines.append(f"Prototypes alone against the {other} on the test devices, {metric}: {change.interval}")
    return "\n\n".join(lines)
