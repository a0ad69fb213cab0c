"""Simple rivals without training: counts, co-visits, transitions, and a user's own history.

Under ``time`` they learn from the stream up to the moment of each answer (but ``popularity``, which knows what training
knew); where protocols leave out the last event of each user, from what training knew. What they choose, validation chooses.

Shapes: B rows, C candidates, V items.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from persona.methods import FLOAT_BYTES
from persona.training.objective import FitResult
from recsys.data.batches import Context
from recsys.evaluation import Scorer
from recsys.methods.problem import Problem, Trained
from recsys.methods.stream import Asked, Floats, Int64Array, Pairs, Stream, Sums

# Half-lives in events: of popularity as shares of the stream, of a user's own history.
SHARES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
OWN = (1.0, 4.0, 16.0, 64.0)
# Observations that the back-off to popularity is worth.
BACK_OFF = (1.0, 10.0, 100.0)
STEPS = (5.0, 10.0)  # events apart that make a co-visit
RECENT = 20  # latest items of a user that ask for their neighbours
LATEST = 500  # co-visits of one item that count
PAIR_BYTES = 2 * FLOAT_BYTES  # an item and a weight


class Rival(ABC):
    """Scores the catalogue for one row after another, by what the stream knew at its moment.

    Attributes:
        refresh_bytes: what a device needs to be up to date.
    """

    refresh_bytes = 0

    def __init__(self, stream: Stream) -> None:
        self.stream, self.data = stream, stream.data

    @abstractmethod
    def rows(self, positions: Int64Array, asked: Asked) -> Iterator[tuple[int, Floats]]:
        """Each row of ``positions`` (B,), in any order, with the scores of its items ``asked`` (B, C), or of all (V + 1,)."""

    def at(self, positions: Int64Array) -> Scorer:
        """What scores the contexts of ``positions`` (B,)."""
        return _Placed(self, positions)

    def history(self, position: int) -> NDArray[np.int32]:
        """All items of the user before the basket of ``position``, the latest first."""
        start = self.data.offsets[self.data.user_of(np.array([position]))[0]]
        return self.data.items[start : self.data.basket_start[position]][::-1]


@dataclass(frozen=True)
class _Placed:
    rival: Rival
    positions: Int64Array

    def score(self, context: Context, candidates: Tensor) -> Tensor:
        items = candidates.numpy()
        scores = np.empty(items.shape)
        for row, values in self.rival.rows(self.positions, items):
            scores[row] = values
        return torch.from_numpy(scores)

    def score_catalogue(self, context: Context) -> Tensor:
        scores = np.empty((len(self.positions), self.rival.data.n_items + 1))
        for row, values in self.rival.rows(self.positions, None):
            scores[row] = values
        scores[:, 0] = -np.inf
        return torch.from_numpy(scores)


class Popularity(Rival):
    """Decayed counts of the stream."""

    def __init__(self, stream: Stream, half_life: float = np.inf) -> None:
        super().__init__(stream)
        self.half_life = half_life
        if stream.live:
            self.refresh_bytes = FLOAT_BYTES * self.data.n_items

    def rows(self, positions: Int64Array, asked: Asked) -> Iterator[tuple[int, Floats]]:
        """As in ``Rival``."""
        return self.stream.counts(self.stream.before(positions), asked, self.half_life)


class ItemKNN(Rival):
    """Cosine of co-visits, distance-weighted, summed over the user's latest items, the latest first.

    An item's row of the matrix of co-visits is the sum over its latest pairs, which bounds the time of an answer.
    """

    def __init__(self, stream: Stream, steps: float) -> None:
        super().__init__(stream)
        self.pairs = Pairs(stream, int(steps), both=True)
        self.refresh_bytes = PAIR_BYTES * self.pairs.counting(LATEST)

    def rows(self, positions: Int64Array, asked: Asked) -> Iterator[tuple[int, Floats]]:
        """As in ``Rival``."""
        known, sums = self.stream.before(positions), Sums(self.data.n_items)
        for row, counts in self.stream.counts(known, asked):
            items = self.history(positions[row])[:RECENT]
            places, of = self.pairs.of(items, known[row], LATEST)
            weights = self.pairs.weights[places]
            norms = (1 + np.arange(len(items))) * np.sqrt(np.bincount(of, weights, len(items)))
            yield row, sums.of(self.pairs.targets[places], weights / norms[of], asked, row) / np.sqrt(counts + 1)


class Markov(Rival):
    """Share of transitions from the user's last item, backed off to shares of all events."""

    def __init__(self, following: Pairs, back_off: float) -> None:
        super().__init__(following.stream)
        self.following, self.back_off = following, back_off
        self.refresh_bytes = PAIR_BYTES * len(following.targets) + FLOAT_BYTES * self.data.n_items

    def rows(self, positions: Int64Array, asked: Asked) -> Iterator[tuple[int, Floats]]:
        """As in ``Rival``."""
        known, sums = self.stream.before(positions), Sums(self.data.n_items)
        for row, counts in self.stream.counts(known, asked):
            share = (counts + 0.5) / (known[row] + 0.5 * self.data.n_items)
            places, _ = self.following.of(self.history(positions[row])[:1], known[row], len(self.stream))
            follow = sums.of(self.following.targets[places], 1.0, asked, row)
            yield row, (follow + self.back_off * share) / (len(places) + self.back_off)


