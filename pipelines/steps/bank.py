"""The steps around a bank of any task: fit one, refine it with what units showed; every version is registered.

    edit -> prototypes -> release -> (new contexts) -> refine -> release

Versions are kept in the workspace, one lineage a host (``persona.prototypes.Lineage``); ``release`` packs the head. A refined
version is compared first, on data that no report uses, and becomes the head last: a step that is killed leaves the head as it was.

Shapes: n examples, L layers, d code width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from persona.bootstrap import SeedsInterval
from persona.comparison import REFERENCE, Measured, metric_name
from persona.prototypes import FittedBank, HeadMetric, Lineage, PrototypeBank, RefineConfig, Refinement, UserStatistics
from persona.prototypes import refine as refine_bank
from persona.task import ALONE, SERVED, Notify, OnEpoch, Task
from pipelines import tracking
from pipelines.steps import bank_text
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
from pipelines.versions import snapshots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Changes = Mapping[str, SeedsInterval]
# What a task shows of a first bank besides: (problem, release, fitted) -> figures by name.
Figures = Callable[[Any, Any, FittedBank], Mapping[str, "Figure"]]


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


@dataclass(frozen=True)
class Seen:
    """Contexts that a refinement rests on, summed up.

    Attributes:
        statistics: of all of them.
        window: counts and limits, as JSON values.
        codes: (n, L, d) examples.
        names: (n,) whose they are.
        digest: of where they come from.
    """

    statistics: UserStatistics
    window: dict[str, Any]
    codes: Tensor
    names: list[str]
    digest: str


@dataclass(frozen=True)
class Compared:
    """A version against others.

    Attributes:
        changes: differences with intervals, by names such as ``window/uauc_vs_parent``.
        summary: what it achieves, by whole names.
    """

    changes: Changes = field(default_factory=dict)
    summary: Mapping[str, float] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, float]:
        """All numbers."""
        return {**self.summary, **as_metrics(self.changes)}

    @property
    def tags(self) -> dict[str, str]:
        """Differences with their intervals, as text."""
        return {name: str(change.interval) for name, change in self.changes.items()}

    def behind(self, metrics: Sequence[str]) -> bool:
        """Whether any of the metrics is surely below the parent's."""
        ends = tuple(f"/{metric}_vs_parent" for metric in metrics)
        return any(c.interval.high < 0 for name, c in self.changes.items() if name.endswith(ends))


def prototypes(
    task: Task,
    config: Any,
    work: Workspace,
    settings: Any = None,
    on_epoch: OnEpoch | None = None,
    notify: Notify = lambda note: None,
    figures: Figures = lambda problem, release, fitted: {},
) -> list[Banked]:
    """Fit a bank on what the editor read in training, and register it.

    Returns:
        The first version, and the specialised one where any prototype was better for it.
    """
    work.connect(task)
    with tracking.run("prototypes", tags={"step": "prototypes"}):
        problem = task.problem(work.data(task), config, folder=work.cells, on_epoch=on_epoch)
        settings = settings or task.bank_config(problem)
        tracking.log_params(config.as_dict() | {f"bank.{name}": value for name, value in asdict(settings).items()})
        model = task.model(task.train_configured(problem)[1])
        fitted = task.fit_bank(problem, model, settings, notify)
        report = bank_text.fit_report(task, fitted)
        _log_fitted(config.monitor, fitted, report)
        release = task.release(problem, model, {"settings": config.as_dict()})
        lineage = work.lineage(fitted.bank.host)
        first = fitted.partition.bank
        made: list[Banked] = []
        parent: PrototypeBank | None = None
        for bank in [first] if fitted.bank.version == first.version else [first, fitted.bank]:
            notify(f"version {bank.version[:8]}")
            lineage.save(bank, fitted.partition.statistics if bank is first else None, report)
            release = release.with_bank(bank)  # what was compiled for the first version serves the second
            made.append(_register_fitted(task, problem, release, parent, fitted, report, figures, work.name))
            parent = bank
    work.remember(config)
    return made


def refine(
    task: Task,
    parent: Any,
    lineage: Lineage,
    seen: Seen,
    limits: RefineConfig,
    *,
    decide: Callable[[Any], Compared] | None,
    report: Callable[[Any], Compared],
    where: str,
    data: str = "",
) -> Banked:
    """A new version of the bank from what units showed; no label, no gradient. In the active run.

    The new version is compared with its parent; one that is behind, with its interval below zero, is kept in the lineage and
    registered, but is no candidate, and its parent goes on being served.

    Args:
        task: what is personalised.
        parent: the model with the bank at the head of the ``lineage``.
        lineage: of the model's host.
        seen: contexts that the refinement rests on.
        limits: how far prototypes may move.
        decide: the child against its parent, on data that may decide; ``None`` where there is none, and the child is served.
        report: the child on what did not decide, called when everything is decided; logs its snapshot.
        where: what decides, in words.
        data: what the data is called.
    """
    bank: PrototypeBank = parent.bank
    refinement = refine_bank(bank, HeadMetric(parent.model.editor), seen.statistics, limits)
    new, child = refinement.bank, parent.with_bank(refinement.bank)
    told = refinement.report() | {"window": seen.window, "compared": decide is not None}
    lineage.save(new, seen.statistics, told, serve=False)
    decided = Compared() if decide is None else decide(child)
    served = not decided.behind(task.deciding)
    reported = report(child)
    changes = {**decided.changes, **reported.changes}
    tracking.log_json(told | {"changes": {k: v.as_dict() for k, v in changes.items()}}, "refinement.json")
    version = _refined(task, child, refinement, seen, decided, where, served)
    version = replace(version, metrics={**version.metrics, **reported.metrics}, tags={**version.tags, **reported.tags})
    tracking.log_metrics_batch(version.metrics)
    registered = register_bank(task.banks(data), version, candidate=served)
    if served:
        lineage.restore(new.version)
    return Banked(new.version, bank.version, "refine", len(new), registered, dict(version.metrics), told, served)


