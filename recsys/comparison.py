"""Methods measured on the same rows and negatives, and their differences with intervals over users.

A measured method is two files, so that a comparison that was interrupted goes on where it stopped:

    <folder>/<method>.json       summary, cost, training
    <folder>/<method>.parquet    one row a test user, one column a metric
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from persona.errors import ConfigError, DataError, nearest
from persona.statistics import SeedsInterval, paired_bootstrap_over_seeds
from persona.storage import atomic_file, read_json, write_json
from recsys.baselines import Problem, train_method
from recsys.columns import USER
from recsys.evaluation import Evaluated

REFERENCE = "host"


@dataclass(frozen=True)
class Measured:
    """One method on the test rows of one problem.

    Attributes:
        method: its name.
        summary: one number a metric.
        per_user: (U,) values a metric, aligned with ``users``.
        users: (U,) user indices.
        seconds: wall time of its own training.
        refresh_bytes: what a device receives when the method adapts it once.
        epochs: epochs trained, of its own trainings.
        best_epoch: the epoch whose weights were kept; -1 if none beat the start.
        history: metrics of each epoch.
    """

    method: str
    summary: dict[str, float]
    per_user: dict[str, NDArray[np.float64]]
    users: NDArray[np.int64]
    seconds: float
    refresh_bytes: int
    epochs: int
    best_epoch: int
    history: list[dict[str, float]]

    def save(self, folder: Path) -> None:
        """Write the two files; the JSON comes last and says that the method is done."""
        values = {k: v for k, v in asdict(self).items() if k not in ("per_user", "users")}
        with atomic_file(folder / f"{self.method}.parquet") as path:
            pl.DataFrame({USER: self.users, **self.per_user}).write_parquet(path)
        write_json(folder / f"{self.method}.json", values)

    @classmethod
    def load(cls, folder: Path, method: str) -> Measured:
        """Read what ``save`` wrote.

        Raises:
            DataError: the method was not measured there.
        """
        if not (folder / f"{method}.json").exists():
            raise DataError(f"{folder} has no result of {method!r}: run the evaluation of this method first")
        table = pl.read_parquet(folder / f"{method}.parquet")
        per_user = {name: table[name].to_numpy() for name in table.columns if name != USER}
        return cls(per_user=per_user, users=table[USER].to_numpy(), **read_json(folder / f"{method}.json"))


def measure(problem: Problem, method: str) -> Measured:
    """Train and test one method, or take the result that is already in the problem's folder."""
    work = problem.folder_of(method)
    folder = None if work is None else work / "results"
    if folder is not None and (folder / f"{method}.json").exists():
        return Measured.load(folder, method)
    trained = train_method(method, problem)
    evaluated: Evaluated = problem.test.run(trained.scorer)
    measured = Measured(
        method=method,
        summary=evaluated.summary,
        per_user=evaluated.per_user,
        users=evaluated.users,
        seconds=trained.seconds,
        refresh_bytes=trained.refresh_bytes,
        epochs=trained.result.epochs,
        best_epoch=trained.result.best_epoch,
        history=trained.result.history,
    )
    if folder is not None:
        measured.save(folder)
    return measured


@dataclass(frozen=True)
class Row:
    """A method in a comparison: its metrics averaged over seeds, and their differences to the reference.

    Attributes:
        method: its name.
        metrics: mean over seeds.
        differences: to the reference, with intervals over users; empty for the reference itself.
        seconds: mean training time.
        refresh_bytes: bytes a device receives per refresh.
    """

    method: str
    metrics: dict[str, float]
    differences: dict[str, SeedsInterval]
    seconds: float
    refresh_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"differences": {name: d.as_dict() for name, d in self.differences.items()}}


def compare(seeds: Sequence[Mapping[str, Measured]], reference: str = REFERENCE) -> list[Row]:
    """Compare methods over seeds.

    Args:
        seeds: for every seed, the methods by name; all seeds have the same methods and test users.
        reference: the method that the others are compared with.

    Raises:
        ConfigError: the reference is not among the methods.
        DataError: seeds have different methods or test users.
    """
    methods = list(seeds[0])
    if reference not in methods:
        raise ConfigError(f"the reference {reference!r} was not measured: {nearest(reference, methods)}")
    if any(list(seed) != methods for seed in seeds):
        raise DataError("the seeds were measured with different methods: evaluate all of them with the same methods")
    return [_row([seed[name] for seed in seeds], [seed[reference] for seed in seeds]) for name in methods]


def _row(measured: list[Measured], reference: list[Measured]) -> Row:
    own = measured[0]
    differences = {}
    if own.method != reference[0].method:
        for metric in own.per_user:
            pairs = zip(measured, reference, strict=True)
            differences[metric] = paired_bootstrap_over_seeds([_difference(a, b, metric) for a, b in pairs])
    return Row(
        method=own.method,
        metrics={k: float(np.mean([m.summary[k] for m in measured])) for k in own.summary},
        differences=differences,
        seconds=float(np.mean([m.seconds for m in measured])),
        refresh_bytes=own.refresh_bytes,
    )


def _difference(a: Measured, b: Measured, metric: str) -> NDArray[np.float64]:
    if not np.array_equal(a.users, b.users):
        raise DataError(f"{a.method} and {b.method} were tested on different users: evaluate both again")
    return a.per_user[metric] - b.per_user[metric]
