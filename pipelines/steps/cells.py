"""Cells: one protocol, host and seed each. Several are worked on at once, each in a process of its own.

A cell leaves its checkpoints and results in the workspace; a process that was killed is simply started again.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty
from typing import Any

from persona import runtime
from persona.comparison import Measured
from persona.task import Task, found_at

POLL_SECONDS = 0.5

# A remark on what is being done (cell, training, metrics of its last epoch); ``None`` metrics: a method is done.
Notify = Callable[[str, str, dict[str, float] | None], None]


@dataclass(frozen=True)
class Cell:
    """What one process works on.

    Attributes:
        config: settings of one protocol, host and seed.
        methods: to be measured.
        prepared: where the data is.
        folder: where trainings leave their checkpoints and results.
    """

    config: Any
    methods: tuple[str, ...]
    prepared: Path
    folder: Path

    @property
    def name(self) -> str:
        """For progress and logs."""
        return f"{self.config.protocol} {self.config.host} seed {self.config.seed}"


def cells_of(
    config: Any, protocols: Sequence[str], seeds: int, methods: Sequence[str], prepared: Path, folder: Path
) -> list[Cell]:
    """The cells of a comparison; seeds count up from the one of ``config``."""
    return [
        Cell(replace(config.under_protocol(protocol), seed=config.seed + i), tuple(methods), prepared, folder)
        for protocol in protocols
        for i in range(seeds)
    ]


def measure_cells(task: Task, cells: Sequence[Cell], jobs: int, notify: Notify) -> list[dict[str, Measured]]:
    """Measure every method of every cell, ``jobs`` cells at a time.

    Args:
        task: of all cells.
        cells: what to measure.
        jobs: processes at the same time; a process finds its task again by name.
        notify: called after each epoch and each method.

    Returns:
        For each cell, in order, its methods by name.
    """
    if jobs <= 1 or len(cells) <= 1:
        return [_measure(task, cell, notify) for cell in cells]
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        notes = manager.Queue()
        with ProcessPoolExecutor(min(jobs, len(cells)), context, initializer=runtime.configure) as pool:
            futures = [pool.submit(_measure_quietly, task.place, cell, notes) for cell in cells]
            try:
                _relay(futures, notes, notify)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            return [future.result() for future in futures]


def _measure(task: Task, cell: Cell, notify: Notify) -> dict[str, Measured]:
    def on_epoch(training: str, metrics: dict[str, float]) -> None:
        notify(cell.name, training, metrics)

    problem = task.problem(task.load(cell.prepared), cell.config, folder=cell.folder, on_epoch=on_epoch)
    measured = {}
    for method in cell.methods:
        found = task.measure(problem, method)
        measured[found.method] = found
        notify(cell.name, found.method, None)
    return measured


def _measure_quietly(place: str, cell: Cell, notes: Any) -> dict[str, Measured]:
    return _measure(found_at(place), cell, lambda *note: notes.put(note))


def _relay(futures: Sequence[Future[dict[str, Measured]]], notes: Any, notify: Notify) -> None:
    """Pass notes on until all cells are done; the first failure ends it."""
    waiting = set(futures)
    while waiting or not notes.empty():
        with suppress(Empty):
            notify(*notes.get(timeout=POLL_SECONDS))
        for future in [future for future in waiting if future.done()]:
            future.result()
            waiting.remove(future)
