"""Progress of trainings, as the commands of both tasks show it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from pipelines import console

OnEpoch = Callable[[str, dict[str, float]], None]
Notify = Callable[[str, str, dict[str, float] | None], None]


@contextmanager
def trainings(monitor: str, epochs_of: Callable[[str], int]) -> Iterator[OnEpoch]:
    """A bar for every training of a step, host or editor; early stopping ends it before its end.

    Args:
        monitor: metric shown beside the bar.
        epochs_of: at most how many epochs a training of this name takes.
    """
    bars: dict[str, Any] = {}
    shown: dict[str, float] = {}
    told = time.monotonic()  # of the first epoch of a training it is the start, for a bar appears when that is over
    with ExitStack() as stack:

        def on_epoch(training: str, metrics: dict[str, float]) -> None:
            nonlocal told
            if training not in bars:
                stack.close()
                bar = console.progress(training, epochs_of(training), started=told, at_most=True)
                bars[training] = stack.enter_context(bar)
            told = time.monotonic()
            # A training that several parts of a step ask for tells its epochs to each of them.
            if metrics["epoch"] >= shown.get(training, 0):
                shown[training] = metrics["epoch"] + 1
                bars[training](note=f"{monitor} {metrics[monitor]:.4f}")

        yield on_epoch


def methods(advance: console.Advance, monitor: str, quick: Collection[str] = ()) -> Notify:
    """Progress of methods, one after another or in several cells at once, as a note beside the bar.

    Those that are ``quick`` are no steps of it: in the time of a training many of them are done.
    """

    def show(cell: str, training: str, metrics: dict[str, float] | None) -> None:
        if metrics is None:
            advance(int(training not in quick), f"{cell}: {training} done")
        else:
            # Where the whole catalogue is ranked another metric selects epochs.
            shown = f", {monitor} {metrics[monitor]:.4f}" if monitor in metrics else ""
            advance(0, f"{cell}: {training}, epoch {metrics['epoch']:.0f}{shown}")

    return show