def _refined(
    task: Task, child: Any, refinement: Refinement, seen: Seen, decided: Compared, where: str, served: bool
) -> BankVersion:
    """What is registered of a refined version, yet without what is reported."""
    new = refinement.bank
    tags = {**refinement_tags(new, refinement), "data_digest": seen.digest, "served": str(served), **decided.tags}
    return BankVersion(
        new,
        child.server,
        bank_text.refined(task, refinement, seen.window, decided.changes, where, served),
        bank_metrics(new, refinement) | decided.metrics,
        tags,
        sample_edits(child.server, seen.codes, seen.names, task.unit),
        {
            "prototype_map": bank_figures.prototype_map(child.server, seen.codes),
            "movement": bank_figures.movement(refinement.movement, [spec.name for spec in new.prototypes.specs]),
            "assignment_flow": bank_figures.assignment_flow(refinement.flow, new.origin.tolist(), task.unit),
        },
    )


def compared(
    task: Task, measured: Mapping[str, Measured], parent: Measured | None, names: Mapping[str, str]
) -> Compared:
    """Prototypes alone against the host, and against the parent's; and what the version achieves.

    Args:
        task: whose metrics are compared.
        measured: the version by level, the host among them.
        parent: the parent's prototypes alone.
        names: of the levels that are told, prototypes alone among them: how the names of their metrics begin.
    """
    others = {REFERENCE: measured[REFERENCE]} | ({} if parent is None else {"parent": parent})
    changes: dict[str, SeedsInterval] = {}
    for name, other in others.items():
        changes |= deltas(measured[ALONE], replace(other, method=name), names[ALONE], task.compared)
    summary = {metric_name(names[level], m): v for level in names for m, v in measured[level].summary.items()}
    return Compared(changes, summary)


def on_test(task: Task, problem: Any, release: Any, parent: PrototypeBank | None) -> Compared:
    """A version on the test part, against host and parent; its snapshot is logged.

    This is the only place of these steps that reads the test part: whatever calls it has decided before.
    """
    protocol = problem.config.protocol
    with problem.reporting():
        measured = task.levels(problem, problem.test, release.model, release.bank, (REFERENCE, *SERVED))
        old = None if parent is None else task.levels(problem, problem.test, release.model, parent, (ALONE,))[ALONE]
        levels = {level: measured[level] for level in SERVED}
        snapshots.log(snapshots.of_release(task, problem, levels, release, ALONE))
    return compared(task, measured, old, {level: f"{protocol} {level}" for level in SERVED})


def _register_fitted(
    task: Task,
    problem: Any,
    release: Any,
    parent: PrototypeBank | None,
    fitted: FittedBank,
    report: dict[str, Any],
    figures: Figures,
    data: str,
) -> Banked:
    """Measure a fitted version on the test part, and register it."""
    bank, kind = release.bank, str(release.bank.metadata["kind"])
    with _run_of(task, kind):
        found = on_test(task, problem, release, parent)
        tried = () if fitted.choice is None else fitted.choice.candidates
        version = BankVersion(
            bank,
            release.server,
            bank_text.fitted(task, bank, fitted, found.changes, problem.config.protocol),
            bank_metrics(bank) | {f"{problem.config.monitor}_k{c.k}": c.score for c in tried} | found.metrics,
            {"data_digest": problem.data.digest, "chosen": report["chosen"], "served": "True", **found.tags},
            sample_edits(release.server, fitted.codes, fitted.users, task.unit),
            {
                "prototype_map": bank_figures.prototype_map(release.server, fitted.codes),
                **figures(problem, release, fitted),
            },
        )
        tracking.log_metrics_batch(version.metrics)
        registered = register_bank(task.banks(data), version)
    return Banked(bank.version, bank.parent, kind, len(bank), registered, dict(version.metrics), report)


def _run_of(task: Task, kind: str) -> AbstractContextManager[Any]:
    return tracking.run(f"bank {kind}", tags={"kind": kind}) if task.versions_apart else nullcontext()


def _log_fitted(monitor: str, fitted: FittedBank, report: dict[str, Any]) -> None:
    """What decided about a first bank, in the active run."""
    tracking.log_metrics_batch({f"validation/{monitor}_{level}": v for level, v in fitted.levels.items()})
    if fitted.choice is not None and fitted.levels:
        figure = bank_figures.choice_of_k(fitted.choice, monitor, fitted.levels)
        tracking.log_figure(figure, "figures/choice_of_k.png")
    tracking.log_json(report, "prototypes.json")
