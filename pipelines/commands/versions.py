"""The commands on registered versions and runs, for any task: compare, lineage, promote, rollback, resume."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines import console
from pipelines.commands import options

if TYPE_CHECKING:
    from pipelines.versions.promotion import Promotion

VERSION_HELP = "persona-recsys-movielens-small@candidate, persona-recsys-movielens-small/3, or models:/persona-recsys-movielens-small/3."

WhyOption = Annotated[str, typer.Option(help="Reason, kept in the history.")]

FAILED_CHECK = 1


def compare(
    a: Annotated[str, typer.Argument(help="A version, alias or run to compare with; a bare model is its champion.")],
    b: Annotated[str, typer.Argument(help="The version, alias or run that is judged.")],
    page: Annotated[Path | None, typer.Option(help="Write the HTML page here, besides MLflow.")] = None,
    as_json: console.JsonOption = False,
) -> None:
    """Which of two versions is better, for whom, and what changed.

    Shows metrics with intervals, overall and by segment, who changed prototype, how far prototypes moved per layer, which items
    rose and fell, and answers before and after. Kept in MLflow as a run of the experiment "comparisons", with one HTML page.
    """
    from pipelines import tracking
    from pipelines.versions import comparing, comparison_log, pages

    out = console.Output(as_json)
    client = tracking.client()
    before, after = comparing.sides(client, a, b)
    difference = comparing.compare(before, after)
    kind = after.snapshot.kind if after.snapshot else "unit"
    comparison_log.show(difference, kind, out)
    run_id = comparison_log.log(client, before, after, difference)
    if page is not None:
        page.write_text(pages.comparison(difference, kind), encoding="utf-8")
    out.say(f"\nPage, tables and numbers:  persona ui   (experiment comparisons, run {run_id})")
    out.result({"run_id": run_id, **difference.as_dict()})


def lineage(
    model: Annotated[str, typer.Argument(help="A registered model; the store's only prototype bank by default.")] = "",
    page: Annotated[Path | None, typer.Option(help="Write the HTML page here, besides MLflow.")] = None,
    as_json: console.JsonOption = False,
) -> None:
    """Who descends from whom, what moved in each version, and who was champion when."""
    from pipelines import tracking
    from pipelines.versions import lineage_view, names

    out = console.Output(as_json)
    client = tracking.client()
    model = model or names.usual(client, banks=True)
    nodes = lineage_view.chain(client, model)
    out.show(lineage_view.tree(model, nodes))
    run_id = lineage_view.log(client, model, nodes)
    if page is not None:
        page.write_text(lineage_view.page(model, nodes), encoding="utf-8")
    out.say(f"\nPage and table:  persona ui   (experiment {model}, run {run_id})")
    out.result({"model": model, "run_id": run_id, "versions": lineage_view.as_dicts(nodes)})


def promote(
    version: Annotated[
        str, typer.Argument(help=f"{VERSION_HELP} The candidate of the store's only model by default.")
    ] = "",
    why: WhyOption = "",
    margin: Annotated[
        float, typer.Option(help="How much worse than the champion a metric may be, by the low end of its interval.")
    ] = 0.002,
    segment_margin: Annotated[
        float, typer.Option(help="How much worse a segment may be on average; none may be worse beyond doubt.")
    ] = 0.01,
    metrics: Annotated[str, typer.Option(help="Comma-separated metrics that count; all by default.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Overrule the gate; needs --why.")] = False,
    as_json: console.JsonOption = False,
) -> int:
    """Make a version the champion, which is what servers serve, if it is no worse than the present one.

    The first has to be what its release could call a candidate.

    The gate compares the two on the same users or devices. A metric passes if the 95 % interval of its difference stays above
    -margin; no segment (users by activity) may be worse beyond doubt, nor by more than the segment margin on average. Ends
    with 1 if the gate kept the version out. Who, when, from what and why are kept as tags in the registry.
    """
    from pipelines import tracking
    from pipelines.versions import names, promotion
    from pipelines.versions.promotion_gate import Limits

    out = console.Output(as_json)
    client = tracking.client()
    version = version or f"{names.usual(client)}@{names.CANDIDATE}"
    limits = Limits(tuple(options.split(metrics)), margin, segment_margin)
    done = promotion.promote(client, version, why=why, limits=limits, force=force)
    _show(done, out)
    out.result(done)
    if done.moved:
        return 0
    tracking.note_failure(f"the gate kept {done.model}/{done.version} out")
    return FAILED_CHECK


def rollback(
    model: Annotated[str, typer.Argument(help="A registered model; the store's only one by default.")] = "",
    to: Annotated[int | None, typer.Option(help="Version; the champion before the present one by default.")] = None,
    why: WhyOption = "",
    as_json: console.JsonOption = False,
) -> None:
    """Serve an earlier champion again; done again and again it goes further back."""
    from pipelines import tracking
    from pipelines.versions import names, promotion

    out = console.Output(as_json)
    client = tracking.client()
    model = model or names.usual(client)
    event = promotion.rollback(client, model, to=to, why=why)
    out.say(f"{model}/{event.version} is the champion again, in place of version {event.before}")
    out.result(event)


def resume(
    run: Annotated[str, typer.Argument(help="Id of a run that was killed or failed, from the MLflow UI.")],
) -> None:
    """Go on with a run that was killed or failed: the same command, folder and runs, from the last checkpoint.

    A step of a larger run goes on as part of it. What was logged before is not logged again.
    """
    from pipelines import tracking
    from pipelines.tracking import resume as resuming

    found = resuming.plan(tracking.client(), run)
    print(f"{found.folder}$ persona {shlex.join(found.command)}", file=sys.stderr, flush=True)
    os.chdir(found.folder)
    os.execve(sys.executable, resuming.command_of(found, sys.executable), resuming.environment(found))


def _show(done: Promotion, out: console.Output) -> None:
    if done.checks:
        rows = [
            [
                check.metric,
                check.segment or "all",
                check.units,
                check.champion,
                check.candidate,
                str(check.gain),
                f"-{check.margin:g}",
                "passed" if check.passed else "FAILED",
            ]
            for check in done.checks
        ]
        title = f"Gate: {done.model}/{done.version} against the champion, version {done.before}"
        columns = ["metric", "for", "how many", "champion", "candidate", "gain [95 %]", "margin", "gate"]
        out.table(title, columns, rows)
    if done.moved:
        relieved = "" if done.before is None else f", in place of version {done.before}"
        out.say(f"{done.model}/{done.version} is the champion now{relieved} (gate: {done.gate})")
    else:
        stays = done.reason if done.before is None else f"version {done.before} stays the champion"
        out.say(
            f"{done.model}/{done.version} was kept out: {stays}. To overrule the gate:  "
            f"persona promote {done.model}/{done.version} --force --why 'reason'"
        )


def register(app: typer.Typer) -> None:
    """Add the commands to ``persona``."""
    app.command(
        epilog="Examples:\n\n"
        "persona compare persona-recsys-movielens-small@champion persona-recsys-movielens-small@candidate\n\n"
        "persona compare persona-recsys-movielens-small-prototypes/1 persona-recsys-movielens-small-prototypes/3 --page diff.html"
    )(compare)
    app.command(epilog="Example:  persona lineage persona-recsys-movielens-small-prototypes --page lineage.html")(
        lineage
    )
    app.command(
        epilog="Example:  persona promote persona-recsys-movielens-small@candidate --why 'better for new users'"
    )(promote)
    app.command(epilog="Example:  persona resume 2f6c0a1e9d4b4f0c8a7e5d3b1c9f8e6a")(resume)
    app.command(epilog="Example:  persona rollback persona-recsys-movielens-small --why 'complaints since noon'")(
        rollback
    )
