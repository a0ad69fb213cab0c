"""The windows of a replayed stream: consecutive stretches of the test events in time order.

Letters: E events, W windows, U distinct users of a window.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from persona.errors import ConfigError, DataError
from recsys.data.sequences import SequenceData
from recsys.evaluation import Evaluated, Evaluation, Scorer

DAY = 86_400

Int64Array = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Window:
    """One stretch of the stream.

    Attributes:
        index: 0, 1, ...
        positions: (E,) event positions, ascending.
        start: the time of its first event.
        evaluation: its rows with their negatives.
    """

    index: int
    positions: Int64Array
    start: int
    evaluation: Evaluation

    @cached_property
    def users(self) -> Int64Array:
        """(U,) the distinct users."""
        return np.unique(self.evaluation.users)

    def run(self, scorer: Scorer) -> Evaluated:
        """Score every event with what its device knew just before."""
        return self.evaluation.run(scorer)


def boundaries(times: Int64Array, count: int, days: float | None = None) -> Int64Array:
    """The times at which windows begin: ``count`` windows of about equally many events, or windows of so many days.

    Events of one time stay in one window, so there may be fewer than ``count``.

    Args:
        times: (E,) of the events.
        count: of windows, at least two.
        days: length of a window of the calendar, from the first event on; ``count`` is then ignored.

    Raises:
        ConfigError: fewer than two windows are asked for, or a length that is not positive.
        DataError: all events fall into one window.
    """
    ordered = np.sort(times)
    if days is None:
        if count < 2:
            raise ConfigError(f"{count} window(s) show no change over time: ask for at least 2")
        starts = ordered[(np.arange(count) * len(ordered)) // count]
    else:
        if days <= 0:
            raise ConfigError(f"a window of {days} days has no length: give a positive number of days")
        number = (ordered - ordered[0]) // int(days * DAY)
        starts = ordered[0] + np.unique(number) * int(days * DAY)
    starts = np.unique(starts)
    if len(starts) < 2:
        raise DataError("all events fall into one window: ask for more windows, or shorter ones")
    return np.asarray(starts, dtype=np.int64)


def cut(data: SequenceData, positions: Int64Array, starts: Int64Array, max_length: int, seed: int) -> list[Window]:
    """The windows of ``positions`` (E,) that begin at ``starts`` (W,); positions without a past are left out."""
    known = data.basket_start[positions] > data.offsets[data.user_of(positions)]
    positions = positions[known]
    part = np.searchsorted(starts, data.times[positions], side="right") - 1
    windows = []
    for index, start in enumerate(starts.tolist()):
        own = positions[part == index]
        if len(np.unique(data.user_of(own))) < 2:
            raise DataError(
                f"window {index} of the stream holds fewer than two users with a past: ask for fewer windows"
            )
        evaluation = Evaluation(data, own, max_length=max_length, seed=seed)
        windows.append(Window(index, own, start, evaluation))
    return windows