class Personal(Rival):
    """The user's own counts, decayed with each event; among items that they never had, counts of the stream."""

    def __init__(self, stream: Stream, half_life: float) -> None:
        super().__init__(stream)
        self.half_life = half_life

    def rows(self, positions: Int64Array, asked: Asked) -> Iterator[tuple[int, Floats]]:
        """As in ``Rival``."""
        sums = Sums(self.data.n_items)
        for row, counts in self.stream.counts(self.stream.before(positions), asked):
            past = self.history(positions[row])
            own = sums.of(past, np.exp2(-np.arange(len(past)) / self.half_life), asked, row)
            yield row, own + 1e-6 * counts / (1 + len(self.stream))


def train_popularity(problem: Problem) -> Trained:
    """All-time counts of what training knew; they go out with the release, and nothing is refreshed."""
    return _best(problem, "", (np.inf,), partial(Popularity, Stream(problem.data, _known(problem), live=False)))


def train_popularity_recent(problem: Problem) -> Trained:
    """Decayed counts of the events before each answer; a refresh sends the count of every item."""
    # Without a time that all users share, every event is as recent as any other.
    stream = Stream(problem.data, _learnable(problem), live=not problem.data.ordered_only)
    return _best(problem, "half_life", [share * len(stream) for share in SHARES], partial(Popularity, stream))


def train_item_knn(problem: Problem) -> Trained:
    """Items that were near the user's latest ones in anybody's history; a refresh sends all co-visits that count."""
    return _best(problem, "steps", STEPS, partial(ItemKNN, _stream(problem)))


def train_markov(problem: Problem) -> Trained:
    """What followed the user's last item in anybody's history; a refresh sends all transitions and counts."""
    return _best(problem, "back_off", BACK_OFF, partial(Markov, Pairs(_stream(problem), 1, both=False)))


def train_personal(problem: Problem) -> Trained:
    """What the user had before, which the device knows itself: nothing travels."""
    return _best(problem, "half_life", OWN, partial(Personal, _stream(problem)))


def _best(problem: Problem, name: str, values: Sequence[float], make: Callable[[float], Rival]) -> Trained:
    """The rival whose setting ``name``, of ``values``, validates best; where there is no choice, the only one."""
    started = time.perf_counter()
    made = {value: make(value) for value in values}
    scores = {value: problem.score(rival) for value, rival in made.items()}
    best = max(scores, key=lambda value: scores[value])
    result = FitResult(best_value=scores[best], seconds=time.perf_counter() - started)
    return Trained(made[best], made[best].refresh_bytes, result, chosen={name: best} if len(values) > 1 else {})


def _stream(problem: Problem) -> Stream:
    """The stream under ``time``; else all that training knew, without a moment."""
    return Stream(problem.data, _learnable(problem), live=problem.config.protocol == "time")


def _learnable(problem: Problem) -> NDArray[np.bool_]:
    """(N,) bool: every event under ``time``, where an answer learns the earlier ones; else what training knew."""
    everything = np.ones(problem.data.n_events, dtype=bool)
    return everything if problem.config.protocol == "time" else _known(problem)


def _known(problem: Problem) -> NDArray[np.bool_]:
    """(N,) bool: the rows of training, and what their contexts showed."""
    last = np.full(problem.data.n_users, -1)
    np.maximum.at(last, problem.data.user_of(problem.everything), problem.everything)
    positions = np.arange(problem.data.n_events)
    return positions <= last[problem.data.user_of(positions)]
