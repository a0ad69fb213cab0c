"""Evidence: the experiments behind every number of ``docs/results.md``, run by one command and rendered from their results.

An experiment stands in ``docs/evidence/experiments.toml``; its result is one JSON file beside it. An experiment whose
description and data are those of its result is not run again, and one that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from persona.errors import ConfigError, DataError, nearest
from persona.storage import digest_json, read_json, write_json
from pipelines import cells, recsys_steps
from pipelines.workspace import Workspace
from recsys import catalogue
from recsys.config import RecsysConfig

FOLDER = Path("docs/evidence")
RESULTS = Path("docs/results.md")


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
        settings: of ``RecsysConfig``.
        note: what a reader should know.
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
    settings: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def config(self) -> RecsysConfig:
        """The settings of the first seed."""
        return RecsysConfig.from_dict({**self.settings, "protocol": self.protocol})

    @property
    def data_key(self) -> str:
        """Names the workspace: the data and how its ties are read."""
        suffix = {None: "", True: "-baskets", False: "-no-baskets"}[self.baskets]
        return f"{self.data}{suffix}"


def experiments(folder: Path = FOLDER) -> dict[str, Experiment]:
    """All experiments by name.

    Raises:
        ConfigError: an experiment has an unknown key or setting.
    """
    path = folder / "experiments.toml"
    known = {f.name for f in fields(Experiment)}
    found = {}
    for entry in tomllib.loads(path.read_text(encoding="utf-8"))["experiment"]:
        for key in entry:
            if key not in known:
                raise ConfigError(f"{path}: unknown key {key!r} in {entry.get('name')}: {nearest(key, known)}")
        found[entry["name"]] = Experiment(**entry)
    return found


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
    key = digest_json({"data": data.digest, "settings": experiment.config.as_dict(), **_plain(experiment)})
    path = folder / f"{experiment.name}.json"
    if path.exists() and read_json(path)["key"] == key:
        return False
    [comparison] = recsys_steps.evaluate(
        experiment.config, space, methods=experiment.methods, seeds=experiment.seeds, jobs=jobs, notify=notify
    )
    write_json(path, {"key": key, "data": _describe(data), **comparison.as_dict(), **_direct(experiment, comparison)})
    return True


def _plain(experiment: Experiment) -> dict[str, Any]:
    return {"methods": list(experiment.methods), "seeds": experiment.seeds, "rivals": list(experiment.rivals)}


def _describe(data: Any) -> dict[str, Any]:
    return {"users": data.n_users, "items": data.n_items, "events": data.n_events, "baskets": data.baskets}


def _direct(experiment: Experiment, comparison: recsys_steps.Comparison) -> dict[str, Any]:
    """The last method against each rival, pair by pair."""
    from persona.comparison import differences

    last = experiment.methods[-1]
    return {
        "rivals": {
            rival: {k: d.as_dict() for k, d in differences(comparison.of(last), comparison.of(rival)).items()}
            for rival in experiment.rivals
        }
    }


def render(folder: Path = FOLDER) -> str:
    """The results page, from the result files that are there."""
    parts = [_HEAD]
    for experiment in experiments(folder).values():
        path = folder / f"{experiment.name}.json"
        if path.exists():
            parts.append(_section(experiment, read_json(path)))
    return "\n".join(parts)


_HEAD = """# Results

Every table is rendered from a result file in `docs/evidence/` by `make evidence`, which runs what is missing or has changed
(`docs/evidence/experiments.toml` holds all settings). A single one: the command below its heading. Numbers are means over
seeds; brackets are 95 % percentile bootstrap intervals over users, whose differences are averaged over seeds first. All
methods of a table are tested on the same rows with the same negatives; epochs are selected on validation rows only. The
protocol is part of a metric's name: `paper` leaves one out and ranks against 99 negatives, `full` leaves one out and ranks the
whole catalogue without seen items, `time` tests all events after a global cut in time against 99 negatives.
"""


def _section(experiment: Experiment, result: Mapping[str, Any]) -> str:
    data = result["data"]
    chosen = ", ".join(f"{k} {v}" for k, v in experiment.settings.items())
    lines = [
        f"## {experiment.title}",
        "",
        f"Goal: {experiment.goal}",
        "",
        f"    persona recsys evidence {experiment.name}" + _data_option(experiment),
        "",
        f"{experiment.data}: {data['events']:,} events, {data['users']:,} users, {data['items']:,} items"
        f"{', baskets' if data['baskets'] else ''}; {result['users']:,} test users, {result['seeds']} seeds. "
        f"Settings: {chosen}.",
        "",
        *_table(experiment, result),
        "",
        *_rival_lines(experiment, result),
    ]
    return "\n".join([*lines, *([experiment.note, ""] if experiment.note else [])])


def _data_option(experiment: Experiment) -> str:
    return "" if experiment.data in catalogue.CATALOGUE else " --data-folder DATA"


def _table(experiment: Experiment, result: Mapping[str, Any]) -> list[str]:
    names = [f"{experiment.protocol}/{h}" for h in experiment.headlines]
    compared = [h for h in experiment.headlines if any(h in row["differences"] for row in result["rows"])]
    head = ["method", *names, *(f"{h} against the host" for h in compared), "training", "bytes a refresh"]
    lines = [f"| {' | '.join(head)} |", f"| {' | '.join(['---'] * len(head))} |"]
    for row in result["rows"]:
        cells_ = [row["method"], *(f"{row['metrics'][h]:.4f}" for h in experiment.headlines)]
        cells_ += [_interval(row["differences"].get(h)) for h in compared]
        cells_ += [f"{row['seconds']:.0f} s", f"{row['refresh_bytes']:,}"]
        lines.append(f"| {' | '.join(cells_)} |")
    return lines


def _rival_lines(experiment: Experiment, result: Mapping[str, Any]) -> list[str]:
    lines = []
    for rival, metrics in result.get("rivals", {}).items():
        shown = ", ".join(f"{h} {_interval(metrics[h])}" for h in experiment.headlines if h in metrics)
        lines.append(f"* {experiment.methods[-1]} against {rival}: {shown}")
    return [*lines, ""] if lines else []


def _interval(value: Mapping[str, float] | None) -> str:
    if value is None:
        return "-"
    seeds = f" (seeds {value['seed_min']:+.4f} .. {value['seed_max']:+.4f})" if value["seeds"] > 1 else ""
    return f"{value['mean']:+.4f} [{value['low']:+.4f}, {value['high']:+.4f}]{seeds}"
