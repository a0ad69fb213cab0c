"""Run the experiments behind the results in docs, and render their pages.

    python -m benchmarks.evidence recsys ml-100k-paper-sasrec --jobs 2
    python -m benchmarks.evidence vision digits-streams

Experiments whose results are up to date are not run again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from persona import runtime
from persona.errors import ConfigError, nearest
from pipelines import console
from pipelines.commands import bars
from pipelines.commands.options import Jobs, WorkOption

app = typer.Typer(no_args_is_help=True)

Names = Annotated[list[str] | None, typer.Argument(help="Experiments; all by default.")]
DataFolder = Annotated[Path | None, typer.Option(help="Folder with data sets that no package provides.")]


@app.command()
def recsys(
    names: Names = None,
    data_folder: DataFolder = None,
    work: WorkOption = Path("work/evidence"),
    jobs: Jobs = 1,
    as_json: console.JsonOption = False,
) -> None:
    """The experiments behind docs/results.md."""
    runtime.configure()
    from benchmarks.evidence import recsys as evidence
    from benchmarks.evidence import recsys_page

    def run(experiment: Any, advance: console.Advance) -> bool:
        notify = bars.methods(advance, experiment.config.monitor)
        return evidence.run(experiment, work, data_folder, jobs, notify)

    ran = _each(evidence.experiments(), names, run, recsys_page.write)
    _tell(ran, evidence.RESULTS, as_json)


@app.command()
def vision(
    names: Names = None,
    data_folder: DataFolder = None,
    work: WorkOption = Path("work/evidence-vision"),
    jobs: Jobs = 1,
    as_json: console.JsonOption = False,
) -> None:
    """The experiments behind docs/vision-results.md."""
    runtime.configure()
    from benchmarks.evidence import vision as evidence

    def run(experiment: Any, advance: console.Advance) -> bool:
        return evidence.run(experiment, work, data_folder, jobs, bars.methods(advance, "accuracy"))

    def write() -> None:
        evidence.RESULTS.write_text(evidence.render(), encoding="utf-8")

    _tell(_each(evidence.experiments(), names, run, write), evidence.RESULTS, as_json)


def _each(
    known: Mapping[str, Any],
    names: list[str] | None,
    run: Callable[[Any, console.Advance], bool],
    write: Callable[[], Any],
) -> list[str]:
    """The experiments that were run, of those asked for; the pages are written after each."""
    for name in names or ():
        if name not in known:
            raise ConfigError(f"there is no experiment {name!r}: {nearest(name, known)}")
    ran = []
    for name in names or list(known):
        with console.progress(name, known[name].trainings) as advance:
            if run(known[name], advance):
                ran.append(name)
        write()
    return ran


def _tell(ran: list[str], page: Path, as_json: bool) -> None:
    out = console.Output(as_json)
    out.say(f"{page}: {len(ran)} experiment(s) were run, the others were up to date")
    out.result({"ran": ran, "page": page})


if __name__ == "__main__":
    runtime.set_environment()
    sys.exit(console.run(app, name="python -m benchmarks.evidence"))
