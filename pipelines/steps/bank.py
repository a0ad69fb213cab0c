"""The steps around a recommender's prototypes: fit a bank, refine it with new events; every version is registered.

    edit -> prototypes -> release -> (new events) -> refine -> release

Versions are kept in the workspace, one lineage a host (``persona.prototypes.Lineage``); ``release`` packs the head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from persona.bootstrap import SeedsInterval
from persona.comparison import Measured, metric_name
from persona.errors import ConfigError
from persona.prototypes import HeadMetric, PrototypeBank, RefineConfig, Refinement, Server
from persona.prototypes import refine as refine_bank
from pipelines import tracking
from pipelines.steps.collecting import new_events, of_files, of_window
from pipelines.steps.recsys import EXPERIMENT, OnEpoch
from pipelines.steps.workspace import Workspace
from pipelines.tracking import bank_figures
from pipelines.tracking.banks import (
    BankVersion,
    as_metrics,
    bank_metrics,
    deltas,
    refinement_tags,
    register_bank,
    sample_edits,
)
from pipelines.tracking.registry import Registered
from pipelines.versions import recsys_snapshots, snapshots
from recsys.config import RecsysConfig
from recsys.data.windows import Window
from recsys.evaluation import Evaluated, Evaluation
from recsys.methods import Problem, train_configured
from recsys.personalised import Personalised
from recsys.prototypes import BankConfig, FittedBank, Notify, evaluate_levels, fit_prototypes
from recsys.serving.release import Release

MODEL = "persona-recsys-prototypes"
# Levels at which versions of a bank differ.
SERVED = ("prototype", "basis")
COMPARED = ("uauc", "ndcg_10", "hr_10")
# Rows on which two versions are compared after a window, at most.
COMPARED_ROWS = 20_000


@dataclass(frozen=True)
class Banked:
    """A version of the bank.

    Attributes:
        version: of the bank.
        parent: that it was made from, empty for a first one.
        kind: ``fit``, ``specialise`` or ``refine``.
        k: number of prototypes.
        registered: its version in the registry.
        metrics: what it is compared by.
        report: what the step has to say.
        served: whether it is the head of the lineage, which ``release`` packs.
    """

    version: str
    parent: str
    kind: str
    k: int
    registered: Registered
    metrics: dict[str, float]
    report: dict[str, Any] = field(default_factory=dict)
    served: bool = True


def prototypes(
    config: RecsysConfig,
    work: Workspace,
    settings: BankConfig | None = None,
    on_epoch: OnEpoch | None = None,
    notify: Notify = lambda note: None,
) -> list[Banked]:
    """Fit a bank on the training contexts of the editor, specialise its prototypes where that helps, and register it.

    Returns:
        The first version, and the specialised one where any prototype was better for it.
    """
    settings = settings or BankConfig()
    tracking.connect(EXPERIMENT)
    with tracking.run("prototypes", tags={"step": "prototypes"}):
        tracking.log_params(config.as_dict() | {f"bank.{name}": value for name, value in asdict(settings).items()})
        data = work.data()
        problem = Problem(data, config, folder=work.cells, on_epoch=on_epoch)
        model = train_configured(problem)[1].scorer
        assert isinstance(model, Personalised)
        fitted = fit_prototypes(problem, model, settings, notify)
        tracking.log_metrics_batch({f"validation/{config.monitor}_{level}": v for level, v in fitted.levels.items()})
        if fitted.choice is not None:
            figure = bank_figures.choice_of_k(fitted.choice, config.monitor, fitted.levels)
            tracking.log_figure(figure, "figures/choice_of_k.png")
        report = _fit_report(fitted)
        tracking.log_json(report, "prototypes.json")
        lineage = work.lineage(fitted.bank.host)
        first = fitted.partition.bank
        made = []
        parent: Release | None = None
        for bank in [first] if fitted.bank.version == first.version else [first, fitted.bank]:
            notify(f"version {bank.version[:8]}")
            lineage.save(bank, fitted.partition.statistics if bank is first else None, report)
            recommender = (
                Release(model, data.item_ids.to_list(), _titles(work), bank=bank)
                if parent is None
                else parent.with_bank(bank)
            )
            made.append(_register_fitted(recommender, parent, problem, fitted, report))
            parent = recommender
    work.remember(config)
    return made


def refine(
    work: Workspace,
    *,
    source: str = "",
    columns: Mapping[str, str | None] | None = None,
    window: tuple[str, str] | None = None,
    days: float = 0.0,
    statistics: Sequence[Path] = (),
    limits: RefineConfig | None = None,
) -> Banked:
    """Refine the bank at the head of the lineage with the edits of new events: no labels, no gradients.

    The new version is compared with its parent on the new events; one that is behind, with its interval below zero, is kept
    in the lineage and registered, but is no candidate, and its parent goes on being served. Where workers collected the
    ``statistics``, the events need not be given; if they are, they only serve to compare.

    Args:
        work: with a released bundle.
        source: log of new events, or
        columns: of this log; those of the prepared log by default.
        window: start and end of a window of the prepared log, or
        days: the last days of the prepared log.
        statistics: files that ``collect`` wrote with the bank at the head, or folders with them.
        limits: how far prototypes may move.

    Raises:
        ConfigError: not exactly one of source, window and days is given, or there is no bank of the bundle yet.
        MismatchError: statistics were collected with another version of the bank.
    """
    limits = limits or RefineConfig()
    recommender = Release.load(work.bundle)
    editor = recommender.model.editor
    if editor is None:
        raise ConfigError(f"{work.bundle} is a host without an editor, which has no prototypes to refine")
    lineage = work.lineage(recommender.host_digest)
    if not lineage.head:
        raise ConfigError(f"{lineage.root} has no bank of the released bundle: run `persona recsys prototypes` first")
    bank, metric = lineage.load(), HeadMetric(editor)
    bank.check(metric)
    merged = of_files(statistics, bank) if statistics else None
    found = None
    if merged is None or source or window is not None or days:
        found = new_events(work, recommender.item_ids, source=source, columns=columns, window=window, days=days)
    tracking.connect(EXPERIMENT)
    with tracking.run("refine", tags={"step": "refine"}):
        if merged is None:
            assert found is not None
            merged = of_window(recommender, bank, found)
        tracking.log_params({f"refine.{name}": value for name, value in asdict(limits).items()} | merged.window)
        refinement = refine_bank(bank, metric, merged.statistics, limits)
        report = refinement.report() | {"window": merged.window, "compared": found is not None}
        lineage.save(refinement.bank, merged.statistics, report)
        parent, child = (recommender.with_bank(version) for version in (bank, refinement.bank))
        changes, summary = ({}, {}) if found is None else _on_window(found, parent, child)
        served = not any(_behind(changes, f"window/{metric}_vs_parent") for metric in ("uauc", "ndcg_10"))
        if not served:
            lineage.restore(bank.version)
        tracking.log_json(report | {"changes": {k: v.as_dict() for k, v in changes.items()}}, "refinement.json")
        _log_snapshot(work, child)
        version = BankVersion(
            refinement.bank,
            _server(child),
            _refined_text(refinement, merged.window, changes, served),
            bank_metrics(refinement.bank, refinement) | summary | as_metrics(changes),
            refinement_tags(refinement.bank, refinement)
            | {"data_digest": merged.digest, "served": str(served)}
            | _as_tags(changes),
            sample_edits(_server(child), merged.codes, merged.names),
            {
                "prototype_map": bank_figures.prototype_map(_server(child), merged.codes),
                "movement": bank_figures.movement(refinement.movement, _layers(bank)),
                "assignment_flow": bank_figures.assignment_flow(refinement.flow, refinement.bank.origin.tolist()),
            },
        )
        tracking.log_metrics_batch(version.metrics)
        registered = register_bank(MODEL, version, candidate=served)
    new = refinement.bank
    return Banked(new.version, bank.version, "refine", len(new), registered, dict(version.metrics), report, served)


def _register_fitted(
    recommender: Release, parent: Release | None, problem: Problem, fitted: FittedBank, report: dict[str, Any]
) -> Banked:
    """Measure a fitted version on the test rows, and register it in a run of its own."""
    bank, protocol = recommender.bank, problem.config.protocol
    assert bank is not None
    kind = str(bank.metadata["kind"])
    with tracking.run(f"bank {kind}", tags={"kind": kind}):
        measured = evaluate_levels(problem.test, recommender.model, bank, ("host", *SERVED))
        changes = _changes(problem.test, recommender, parent, measured, protocol)
        named = {level: measured[level] for level in SERVED}
        summary = {metric_name(f"{protocol} {k}", m): v for k, e in named.items() for m, v in e.summary.items()}
        snapshots.log(recsys_snapshots.taken(problem.test, named, recommender, protocol=protocol, level="prototype"))
        version = BankVersion(
            bank,
            _server(recommender),
            _fitted_text(bank, fitted, changes, protocol),
            bank_metrics(bank) | summary | as_metrics(changes),
            {"data_digest": problem.data.digest, "chosen": report["chosen"], "served": "True"} | _as_tags(changes),
            sample_edits(_server(recommender), fitted.codes, fitted.users),
            {"prototype_map": bank_figures.prototype_map(_server(recommender), fitted.codes)},
        )
        tracking.log_metrics_batch(version.metrics)
        registered = register_bank(MODEL, version)
    return Banked(bank.version, bank.parent, kind, len(bank), registered, dict(version.metrics), report)


def _changes(
    evaluation: Evaluation,
    child: Release,
    parent: Release | None,
    measured: Mapping[str, Evaluated],
    prefix: str,
) -> dict[str, SeedsInterval]:
    """Differences of prototypes alone to the host and to the parent's prototypes."""
    new = _measured("prototype", measured["prototype"])
    found = deltas(new, _measured("host", measured["host"]), f"{prefix} prototype", COMPARED)
    if parent is not None and parent.bank is not None:
        old = evaluate_levels(evaluation, parent.model, parent.bank, ("prototype",))["prototype"]
        found |= deltas(new, _measured("parent", old), f"{prefix} prototype", COMPARED)
    return found


