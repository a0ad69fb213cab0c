"""The steps around prototypes: fit a bank, replay streams through the bundle, refine the bank by what devices showed.

Shapes: W windows, L adaptive layers, d code width, P images.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from persona.errors import ConfigError, DataError
from persona.prototypes import (
    Choice,
    HeadMetric,
    Lineage,
    PrototypeBank,
    RefineConfig,
    Server,
    UserStatistics,
    choose_k,
    fit_bank,
    refine,
)
from persona.storage import atomic_folder, load_tensors, save_tensors
from pipelines import registry, tracking, vision_figures, vision_registry
from pipelines.vision_steps import EXPERIMENT, OnEpoch, served_by
from pipelines.vision_workspace import VisionWorkspace
from vision.baselines import Problem, train_method
from vision.classifier import LEVELS, Classifier
from vision.config import VisionConfig
from vision.objectives import batched_logits
from vision.personalised import Personalised
from vision.prototypes import ServedAtLevel, fit_distinct, window_codes, window_statistics

# How far below the best validation accuracy a smaller bank may be.
TOLERANCE = 0.002
ANSWERS, STATISTICS = "answers.parquet", "statistics.safetensors"


@dataclass(frozen=True)
class Banked:
    """A version of the bank."""

    version: str
    parent: str
    k: int
    model: registry.Registered
    report: dict[str, Any]


def prototypes(config: VisionConfig, work: VisionWorkspace, on_epoch: OnEpoch | None = None) -> Banked:
    """Fit a bank on what the editor's devices showed, of the size that validation asks for, and register it."""
    tracking.connect(EXPERIMENT)
    with tracking.run("prototypes", tags={"step": "prototypes"}):
        tracking.log_params(config.as_dict())
        problem = Problem(work.data(), config, folder=work.cells, on_epoch=on_epoch)
        model = trained_model(problem)
        assert model.editor is not None
        evaluation = problem.evaluation(problem.split.train if config.mode == "frozen" else problem.split.adapt)
        codes, owners = window_codes(model, evaluation, problem.features)
        choice = _choose(problem, model, codes, owners)
        fitted = fit_bank(model.editor, codes, choice.k, seed=config.seed, users=torch.from_numpy(owners))
        report = {"choice": choice.as_dict(), "devices": len(evaluation.devices), "windows": len(codes)}
        Lineage(work.prototypes, model.editor.host).save(fitted.bank, fitted.statistics, report)
        gallery = vision_figures.gallery(problem.data, owners, fitted.labels.numpy(), len(fitted.bank))
        tracking.log_figure(gallery, "figures/gallery.png")
        banked = _register(fitted.bank, work, report, {f"accuracy_k{c.k}": c.score for c in choice.candidates})
    work.remember(config)
    return banked


def trained_model(problem: Problem) -> Personalised:
    """The model that ``edit`` trained, whose edits carry the digest of their host."""
    model = train_method(f"persona_{problem.config.mode}", problem).classifier
    assert isinstance(model, Personalised)
    assert model.editor is not None
    model.editor.host = model.host.digest()
    return model


def _choose(problem: Problem, model: Personalised, codes: Tensor, owners: Any) -> Choice:
    """The smallest of 1, 4, 16 .. prototypes that validation hardly tells from the best."""
    assert model.editor is not None
    editor = model.editor
    most = len(fit_distinct(editor, codes, problem.config.prototypes, seed=problem.config.seed).bank)
    ks = sorted({min(4**i, most) for i in range(5)})

    def score(bank: PrototypeBank) -> float:
        served = ServedAtLevel(model, Server(editor, bank), "prototype")
        positions, logits = batched_logits(served, problem.validation, problem.features)
        return problem.validation.judge(logits, positions).summary["accuracy"]

    users = torch.from_numpy(owners)
    return choose_k(editor, codes, ks, score, tolerance=TOLERANCE, seeds=(0, 1), users=users)


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
        classifier = Classifier.load(work.bundle)
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


def _play(classifier: Classifier, problem: Problem, levels: tuple[str, ...]) -> tuple[pl.DataFrame, Tensor, Any]:
    data, evaluation = problem.data, problem.test
    rows: list[dict[str, Any]] = []
    codes: list[Tensor] = []
    owners: list[int] = []
    for device in evaluation.devices.tolist():
        for own, new in evaluation.windows(device):
            answers = {level: classifier.classify(data.pixels[own], level=level) for level in levels}
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

    Raises:
        ConfigError: there is no bank of this model yet.
        DataError: nothing was replayed, or with another bank.
    """
    tracking.connect(EXPERIMENT)
    with tracking.run("refine", tags={"step": "refine"}):
        tracking.log_params({**config.as_dict(), "limits": asdict(limits or RefineConfig(seed=config.seed))})
        model = trained_model(Problem(work.data(), config, folder=work.cells))
        assert model.editor is not None
        lineage = Lineage(work.prototypes, model.editor.host)
        if not lineage.head or not served_by(lineage, model):
            raise ConfigError(f"{work.prototypes} has no bank of this model: run `persona vision prototypes` first")
        bank = lineage.load()
        window = _window(work, bank)
        refinement = refine(bank, HeadMetric(model.editor), window, limits or RefineConfig(seed=config.seed))
        report = refinement.report()
        lineage.save(refinement.bank, window, report)
        tracking.log_figure(vision_figures.movement(refinement.movement, model.editor.specs), "figures/movement.png")
        tracking.log_figure(vision_figures.flow(refinement.flow), "figures/flow.png")
        metrics = {
            f"movement_{spec.name}": float(m)
            for spec, m in zip(model.editor.specs, refinement.movement.mean(0), strict=True)
        }
        banked = _register(refinement.bank, work, report, metrics | {"moved_users": float(len(refinement.moved))})
    work.remember(config)
    return banked


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


def _register(bank: PrototypeBank, work: VisionWorkspace, report: dict[str, Any], metrics: dict[str, float]) -> Banked:
    tracking.log_metrics_batch({"k": float(len(bank)), **metrics})
    tracking.log_json(report, "prototypes/report.json")
    kind = str(bank.metadata.get("kind", ""))
    text = f"{len(bank)} prototypes by {kind}" + (f" of {bank.parent[:12]}" if bank.parent else "")
    folder = work.prototypes / bank.version / "bank"
    registered = vision_registry.register_bank(bank, folder, {"kind": kind, **tracking.commit_tags()}, metrics, text)
    return Banked(bank.version, bank.parent, len(bank), registered, report)
