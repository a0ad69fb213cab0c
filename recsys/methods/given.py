"""Scores that others computed: a file with one row a user, event and item, judged like any method; and the rows to be scored.

A file, CSV or Parquet, has the columns

    user, item    ids as in the log
    position      index of the event among all events of its user in the prepared log, from 0 in the order of time; or
    time          whole seconds since 1970 (or the order, where the log has no other time): all events of the user at that time
    score         higher is better

A candidate without a score stands below all that have one.

Shapes: M scores, B rows, C candidates, V items.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from persona import methods
from persona.comparison import Measured
from persona.errors import ConfigError, DataError
from recsys.data.batches import Context
from recsys.data.ids import canonical_texts
from recsys.data.sequences import SequenceData
from recsys.evaluation import Evaluation, Scorer
from recsys.methods.problem import Problem, Trained

Int64Array = NDArray[np.int64]


@dataclass(frozen=True)
class Given:
    """Scores of the items of some events.

    Attributes:
        keys: (M,) event times V + 1 plus item, ascending.
        scores: (M,) aligned with them.
        items: V.
    """

    keys: Int64Array
    scores: NDArray[np.float64]
    items: int

    def at(self, positions: Int64Array) -> Scorer:
        """What scores the contexts of ``positions`` (B,)."""
        return _Placed(self, positions)


@dataclass(frozen=True)
class _Placed:
    given: Given
    positions: Int64Array

    def score(self, context: Context, candidates: Tensor) -> Tensor:
        """As in ``Scorer``."""
        given = self.given
        wanted = self.positions[:, None] * (given.items + 1) + candidates.numpy()
        places = np.minimum(np.searchsorted(given.keys, wanted), len(given.keys) - 1)
        missing = given.scores.min() - 1
        return torch.from_numpy(np.where(given.keys[places] == wanted, given.scores[places], missing))

    def score_catalogue(self, context: Context) -> Tensor:
        """As in ``Scorer``."""
        every = torch.arange(self.given.items + 1).expand(len(self.positions), -1)
        scores = self.score(context, every)
        scores[:, 0] = -torch.inf
        return scores


def measure_given(problem: Problem, path: Path) -> Measured:
    """The scores of a file as the method that is called like it."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return methods.measure(problem, path.stem, {path.stem: partial(_trained, path)}, {"scores": digest})