def _on_window(window: Window, parent: Release, child: Release) -> tuple[dict[str, SeedsInterval], dict[str, float]]:
    """Child against parent and host on the new events, prototypes alone; and what the child reaches there."""
    rows = window.targets()
    if len(np.unique(window.data.user_of(rows))) < 2:
        return {}, {}
    settings = child.info.get("settings", {})
    evaluation = Evaluation(
        window.data,
        rows,
        max_length=child.model.host.config.max_length,
        full=settings.get("protocol") == "full",
        seed=settings.get("seed", 0),
        limit=COMPARED_ROWS,
    )
    assert child.bank is not None
    measured = evaluate_levels(evaluation, child.model, child.bank, ("host", "prototype"))
    changes = _changes(evaluation, child, parent, measured, "window")
    summary = {f"window/{name}": v for name, v in measured["prototype"].summary.items()}
    return {name.replace("window prototype", "window"): v for name, v in changes.items()}, summary


def _log_snapshot(work: Workspace, recommender: Release) -> None:
    """The version on the test rows that the bundle was released with, so that any two versions can be compared."""
    settings = recommender.info.get("settings")
    if settings is None or not work.prepared.exists():
        return
    data = work.data()
    if data.digest != recommender.info.get("data_digest"):
        return
    config = RecsysConfig.from_dict(settings)
    evaluation = Problem(data, config).test
    assert recommender.bank is not None
    measured = evaluate_levels(evaluation, recommender.model, recommender.bank, SERVED)
    taken = recsys_snapshots.taken(evaluation, measured, recommender, protocol=config.protocol, level="prototype")
    snapshots.log(taken)


