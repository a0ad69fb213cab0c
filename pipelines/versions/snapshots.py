"""What a version leaves in its run so that it can be compared with any other: values per unit, and what it answered.

    snapshot/snapshot.json     what a unit is, the protocol, the test rows
    snapshot/units.parquet     a row a user or device: segment, prototype, metrics
    snapshot/answers.parquet   ranked answers to a few inputs, in words that people read

Two versions measured on the same rows (``rows`` is their digest) are compared unit by unit, so that differences have intervals.
The module knows no task: a unit is whoever is personalised for, an answer whatever is ranked for them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import ArrayLike

from persona.errors import DataError, FormatError
from persona.storage import digest_json, read_json, write_json

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from persona.comparison import Measured
    from persona.task import Task

FORMAT_VERSION = 1
FOLDER = "snapshot"
SEGMENT_TABLE = "tables/segments.json"
UNIT, SEGMENT, PROTOTYPE = "unit", "segment", "prototype"
INPUT, RANK, ITEM, TITLE = "input", "rank", "item", "title"
ANSWERS = {UNIT: pl.String, INPUT: pl.String, RANK: pl.Int64, ITEM: pl.String, TITLE: pl.String}
ACTIVITY = ("new", "light", "medium", "heavy")
# Metrics by their last name of which less is better; of all others, more is.
LESS_IS_BETTER = frozenset({"logloss", "loss", "error", "brier", "ece", "seconds", "latency"})


@dataclass(frozen=True)
class Snapshot:
    """One version, measured.

    Attributes:
        kind: what a unit is, for example ``user`` or ``device``.
        protocol: how it was tested; the first part of every metric's name.
        rows: digest of the test rows; versions with the same digest are compared unit by unit.
        units: columns ``unit``, ``segment``, ``prototype`` (null without a bank), and one a metric.
        answers: columns ``unit``, ``input``, ``rank``, ``item``, ``title``; empty where nothing is ranked.
        summary: the metrics over all units, as the protocol defines them.

    Raises:
        DataError: a column is missing, or a unit occurs twice.
    """

    kind: str
    protocol: str
    rows: str
    units: pl.DataFrame
    answers: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=ANSWERS))
    summary: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        missing = {UNIT, SEGMENT, PROTOTYPE} - set(self.units.columns) or set(ANSWERS) - set(self.answers.columns)
        if missing:
            raise DataError(
                f"a snapshot lacks the columns {', '.join(sorted(missing))}: make it with `snapshots.from_columns`"
            )
        if self.units[UNIT].is_duplicated().any():
            raise DataError(f"a {self.kind} occurs twice among the units of a snapshot: give each a row of its own")

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics that every unit has."""
        return [name for name in self.units.columns if name not in (UNIT, SEGMENT, PROTOTYPE)]

    @property
    def segments(self) -> list[str]:
        """Names of the segments, those of activity in their order."""
        found = set(self.units[SEGMENT].drop_nulls().to_list())
        return [name for name in ACTIVITY if name in found] + sorted(found - set(ACTIVITY))

    def by_segment(self) -> list[dict[str, Any]]:
        """A row a segment: ``segment``, the mean of every metric over its units, and how many they are."""
        rows = []
        for segment in self.segments:
            own = self.units.filter(pl.col(SEGMENT) == segment)
            means = {metric: float(own[metric].mean()) for metric in self.metrics}  # type: ignore[arg-type]
            rows.append({SEGMENT: segment, **means, f"{self.kind}s": len(own)})
        return rows


def from_columns(
    kind: str,
    protocol: str,
    rows: str,
    *,
    units: Sequence[str],
    metrics: Mapping[str, ArrayLike],
    segments: Sequence[str],
    prototypes: Sequence[int] | None = None,
    answers: Sequence[Mapping[str, Any]] = (),
    summary: Mapping[str, float] | None = None,
) -> Snapshot:
    """A snapshot from plain columns.

    Args:
        kind: what a unit is.
        protocol: see ``Snapshot``.
        rows: see ``Snapshot``.
        units: (U,) names.
        metrics: (U,) values a metric, finite.
        segments: (U,) names, for example of ``activity_segments``.
        prototypes: (U,) the prototype that each unit was given.
        answers: rows with ``unit``, ``input``, ``rank``, ``item`` and ``title``.
        summary: metrics over all units; the means over units by default.

    Raises:
        DataError: columns of different lengths, or a unit twice.
    """
    columns: dict[str, Any] = {UNIT: list(units), SEGMENT: list(segments), PROTOTYPE: prototypes or [None] * len(units)}
    values = {name: np.asarray(column, dtype=np.float64) for name, column in metrics.items()}
    if len({len(column) for column in (*columns.values(), *values.values())}) > 1:
        raise DataError(f"the columns of a snapshot of {len(units)} {kind}s differ in length: give one value a {kind}")
    frame = pl.DataFrame({**columns, **values}).with_columns(
        pl.col(UNIT).cast(pl.String), pl.col(PROTOTYPE).cast(pl.Int64)
    )
    shown = pl.DataFrame(list(answers), schema=ANSWERS)
    means = {name: float(column.mean()) for name, column in values.items()}
    return Snapshot(kind, protocol, rows, frame, shown, dict(summary or means))


