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
from pipelines.steps.workspace import under_protocol
from recsys.config import RecsysConfig

POLL_SECONDS = 0.5

# A remark on what is being done (cell, training, metrics of its last epoch); ``None`` metrics: a method is done.
Notify = Callable[[str, str, dict[str, float] | None], None]


@dataclass(frozen=True)
class Cell:
    """What one process works on."""

    config: RecsysConfig
    methods: tuple[str, ...]
    prepared: Path
    folder: Path

    @property
    def name(self) -> str:
        """For progress and logs."""
        return f"{self.config.protocol} {self.config.host} seed {self.config.seed}"


def cells_of(
    config: RecsysConfig, protocols: Sequence[str], seeds: int, methods: Sequence[str], prepared: Path, folder: Path
) -> list[Cell]:
    """The cells of a comparison; seeds count up from the one of ``config``."""
    return [
        Cell(replace(under_protocol(config, protocol), seed=config.seed + i), tuple(methods), prepared, folder)
        for protocol in protocols
        for i in range(seeds)
    ]


def measure_cells(cells: Sequence[Cell], jobs: int, notify: Notify) -> list[dict[str, Measured]]:
    """Measure every method of every cell, ``jobs`` cells at a time.

    Returns:
        For each cell, in order, its methods by name.
    """
    if jobs <= 1 or len(cells) <= 1:
        return [_measure(cell, notify) for cell in cells]
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        notes = manager.Queue()
        with ProcessPoolExecutor(min(jobs, len(cells)), context, initializer=runtime.configure) as pool:
            futures = [pool.submit(_measure_quietly, cell, notes) for cell in cells]
            try:
                _relay(futures, notes, notify)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            return [future.result() for future in futures]


def _measure(cell: Cell, notify: Notify) -> dict[str, Measured]:
    from recsys.data.sequences import SequenceData
    from recsys.methods import Problem, measure

    def on_epoch(training: str, metrics: dict[str, float]) -> None:
        notify(cell.name, training, metrics)

    problem = Problem(SequenceData.load(cell.prepared), cell.config, folder=cell.folder, on_epoch=on_epoch)
    measured = {}
    for method in cell.methods:
        measured[method] = measure(problem, method)
        notify(cell.name, method, None)
    return measured


def _measure_quietly(cell: Cell, notes: Any) -> dict[str, Measured]:
    return _measure(cell, lambda *note: notes.put(note))


def _relay(futures: Sequence[Future[dict[str, Measured]]], notes: Any, notify: Notify) -> None:
    """Pass notes on until all cells are done; the first failure ends it."""
    waiting = set(futures)
    while waiting or not notes.empty():
        with suppress(Empty):
            notify(*notes.get(timeout=POLL_SECONDS))
        for future in [future for future in waiting if future.done()]:
            future.result()
            waiting.remove(future)