def _measured(name: str, found: Evaluated) -> Measured:
    return Measured(name, found.summary, found.per_user, found.users)


def _behind(changes: Mapping[str, SeedsInterval], name: str) -> bool:
    return name in changes and changes[name].interval.high < 0


def _as_tags(changes: Mapping[str, SeedsInterval]) -> dict[str, str]:
    """Differences with their intervals, as text."""
    return {name: str(change.interval) for name, change in changes.items()}


def _server(recommender: Release) -> Server:
    assert recommender.server is not None
    return recommender.server


def _titles(work: Workspace) -> Sequence[str | None] | None:
    titles = work.data().titles
    return None if titles is None else titles.to_list()


def _layers(bank: PrototypeBank) -> list[str]:
    return [spec.name for spec in bank.prototypes.specs]


def _fit_report(fitted: FittedBank) -> dict[str, Any]:
    return {
        "k": len(fitted.bank),
        "chosen": "validation and stability" if fitted.choice is not None else "given",
        "choice": None if fitted.choice is None else fitted.choice.as_dict(),
        "levels": fitted.levels,
        "contexts": len(fitted.codes),
        "converged": fitted.partition.converged,
        "specialised": None if fitted.specialised is None else fitted.specialised.report(),
        "specialised_kept": fitted.bank.version != fitted.partition.bank.version,
    }


def _fitted_text(bank: PrototypeBank, fitted: FittedBank, changes: Mapping[str, SeedsInterval], protocol: str) -> str:
    """The description of a fitted version, for people."""
    if bank.parent:
        trained = ", ".join(map(str, bank.metadata.get("trained", ())))
        start = f"Prototypes {trained} of {bank.parent[:12]} were trained on their members, as validation favoured it."
    else:
        start = f"{len(bank)} prototypes, fitted on {len(fitted.codes):,} training contexts."
    lines = [start, *_change_lines(changes, f"under protocol {protocol}")]
    return "\n\n".join(lines)


def _refined_text(
    refinement: Refinement, described: Mapping[str, Any], changes: Mapping[str, SeedsInterval], served: bool
) -> str:
    """The description of a refined version, for people."""
    lines = [
        f"Refined from {refinement.bank.parent[:12]} with {int(refinement.contexts.sum()):,} contexts of "
        f"{described['users']:,} users, {described['from']} to {described['to']}: no labels, no gradients.",
        f"{len(refinement.bank)} prototypes; {len(refinement.moved):,} users changed prototype; the largest movement of a "
        f"layer is {float(refinement.movement.max()):.4g}; {len(refinement.split)} split, {len(refinement.retired)} retired, "
        f"{len(refinement.held)} held for want of users.",
        *_change_lines(changes, "on the new events"),
    ]
    if not served:
        lines.append("Behind its parent on these events, so the parent goes on being served.")
    return "\n\n".join(lines)


def _change_lines(changes: Mapping[str, SeedsInterval], where: str) -> list[str]:
    """One line a difference, in words."""
    lines = []
    for name, change in changes.items():
        metric, _, other = name.rpartition("/")[2].partition("_vs_")
        lines.append(f"Prototypes alone against the {other} {where}, {metric}: {change.interval}")
    return lines