def activity_segments(counts: ArrayLike) -> list[str]:
    """``new``, of whom nothing is known, and a third of all others each: ``light``, ``medium``, ``heavy``.

    Units with equal counts are in one segment, so that thirds are only as equal as the counts allow.

    Args:
        counts: (U,) events or images of every unit.
    """
    values = np.asarray(counts, dtype=np.float64)
    known = values[values > 0]
    low, high = np.quantile(known, [1 / 3, 2 / 3]) if len(known) else (0.0, 0.0)
    return [ACTIVITY[int(value > 0) and 1 + int(value > low) + int(value > high)] for value in values]


def less_is_better(metric: str) -> bool:
    """Whether a metric, by its whole name, is the better the less it is."""
    return metric.rpartition("/")[2] in LESS_IS_BETTER


def segment_metrics(snapshot: Snapshot) -> dict[str, float]:
    """Metrics by segment as MLflow's pages compare them: ``time/light/ndcg_10`` beside ``time/ndcg_10``."""
    return {
        f"{metric.rpartition('/')[0] or snapshot.protocol}/{row[SEGMENT]}/{metric.rpartition('/')[2]}": row[metric]
        for row in snapshot.by_segment()
        for metric in snapshot.metrics
    }


def of_release(task: Task, problem: Any, measured: Mapping[str, Measured], release: Any, level: str) -> Snapshot:
    """The snapshot of a version on the test part of its problem, which is read here.

    Args:
        task: of the problem.
        problem: with the test part.
        measured: what the version achieved there, by labels that are put behind the protocol in the names of metrics.
        release: the version.
        level: at which it answers.
    """
    seen = task.observe(problem, measured, release, level)
    columns = (UNIT, INPUT, RANK, ITEM, TITLE)
    return from_columns(
        task.unit,
        problem.config.protocol,
        digest_json(seen.rows),
        units=seen.units,
        metrics=seen.metrics,
        segments=activity_segments(seen.known) if seen.groups is None else seen.groups,
        prototypes=seen.prototypes,
        answers=[dict(zip(columns, answer, strict=True)) for answer in seen.answers],
    )


def log(snapshot: Snapshot) -> None:
    """Leave a snapshot in the active run: its files, its metrics by segment, and a table for MLflow's artifact comparison."""
    import mlflow

    from pipelines import tracking

    run = mlflow.active_run()
    assert run is not None, "a snapshot is logged inside a run"
    with tempfile.TemporaryDirectory() as temporary:
        write(snapshot, Path(temporary) / FOLDER)
        mlflow.MlflowClient().log_artifacts(run.info.run_id, temporary)
    tracking.log_metrics_batch(segment_metrics(snapshot))
    tracking.log_table(snapshot.by_segment(), SEGMENT_TABLE)


def write(snapshot: Snapshot, folder: Path) -> None:
    """Write the files of a snapshot."""
    folder.mkdir(parents=True, exist_ok=True)
    snapshot.units.write_parquet(folder / "units.parquet")
    snapshot.answers.write_parquet(folder / "answers.parquet")
    header = {"format": FOLDER, "format_version": FORMAT_VERSION, "kind": snapshot.kind, "protocol": snapshot.protocol}
    write_json(folder / "snapshot.json", {**header, "rows": snapshot.rows, "summary": dict(snapshot.summary)})


def read(folder: Path) -> Snapshot:
    """Read what ``write`` wrote.

    Raises:
        FormatError: a file is missing, damaged, or of another release.
    """
    header = read_json(folder / "snapshot.json")
    if not isinstance(header, dict) or (header.get("format"), header.get("format_version")) != (FOLDER, FORMAT_VERSION):
        raise FormatError(f"{folder} is no snapshot of format {FORMAT_VERSION}: release the version again")
    try:
        units = pl.read_parquet(folder / "units.parquet")
        answers = pl.read_parquet(folder / "answers.parquet")
        return Snapshot(header["kind"], header["protocol"], header["rows"], units, answers, header["summary"])
    except (OSError, KeyError, pl.exceptions.PolarsError) as error:
        raise FormatError(f"the snapshot in {folder} is damaged ({error}): release the version again") from error


def of_run(client: MlflowClient, run_id: str) -> Snapshot | None:
    """The snapshot that a run left of its version; None if there is none."""
    if not run_id or not any(file.path == FOLDER for file in client.list_artifacts(run_id)):
        return None
    with tempfile.TemporaryDirectory() as temporary:
        return read(Path(client.download_artifacts(run_id, FOLDER, temporary)))
