"""Refining the bank of a recommender: the edits of new events move the prototypes, and the events decide which version is served."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np

from persona.comparison import REFERENCE
from persona.errors import ConfigError
from persona.prototypes import HeadMetric, Lineage, RefineConfig
from persona.task import ALONE
from pipelines import tracking
from pipelines.steps import bank
from pipelines.steps.collecting import new_events, of_files, of_window
from pipelines.steps.workspace import Workspace
from recsys.config import RecsysConfig
from recsys.data.windows import Window
from recsys.evaluation import Evaluation
from recsys.serving.release import Release
from recsys.task import RECSYS

# Rows on which two versions are compared after a window, at most.
COMPARED_ROWS = 20_000
# Users are halved at random, by this seed: one half decides whether a version is served, the other half tells how good it is.
HALVES, DECIDING = 71, 0


def refine(
    work: Workspace,
    *,
    source: str = "",
    columns: Mapping[str, str | None] | None = None,
    window: tuple[str, str] | None = None,
    days: float = 0.0,
    statistics: Sequence[Path] = (),
    limits: RefineConfig | None = None,
) -> bank.Banked:
    """Refine the bank at the head of the lineage with the edits of new events: no labels, no gradients.

    The new events of one half of the users decide whether the new version is served (see ``pipelines.steps.bank.refine``), those of
    the other half tell how it compares with its parent. Where workers collected
    the ``statistics``, the events need not be given; if they are, they only serve to compare.

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
    parent, lineage = _to_refine(work)
    assert parent.bank is not None
    limits = limits or RefineConfig()
    merged = of_files(statistics, parent.bank) if statistics else None
    found = None
    if merged is None or source or window is not None or days:
        found = new_events(work, parent.item_ids, source=source, columns=columns, window=window, days=days)
    work.connect(RECSYS)
    with tracking.run("refine", tags={"step": "refine"}):
        if merged is None:
            assert found is not None
            merged = of_window(parent, parent.bank, found)
        tracking.log_params({f"refine.{name}": value for name, value in asdict(limits).items()} | merged.window)
        decide = None if found is None else partial(_on_half, found, parent, DECIDING)
        report, where = partial(_reported, work, found, parent), "the new events of half of the users"
        return bank.refine(
            RECSYS, parent, lineage, merged, limits, decide=decide, report=report, where=where, data=work.name
        )


def _to_refine(work: Workspace) -> tuple[Release, Lineage]:
    """The released bundle with the bank at the head of its lineage."""
    recommender = Release.load(work.bundle)
    editor = recommender.model.editor
    if editor is None:
        raise ConfigError(f"{work.bundle} is a host without an editor, which has no prototypes to refine")
    lineage = work.lineage(recommender.host_digest)
    if not lineage.head:
        raise ConfigError(f"{lineage.root} has no bank of the released bundle: run `persona recsys prototypes` first")
    head = lineage.load()
    head.check(HeadMetric(editor))
    return recommender.with_bank(head), lineage


def _on_half(window: Window, parent: Release, half: int, child: Release) -> bank.Compared:
    """Child against parent and host on the new events of every other user, prototypes alone."""
    rows = window.targets()
    users = window.data.user_of(rows)
    order = np.random.default_rng(HALVES).permutation(window.data.n_users)
    rows = rows[order[users] % 2 == half]
    if len(np.unique(window.data.user_of(rows))) < 2:
        return bank.Compared()
    settings = child.info.get("settings", {})
    evaluation = Evaluation(
        window.data,
        rows,
        max_length=child.model.host.config.max_length,
        full=settings.get("protocol") == "full",
        seen=child.info.get("seen", False),
        seed=settings.get("seed", 0),
        limit=COMPARED_ROWS,
    )
    assert parent.bank is not None
    assert child.bank is not None
    measured = RECSYS.levels(None, evaluation, child.model, child.bank, (REFERENCE, ALONE))
    old = RECSYS.levels(None, evaluation, child.model, parent.bank, (ALONE,))[ALONE]
    return bank.compared(RECSYS, measured, old, {ALONE: "deciding" if half == DECIDING else "window"})


def _reported(work: Workspace, window: Window | None, parent: Release, child: Release) -> bank.Compared:
    """The version on the new events of the users who did not decide; and its snapshot, by which any two versions are compared.

    The snapshot is taken on the test rows that the bundle was released with.
    """
    settings = child.info.get("settings")
    if settings is not None and work.prepared.exists():
        data = work.data(RECSYS)
        if data.digest == child.info.get("data_digest"):
            bank.on_test(RECSYS, RECSYS.problem(data, RecsysConfig.from_dict(settings)), child, None)
    return bank.Compared() if window is None else _on_half(window, parent, 1 - DECIDING, child)
