"""Evidence: the experiments behind every number of ``docs/results.md``, run by one command and rendered from their results.

An experiment stands in ``docs/evidence/experiments.toml``; its result is one JSON file beside it. An experiment whose
description and data are those of its result is not run again, and one that was interrupted goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.evidence.tables import built, declared
from persona.errors import DataError
from persona.storage import digest_json, read_json, write_json
from pipelines.steps import cells
from pipelines.steps import recsys as recsys_steps
from pipelines.steps.evaluate import Comparison
from pipelines.steps.workspace import Workspace
from recsys.config import RecsysConfig
from recsys.data import catalogue
from recsys.data.sequences import SequenceData

FOLDER = Path("docs/evidence")
RESULTS = Path("docs/results.md")
DECLARED = "experiments.toml"


@dataclass(frozen=True)
class Experiment:
    """One comparison.

    Attributes:
        name: of its result file.
        title: heading on the results page.
        goal: what it is to show, in words.
        data: a data set of the catalogue, or a folder with ``interactions.parquet`` under the data folder.
        protocol: the protocol.
        seeds: how many.
        methods: compared; the host is always among them.
        headlines: metrics shown.
        baskets: whether ties are baskets; found out if not given.
        rivals: methods that the last method is also compared with directly.
        studies: ablations of ``recsys.ablations`` whose variants are compared, instead of methods.
        pairs: variants compared with each other directly, beside with the host.
        settings: of ``RecsysConfig``.
        note: what a reader should know.
        grid: of which it is a cell; empty for one that stands by itself.
    """

    name: str
    title: str
    goal: str
    data: str
    protocol: str
    seeds: int = 3
    methods: Sequence[str] = ("host",)
    headlines: Sequence[str] = ("auc", "uauc", "ndcg_10", "hr_10")
    baskets: bool | None = None
    rivals: Sequence[str] = ()
    studies: Sequence[str] = ()
    pairs: Sequence[Sequence[str]] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    grid: str = ""

    @property
    def config(self) -> RecsysConfig:
        """The settings of the first seed."""
        return RecsysConfig.from_dict({**self.settings, "protocol": self.protocol})

    @property
    def data_key(self) -> str:
        """Names the workspace: the data and how its ties are read."""
        suffix = {None: "", True: "-baskets", False: "-no-baskets"}[self.baskets]
        return f"{self.data}{suffix}"


@dataclass(frozen=True)
class Grid:
    """The same comparison on several data sets and hosts: what a claim about the method has to stand on.

    Attributes:
        name: of the grid; a cell is called ``<data>-<protocol>-<host>-<name>``.
        title: heading on the results page.
        goal: what it is to show, in words.
        data: protocol of each data set.
        hosts: kinds of hosts.
        shared: all other keys of an experiment.
        note: what a reader should know.
    """

    name: str
    title: str
    goal: str
    data: Mapping[str, str]
    hosts: Sequence[str]
    shared: Mapping[str, Any]
    note: str = ""

    def cells(self) -> list[dict[str, Any]]:
        """One entry of an experiment for each data set and host."""
        return [
            {
                **self.shared,
                "name": f"{data}-{protocol}-{host}-{self.name}",
                "title": f"{HOSTS[host]} on {data}, protocol {protocol}",
                "goal": self.goal,
                "data": data,
                "protocol": protocol,
                "grid": self.name,
                "settings": {**self.shared["settings"], "host": host},
            }
            for data, protocol in self.data.items()
            for host in self.hosts
        ]


HOSTS = {"din": "DIN", "gru4rec": "GRU4Rec", "sasrec": "SASRec"}


def grids(folder: Path = FOLDER) -> dict[str, Grid]:
    """All grids by name."""
    return {entry["name"]: Grid(**entry) for entry in _declared(folder).get("grid", [])}


def experiments(folder: Path = FOLDER) -> dict[str, Experiment]:
    """All experiments by name, the cells of grids after those that stand by themselves.

    Raises:
        ConfigError: an experiment has an unknown key or setting.
    """
    cells_ = [cell for grid in grids(folder).values() for cell in grid.cells()]
    return built(Experiment, [*_declared(folder)["experiment"], *cells_], folder / DECLARED)


def _declared(folder: Path) -> dict[str, Any]:
    return declared(folder / DECLARED)


def source_of(experiment: Experiment, data_folder: Path | None) -> str:
    """The log an experiment reads.

    Raises:
        DataError: its data is in no package, and the data folder was not given or does not hold it.
    """
    if experiment.data in catalogue.CATALOGUE:
        return experiment.data
    path = (data_folder or Path()) / experiment.data / "interactions.parquet"
    if data_folder is None or not path.exists():
        raise DataError(
            f"{experiment.name} needs {experiment.data}/interactions.parquet: name its folder by --data-folder"
        )
    return str(path)


def run(
    experiment: Experiment, work: Path, data_folder: Path | None, jobs: int, notify: cells.Notify, folder: Path = FOLDER
) -> bool:
    """Run ``experiment`` unless its result is up to date; whether it was run."""
    space = Workspace(work / experiment.data_key)
    if not space.prepared.exists():
        recsys_steps.prepare(source_of(experiment, data_folder), space, baskets=experiment.baskets)
    data = space.data()
    key = digest_json({"data": data.digest, "settings": decisive(experiment.config), **_plain(experiment)})
    path = folder / f"{experiment.name}.json"
    if path.exists() and read_json(path)["key"] == key:
        return False
    if experiment.studies:
        comparison, pairs = _study(experiment, data, space, notify), experiment.pairs
    else:
        [comparison] = recsys_steps.evaluate(
            experiment.config, space, methods=experiment.methods, seeds=experiment.seeds, jobs=jobs, notify=notify
        )
        pairs = [(experiment.methods[-1], rival) for rival in experiment.rivals]
    write_json(path, {"key": key, "data": _describe(data), **comparison.as_dict(), **_direct(comparison, pairs)})
    return True


def decisive(config: RecsysConfig) -> dict[str, Any]:
    """The settings that results depend on; each method of a comparison brings its mode of training itself."""
    return config.host_settings() | config.editor_settings()


def _study(experiment: Experiment, data: SequenceData, space: Workspace, notify: cells.Notify) -> Comparison:
    """The variants of all studies, on the cells that comparisons of the same settings share."""
    from persona.comparison import Measured
    from recsys import ablations
    from recsys.methods import Problem

    measured = []
    for seed in range(experiment.config.seed, experiment.config.seed + experiment.seeds):
        config = replace(experiment.config, seed=seed)
        problem = Problem(data, config, folder=space.cells)
        rows: dict[str, Measured] = {}
        for study in experiment.studies:
            rows |= ablations.STUDIES[study](problem)
            notify(f"{experiment.name} seed {seed}", study, None)
        measured.append(rows)
    return Comparison.of_seeds(
        measured,
        protocol=experiment.protocol,
        settings=experiment.config.as_dict(),
        unit="users",
        headlines=tuple(experiment.headlines),
    )


def _plain(experiment: Experiment) -> dict[str, Any]:
    compared = {"methods": list(experiment.methods), "seeds": experiment.seeds, "rivals": list(experiment.rivals)}
    studied = {"studies": list(experiment.studies), "pairs": [list(pair) for pair in experiment.pairs]}
    return compared | studied if experiment.studies else compared


def _describe(data: SequenceData) -> dict[str, Any]:
    return {"users": data.n_users, "items": data.n_items, "events": data.n_events, "baskets": data.baskets}


def _direct(comparison: Comparison, pairs: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Methods against each other, a list of pairs with the differences of their metrics."""
    from persona.comparison import differences

    return {
        "pairs": [
            {
                "method": method,
                "rival": rival,
                "differences": {
                    k: d.as_dict() for k, d in differences(comparison.of(method), comparison.of(rival)).items()
                },
            }
            for method, rival in pairs
        ]
    }