def _trained(path: Path, problem: Problem) -> Trained:
    given = read_scores(path, problem.data)
    if not np.isin(np.unique(given.keys // (given.items + 1)), problem.split.test).any():
        raise DataError(
            f"--scores {path}: none of its events is tested under protocol {problem.config.protocol}: see those that are with "
            "--rows-out rows.parquet"
        )
    return Trained(given)


def read_scores(path: Path, data: SequenceData) -> Given:
    """The scores of a file for the events and items of ``data``.

    Raises:
        ConfigError: the file cannot be read, or lacks a column.
        DataError: a user, item or event is not in the data, a score is no number, or an item is scored twice.
    """
    frame = _read(path)
    users = _numbers(frame, "user", data.user_index, path)
    items = _numbers(frame, "item", data.item_index, path)
    scores = _cast(frame, "score", pl.Float64, path).to_numpy()
    if not np.isfinite(scores).all():
        raise DataError(f"--scores {path}: row {int((~np.isfinite(scores)).argmax())} has a score that is not finite")
    rows, positions = (_by_position if "position" in frame.columns else _by_time)(frame, users, data, path)
    keys = positions * (data.n_items + 1) + items[rows]
    order = np.argsort(keys, kind="stable")
    keys, rows = keys[order], rows[order]
    if (twice := np.flatnonzero(keys[1:] == keys[:-1])).size:
        raise DataError(f"--scores {path}: row {rows[twice[0] + 1]} scores an item of an event again: give each once")
    return Given(keys, scores[rows], data.n_items)


def _read(path: Path) -> pl.DataFrame:
    try:
        frame = pl.read_parquet(path) if path.suffix == ".parquet" else pl.read_csv(path, infer_schema=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ConfigError(f"--scores {path} cannot be read ({error}): give a CSV or Parquet file") from error
    lacking = [name for name in ("user", "item", "score") if name not in frame.columns]
    if not {"position", "time"} & set(frame.columns):
        lacking.append("position")
    if lacking or frame.is_empty():
        raise ConfigError(
            f"--scores {path} has no {'row' if frame.is_empty() else f'column {lacking[0]!r}'}: give user, position (or time), item "
            "and score"
        )
    return frame


def _cast(frame: pl.DataFrame, name: str, kind: type[pl.DataType], path: Path) -> pl.Series:
    found = frame[name].cast(kind, strict=False)
    if found.null_count():
        row = int(found.is_null().arg_max() or 0)
        raise DataError(f"--scores {path}: row {row} has no number in column {name!r}, but {frame[name][row]!r}")
    return found


def _numbers(frame: pl.DataFrame, name: str, index: dict[str, int], path: Path) -> Int64Array:
    """(M,) the index of the user or item of each row."""
    texts = canonical_texts(frame[name])
    distinct = texts.unique()
    found = texts.replace_strict(distinct, [index.get(text, -1) for text in distinct.to_list()], return_dtype=pl.Int64)
    numbers = found.to_numpy()
    if (unknown := np.flatnonzero(numbers < 0)).size:
        raise DataError(
            f"--scores {path}: row {unknown[0]} has the {name} {texts[int(unknown[0])]!r}, which the log lacks"
        )
    return numbers


def _by_position(
    frame: pl.DataFrame, users: Int64Array, data: SequenceData, path: Path
) -> tuple[Int64Array, Int64Array]:
    within = _cast(frame, "position", pl.Int64, path).to_numpy()
    outside = (within < 0) | (within >= (data.offsets[users + 1] - data.offsets[users]))
    if outside.any():
        row = int(outside.argmax())
        count = data.offsets[users[row] + 1] - data.offsets[users[row]]
        raise DataError(
            f"--scores {path}: row {row} has position {within[row]}, but its user has {count} events, from 0"
        )
    return np.arange(len(users)), data.offsets[users] + within


def _by_time(frame: pl.DataFrame, users: Int64Array, data: SequenceData, path: Path) -> tuple[Int64Array, Int64Array]:
    """Each row once for every event of its user at its time."""
    asked = pl.DataFrame({"user": users, "time": _cast(frame, "time", pl.Int64, path)}).with_row_index("row")
    events = pl.DataFrame({"user": data.user_of(np.arange(data.n_events)), "time": data.times}).with_row_index("event")
    found = asked.join(events, on=["user", "time"], how="left", maintain_order="left")
    if found["event"].null_count():
        row = int(found.filter(pl.col("event").is_null())["row"][0])
        raise DataError(f"--scores {path}: row {row} has the time {asked['time'][row]}, at which its user has no event")
    return found["row"].to_numpy().astype(np.int64), found["event"].to_numpy().astype(np.int64)


def rows_to_score(problems: Sequence[Problem]) -> pl.DataFrame:
    """The test rows of one protocol, a problem a seed, for others to score.

    Returns:
        ``user``, ``position`` and ``time`` of each event; ``context``, the ids that the hosts read, oldest first;
        ``candidates``, the ids that are ranked against each other, the target among them, in the order of the catalogue;
        ``catalogue``, whether all items are ranked as well, of which those without a score come last.
    """
    tests: list[Evaluation] = []
    for problem in problems:
        with problem.reporting():
            tests.append(problem.test)
    first, data = tests[0], problems[0].data
    whole = first if first.full else first.alongside.get("full")
    sampled = [e for test in tests for e in (test, *test.alongside.values()) if not e.full]
    users = data.user_of(first.positions)
    ids = np.array(data.item_ids.to_list(), dtype=object)
    drawn = np.concatenate([e.candidates.numpy() for e in sampled], axis=1) if sampled else None
    contexts = zip(first.contexts.items.tolist(), first.contexts.lengths.tolist(), strict=True)
    return pl.DataFrame(
        {
            "user": data.user_ids.gather(users),
            "position": first.positions - data.offsets[users],
            "time": data.times[first.positions],
            "context": [ids[np.array(items[:length], int) - 1].tolist() for items, length in contexts],
            "candidates": [[]] * len(users) if drawn is None else [ids[np.unique(row) - 1].tolist() for row in drawn],
            "catalogue": np.isin(first.positions, [] if whole is None else whole.positions),
        },
        schema_overrides={"context": pl.List(pl.String), "candidates": pl.List(pl.String)},
    )
