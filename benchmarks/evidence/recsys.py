"""Evidence: the experiments behind every number of ``docs/results.md``, run by one command and rendered from their results.

An experiment stands in ``docs/evidence/experiments.toml``; its result is one JSON file beside it. An experiment whose
description and data are those of its result is not run again, and one that was interrupted goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.evidence import tables
from benchmarks.evidence.tables import FOLDER, built, declared
from persona.storage import digest_json, write_json
from pipelines.steps import cells
from pipelines.steps import recsys as recsys_steps
from pipelines.steps.evaluate import Comparison, evaluate
from pipelines.steps.workspace import Workspace
from recsys.config import RecsysConfig
from recsys.data import catalogue
from recsys.data.sequences import SequenceData
from recsys.task import RECSYS

RESULTS = Path("docs/results.md")
DECLARED = "experiments.toml"


@dataclass(frozen=True, kw_only=True)
class Experiment(tables.BaseExperiment):
    """One comparison; its data may be a folder with ``interactions.parquet`` under the data folder.

    Attributes:
        protocol: the protocol.
        headlines: metrics shown.
        baskets: whether ties are baskets; found out if not given.
        studies: ablations of ``recsys.ablations`` whose variants are compared, instead of methods.
        pairs: variants compared with each other directly, beside with the host.
        grid: of which it is a cell; empty for one that stands by itself.
    """

    protocol: str
    headlines: Sequence[str] = ("auc", "uauc", "ndcg_10", "hr_10")
    baskets: bool | None = None
    studies: Sequence[str] = ()
    pairs: Sequence[Sequence[str]] = ()
    grid: str = ""

    @property
    def trainings(self) -> int:
        """How many results a run makes."""
        return self.seeds * len(self.studies or self.methods)

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


def run(
    experiment: Experiment, work: Path, data_folder: Path | None, jobs: int, notify: cells.Notify, folder: Path = FOLDER
) -> bool:
    """Run ``experiment`` unless its result is up to date; whether it was run."""
    space = Workspace(work / experiment.data_key)
    if not space.prepared.exists():
        file = f"{experiment.data}/interactions.parquet"
        source = experiment.source(catalogue.CATALOGUE, file, data_folder)
        recsys_steps.prepare(source, space, baskets=experiment.baskets)
    data = space.data(RECSYS)
    key = digest_json({"data": data.digest, "settings": decisive(experiment.config), **_plain(experiment)})
    path = folder / f"{experiment.name}.json"
    if experiment.is_done(path, key):
        return False
    if experiment.studies:
        comparison, pairs = _study(experiment, data, space, notify), experiment.pairs
    else:
        asked = {"methods": experiment.methods, "seeds": experiment.seeds, "jobs": jobs, "notify": notify}
        [comparison] = evaluate(RECSYS, experiment.config, space, **asked)
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
