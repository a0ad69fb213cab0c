"""The step ``evaluate`` of any task: methods side by side, kept and logged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from persona.bootstrap import SeedsInterval
from persona.comparison import REFERENCE, Measured, Row, compare, differences, with_host
from persona.errors import ConfigError
from persona.plugins import function, is_place
from persona.storage import atomic_file, write_json
from persona.task import SCORES, Task
from pipelines import tracking
from pipelines.steps import cells
from pipelines.steps.workspace import Workspace
from pipelines.tracking import figures


@dataclass(frozen=True)
class Comparison:
    """Methods on the same test rows under one protocol, over seeds.

    Attributes:
        protocol: under which they were tested.
        settings: of the first seed.
        seeds: how many.
        unit: what metrics are averaged over, ``users`` or ``devices``.
        units: how many of these.
        headlines: metrics that tables and figures show.
        rows: one a method, the host among them.
        measured: what every method achieved, seed by seed.
    """

    protocol: str
    settings: dict[str, Any]
    seeds: int
    unit: str
    units: int
    headlines: tuple[str, ...]
    rows: list[Row]
    measured: list[dict[str, Measured]]

    @classmethod
    def of_seeds(
        cls,
        measured: list[dict[str, Measured]],
        *,
        protocol: str,
        settings: dict[str, Any],
        unit: str,
        headlines: tuple[str, ...],
    ) -> Self:
        """The comparison of methods measured seed by seed.

        Raises:
            DataError: the seeds do not fit together, as in ``compare``.
        """
        rows = compare(measured)
        return cls(
            protocol, settings, len(measured), unit, len(measured[0][REFERENCE].units), headlines, rows, measured
        )

    def of(self, method: str) -> list[Measured]:
        """What one method achieved, seed by seed."""
        return [seed[method] for seed in self.measured]

    def against(self, method: str) -> list[Row]:
        """The methods with their differences to ``method`` instead of the host.

        Raises:
            ConfigError: it is not among them.
        """
        return compare(self.measured, method)

    def between(self, method: str, other: str) -> dict[str, SeedsInterval]:
        """For each metric ``method`` minus ``other``, with the interval over units."""
        return differences(self.of(method), self.of(other))

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; values per unit stay in the workspace."""
        names = ("protocol", "settings", "seeds", "headlines")
        own = {name: getattr(self, name) for name in names}
        return own | {self.unit: self.units, "rows": [row.as_dict() for row in self.rows]}

    def log(self) -> None:
        """Leave a run a method, the whole as JSON, and figures of differences and learning curves in the active run."""
        first, seed = self.measured[0], self.settings["seed"]
        for row in self.rows:
            tags = {"method": row.method, "protocol": self.protocol}
            with tracking.run(f"{self.protocol} {row.method}", tags=tags):
                tracking.log_params({**tags, "host": self.settings["host"], "seeds": self.seeds})
                tracking.log_metrics_batch(row.logged(self.protocol))
                tracking.log_epochs(first[row.method].history, prefix=f"{self.protocol}/seed{seed}/")
        tracking.log_json(self.as_dict(), f"comparison/{self.protocol}.json")
        figure = figures.method_comparison(self.rows, self.headlines, self.protocol, self.seeds, self.unit)
        tracking.log_figure(figure, f"figures/comparison_{self.protocol}.png")
        histories = {name: measured.history for name, measured in first.items() if measured.history}
        curves = figures.learning_curves(histories, self.settings["monitor"], self.protocol)
        tracking.log_figure(curves, f"figures/learning_curves_{self.protocol}.png")


def chosen(task: Task, methods: Sequence[str], scores: Sequence[Path] = ()) -> list[str]:
    """The methods to be measured: those asked for, all by default, the host, the task's rivals, and files of scores.

    Raises:
        ConfigError: a name is unknown, a function cannot be loaded, or a file is not there or called like a method.
    """
    places = [name for name in methods if is_place(name)]
    for place in places:
        function(place)
    found = with_host(methods, [*task.methods(), *places], task.rivals)
    taken = {*found, *task.methods()}
    for path in scores:
        if not path.is_file():
            raise ConfigError(f"--scores {path} is no file: give a CSV or Parquet file, or several with commas between")
        if path.stem in taken:
            raise ConfigError(f"--scores {path} is called like another method: rename the file, its name is shown")
        taken.add(path.stem)
    return found + [f"{SCORES}{path.resolve()}" for path in scores]


def write_rows(task: Task, config: Any, work: Workspace, protocol: str, seeds: int, path: Path) -> int:
    """Write the test rows of a protocol for others to score, and return how many there are; nothing is trained."""
    assert task.rows is not None
    if path.suffix != ".parquet":
        raise ConfigError(f"--rows-out {path} has to be a Parquet file, for candidates are lists: call it rows.parquet")
    data = work.data(task)
    todo = cells.cells_of(config, [protocol], seeds, (), work.prepared, work.cells)
    rows = task.rows([task.problem(data, cell.config) for cell in todo])
    with atomic_file(path) as new:
        rows.write_parquet(new)
    return len(rows)


def evaluate(
    task: Task,
    config: Any,
    work: Workspace,
    *,
    protocols: Sequence[str] = (),
    methods: Sequence[str] = (),
    scores: Sequence[Path] = (),
    seeds: int = 1,
    jobs: int = 1,
    notify: cells.Notify = lambda cell, training, metrics: None,
) -> list[Comparison]:
    """Train and test methods on the same rows, and compare them with the host.

    Args:
        task: what is personalised.
        config: settings; its protocol is used unless ``protocols`` are given.
        work: where the data is and the results go.
        protocols: one comparison each.
        methods: all by default; the host and the task's rivals are always among them. One may be ``module:function``.
        scores: files of scores of others, each judged as the method that is called like it.
        seeds: how many, counting up from the settings' seed.
        jobs: cells worked on at the same time.
        notify: called after each epoch and each method.
    """
    protocols = list(protocols) or [config.protocol]
    compared = chosen(task, methods, scores)
    todo = cells.cells_of(config, protocols, seeds, compared, work.prepared, work.cells)
    work.connect(task)
    with tracking.run("evaluate", tags={"step": "evaluate", "protocols": ",".join(protocols)}):
        data = work.data(task)  # says what to do where there is none, before any process is started
        settings = config.as_dict() | config.resolved(data)
        tracking.log_params({**settings, "seeds": seeds, "compared": ",".join(compared)})
        measured = cells.measure_cells(task, todo, jobs, notify)
        comparisons = []
        for protocol in protocols:
            found = Comparison.of_seeds(
                [m for cell, m in zip(todo, measured, strict=True) if cell.config.protocol == protocol],
                protocol=protocol,
                settings=settings,
                unit=f"{task.unit}s",
                headlines=task.headlines(protocol),
            )
            write_json(work.comparison(task, protocol), found.as_dict())
            found.log()
            comparisons.append(found)
    work.remember(config)
    return comparisons
