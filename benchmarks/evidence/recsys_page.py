"""The results page: what the result files of ``benchmarks.evidence.recsys`` say, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.evidence.recsys import RESULTS, Experiment, Grid, experiments, grids
from benchmarks.evidence.tables import FOLDER, interval, table
from persona.storage import read_json
from recsys.data import catalogue

Result = Mapping[str, Any]


def render(folder: Path = FOLDER) -> dict[str, str]:
    """The pages by file name, from the result files that are there: the results, and the cells of every grid."""
    known = experiments(folder)
    found = {name: read_json(path) for name in known if (path := folder / f"{name}.json").exists()}
    alone = [_section(e, found[name]) for name, e in known.items() if name in found and not e.grid]
    pages = {RESULTS.name: alone}
    for grid in grids(folder).values():
        cells = {name: (e, found[name]) for name, e in known.items() if name in found and e.grid == grid.name}
        if cells:
            pages[RESULTS.name] = [*pages[RESULTS.name], _summary(grid, list(cells.values()))]
            pages[_page_of(grid)] = [_section(e, result) for e, result in cells.values()]
    return {
        name: "\n".join([_HEAD if name == RESULTS.name else _CELLS_HEAD, *sections]) for name, sections in pages.items()
    }


def write(folder: Path = FOLDER) -> list[Path]:
    """Write the pages beside the folder of results."""
    paths = []
    for name, text in render(folder).items():
        paths.append(folder.parent / name)
        paths[-1].write_text(text, encoding="utf-8")
    return paths


def _page_of(grid: Grid) -> str:
    return f"results-{grid.name}.md"


def _summary(grid: Grid, cells: Sequence[tuple[Experiment, Result]]) -> str:
    """What a grid shows: the last method against the host and every rival, metric by metric, and what levels keep."""
    total = len(grid.data) * len(grid.hosts)
    lines = [
        f"## {grid.title}",
        "",
        f"Goal: {grid.goal}",
        "",
        f"{len(cells)} of {total} cells are measured; [all methods of each cell]({_page_of(grid)}), with the command that repeats it.",
        "Settings: " + ", ".join(f"{k} {v}" for k, v in grid.shared["settings"].items()) + ".",
        "",
    ]
    for metric in grid.shared["headlines"]:
        lines += [*_against(grid, metric, cells), ""]
    if set(_LEVELS) <= set(grid.shared["methods"]):
        lines += [*_kept(cells, grid.shared["headlines"][0]), ""]
    return "\n".join([*lines, *([grid.note, ""] if grid.note else [])])


def _against(grid: Grid, metric: str, cells: Sequence[tuple[Experiment, Result]]) -> list[str]:
    """Differences of the last method, a row a cell and a column a rival, and how many cells they decide."""
    method, rivals = grid.shared["methods"][-1], ["host", *grid.shared["rivals"]]
    lines = [
        f"{method} minus rival, {metric}:",
        "",
        f"| cell | host | {method} | {' | '.join(rivals)} |",
        f"| --- | --- | --- | {' | '.join(['---'] * len(rivals))} |",
    ]
    verdicts: dict[str, list[int]] = {rival: [] for rival in rivals}
    for experiment, result in cells:
        rows = {row["method"]: row for row in result["rows"]}
        found = {"host": rows[method]["differences"], **{p["rival"]: p["differences"] for p in result["pairs"]}}
        shown = []
        for rival in rivals:
            value = found[rival][metric]
            verdicts[rival].append((value["low"] > 0) - (value["high"] < 0))
            shown.append(f"{value['mean']:+.4f} [{value['low']:+.4f}, {value['high']:+.4f}]")
        values = [f"{rows[name]['metrics'][metric]:.4f}" for name in ("host", method)]
        lines.append(f"| {experiment.title.replace(', protocol', ',')} | {' | '.join([*values, *shown])} |")
    counts = [f"{v.count(1)} above, {v.count(0)} undecided, {v.count(-1)} below" for v in verdicts.values()]
    return [*lines, f"| **interval against zero** | | | {' | '.join(counts)} |"]


# What the held-back editor's gain is kept by.
_LEVELS = ("persona_prototypes", "persona_basis")


def _kept(cells: Sequence[tuple[Experiment, Result]], metric: str) -> list[str]:
    """What the serving levels keep of the held-back editor's gain, where there is a gain to keep."""
    lines = [
        f"What a refresh costs and keeps of the held-back editor's gain in {metric} (where the gain's interval is above zero):",
        "",
        "| cell | gain | prototype kept | bytes | prototype + remainder kept | bytes | full edit, bytes | DUET, bytes |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for experiment, result in cells:
        rows = {row["method"]: row for row in result["rows"]}
        gain = rows["persona_held_back"]["differences"][metric]
        shown = [
            experiment.title.replace(", protocol", ","),
            f"{gain['mean']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}]",
        ]
        for level in _LEVELS:
            kept = rows[level]["differences"][metric]["mean"] / gain["mean"] if gain["low"] > 0 else None
            shown += ["-" if kept is None else f"{kept:.0%}", str(rows[level]["refresh_bytes"])]
        shown += [f"{rows[name]['refresh_bytes']:,}" for name in ("persona_held_back", "duet")]
        lines.append(f"| {' | '.join(shown)} |")
    return lines


_HEAD = """# Results

Every table is rendered from a result file in `docs/evidence/` by `make evidence`, which runs what is missing or has changed
(`docs/evidence/experiments.toml` holds all settings). A single one: the command below its heading. Numbers are means over
seeds; brackets are 95 % percentile bootstrap intervals over users, whose differences are averaged over seeds first. All
methods of a table are tested on the same rows with the same negatives; epochs are selected on validation rows only. The
protocol is part of a metric's name: `paper` leaves one out and ranks against 99 negatives, `full` leaves one out and ranks the
whole catalogue without seen items, `time` tests all events after a global cut in time against 99 negatives.

These numbers are of the build of 22 November 2026, and without simple rivals, which are in docs/yardstick.md. Since then methods with a bank
fit it by the recipe that users get, `auto` tries more modes, and a gate needs an interval: they will be measured again with item edits
and content.
"""

_CELLS_HEAD = """# Results of single cells

Rendered like [the results](results.md), which say how to read the tables.
"""


def _section(experiment: Experiment, result: Mapping[str, Any]) -> str:
    data = result["data"]
    chosen = ", ".join(f"{k} {v}" for k, v in experiment.settings.items())
    lines = [
        f"## {experiment.title}",
        "",
        f"Goal: {experiment.goal}",
        "",
        f"    python -m benchmarks.evidence recsys {experiment.name}" + _data_option(experiment),
        "",
        f"{experiment.data}: {data['events']:,} events, {data['users']:,} users, {data['items']:,} items"
        f"{', baskets' if data['baskets'] else ''}; {result['users']:,} test users, {result['seeds']} seeds. "
        f"Settings: {chosen}.",
        "",
        *_table(experiment, result),
        "",
        *_pair_lines(experiment, result),
    ]
    return "\n".join([*lines, *([experiment.note, ""] if experiment.note else [])])


def _data_option(experiment: Experiment) -> str:
    return "" if experiment.data in catalogue.CATALOGUE else " --data-folder DATA"


def _table(experiment: Experiment, result: Mapping[str, Any]) -> list[str]:
    names = [f"{experiment.protocol}/{h}" for h in experiment.headlines]
    compared = [h for h in experiment.headlines if any(h in row["differences"] for row in result["rows"])]
    costs = {n: t for n, t in _COSTS.items() if any(row.get(n) is not None for row in result["rows"])}
    head = [
        "method",
        *names,
        *(f"{h} against the host" for h in compared),
        "training",
        "bytes a refresh",
        *costs.values(),
    ]
    lines = []
    for row in result["rows"]:
        cells_ = [row["method"], *(f"{row['metrics'][h]:.4f}" for h in experiment.headlines)]
        cells_ += [interval(row["differences"].get(h)) for h in compared]
        cells_ += [f"{row['seconds']:.0f} s", f"{row['refresh_bytes']:,}", *(_cost(n, row.get(n)) for n in costs)]
        lines.append(cells_)
    return table(head, lines)


# Results of an earlier form have no such numbers.
_COSTS = {"refresh_seconds": "time a refresh", "parameters": "parameters beyond the host's"}


def _cost(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if name == "parameters":
        return f"{value:,}"
    return f"{value:.0f} s" if value >= 1 else f"{1000 * value:.2g} ms"


def _pair_lines(experiment: Experiment, result: Result) -> list[str]:
    lines = []
    for pair in result["pairs"]:
        metrics = pair["differences"]
        shown = ", ".join(f"{h} {interval(metrics[h])}" for h in experiment.headlines if h in metrics)
        lines.append(f"* {pair['method']} against {pair['rival']}: {shown}")
    return [*lines, ""] if lines else []
