"""The commands `persona recsys prototypes`, `refine` and `forget`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines import console
from pipelines.commands.options import MAX_MISSED, MaxMissed, with_settings
from pipelines.commands.recsys.main import WORK, ConfigOption, WorkOption, epochs, start, workspace

if TYPE_CHECKING:
    from persona.prototypes import BankConfig
    from pipelines.steps.bank import Banked

K = Annotated[
    int, typer.Option("--prototypes", min=0, help="How many prototypes; 0 chooses by validation and stability.")
]
MaxK = Annotated[int, typer.Option("--max-prototypes", min=1, help="The most that are tried.")]
NEAREST = {"uauc": "UAUC", "ndcg_10": "NDCG@10"}


REFINE_EXAMPLES = (
    "Examples:\n\n"
    "persona recsys refine --events today.csv                        a log of new events, with the columns of the first\n\n"
    "persona recsys refine --last 30                                 the last 30 days of the prepared log\n\n"
    "persona recsys refine --window 2016-09-01 2016-10-01            events of September\n\n"
    "persona recsys refine --statistics stats/                       what `collect` wrote on several workers"
)


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command(epilog="Example:  persona recsys prototypes --max-prototypes 32")(with_settings(prototypes))
    app.command(epilog=REFINE_EXAMPLES)(refine)
    app.command(epilog="Example:  persona recsys forget 42 --statistics stats/")(forget)


def prototypes(
    given: dict[str, Any],
    work: WorkOption = WORK,
    config: ConfigOption = None,
    k: K = 0,
    max_k: MaxK = 16,
    specialise: Annotated[
        bool, typer.Option(help="Train prototypes on their members, and keep what validation favours.")
    ] = True,
    as_json: console.JsonOption = False,
) -> None:
    """Partition the devices into prototypes by their edits, and register the bank; `release` packs it."""
    _, out = start(as_json)
    from persona.prototypes import BankConfig

    space = workspace(work)
    settings = space.settings(given, config)
    made = fit(space, settings, BankConfig(k=k, max_k=max_k, specialise=specialise))
    show_bank(made, out)
    out.result(made)


def refine(
    work: WorkOption = WORK,
    events: Annotated[str, typer.Option(help="Log of new events.")] = "",
    last: Annotated[float, typer.Option(min=0, help="Days at the end of the prepared log.")] = 0.0,
    window: Annotated[
        tuple[str, str] | None, typer.Option(metavar="START END", help="Dates or seconds since 1970, END left out.")
    ] = None,
    statistics: Annotated[
        list[Path] | None,
        typer.Option(
            help="File that `collect` wrote, or a folder of them; events then only serve to compare. Repeatable."
        ),
    ] = None,
    eta: Annotated[float, typer.Option(min=0, max=1, help="Share of the way to the members' robust mean edit.")] = 0.5,
    budget: Annotated[float, typer.Option(min=0, help="Largest movement, as a share of the host's own weights.")] = 0.1,
    min_users: Annotated[int, typer.Option(min=1, help="Users without whom a prototype does not move.")] = 10,
    max_missed: MaxMissed = MAX_MISSED,
    user_column: Annotated[str | None, typer.Option(help="Column of user ids; the prepared log's by default.")] = None,
    item_column: Annotated[str | None, typer.Option(help="Column of item ids.")] = None,
    time_column: Annotated[str | None, typer.Option(help="Column of times.")] = None,
    as_json: console.JsonOption = False,
) -> None:
    """Move prototypes with the edits of new events, without labels or gradients; `release` packs the new version."""
    _, out = start(as_json)
    from persona.prototypes import RefineConfig
    from pipelines.steps import bank as bank_steps

    refined = bank_steps.refine(
        workspace(work),
        source=events,
        columns={"user": user_column, "item": item_column, "time": time_column},
        window=window,
        days=last,
        statistics=statistics or (),
        limits=RefineConfig(eta=eta, budget=budget, min_users=min_users, max_missed=max_missed),
    )
    show_refined(refined, out)
    out.result(refined)


def forget(
    user: Annotated[str, typer.Argument(help="Id of a user of the prepared log.")],
    work: WorkOption = WORK,
    statistics: Annotated[
        list[Path] | None,
        typer.Option(help="File that `collect` wrote outside of --work, or a folder of them. Repeatable."),
    ] = None,
    as_json: console.JsonOption = False,
) -> None:
    """Take a user out of the log, statistics, banks, snapshots and sampled edits, and say what has to be trained again."""
    _, out = start(as_json)
    from pipelines.steps import forget as forget_step

    done = forget_step.forget(workspace(work), user, statistics or ())
    out.table(f"User {done.user} is no longer in", ["where", "what went"], [[p.where, p.what] for p in done.reached])
    if done.left:
        out.table("Not reached", ["where", "what to do"], [[p.where, p.what] for p in done.left])
    if done.rebuild:
        out.table("Made of their events as well", ["where", "make it again"], [[p.where, p.what] for p in done.rebuild])
    out.result(done)


def fit(space: Any, settings: Any, config: BankConfig) -> list[Banked]:
    """The step, with a bar of its parts."""
    from pipelines.steps import bank as bank_steps

    with epochs(settings) as on_epoch, console.progress("prototypes", 1) as advance:
        made = bank_steps.prototypes(settings, space, config, on_epoch, lambda note: advance(0, note))
        advance(note="done")
    return made


def show_bank(made: list[Banked], out: console.Output) -> None:
    """K with what decided it, and what every level reaches on validation."""
    report = made[0].report
    if report["choice"] is not None:
        rows = [
            [c["k"], c["score"], c["stability_seeds"], c["stability_halves"], "chosen" if c["k"] == report["k"] else ""]
            for c in report["choice"]["candidates"]
        ]
        columns = ["K", "validation", "stable between seeds", "between halves of users", ""]
        out.table("Prototypes alone, by their number", columns, rows)
    out.table("Validation by serving level", ["level", "score"], list(report["levels"].items()))
    for banked in made:
        out.say(
            f"Version {banked.version[:12]} ({banked.kind}, {banked.k} prototypes) is {banked.registered.uri}, alias 'candidate'"
        )


def show_refined(refined: Banked, out: console.Output) -> None:
    """What moved, and whether it was for the better."""
    report = refined.report
    window = report["window"]
    out.say(
        f"{window['events']:,} events of {window['users']:,} users, {window['from']} to {window['to']}"
        + (f"; {window['unknown_items']:,} of unknown items were left out" if window["unknown_items"] else "")
    )
    rows = [[j, f"{max(moved):.4g}"] for j, moved in enumerate(report["movement"])]
    out.table("Largest movement of a layer, by prototype", ["prototype", "norm"], rows)
    for metric, name in NEAREST.items():
        key = f"window/{metric}_vs_parent"
        if key in refined.metrics:
            low, high = refined.metrics[f"{key}_low"], refined.metrics[f"{key}_high"]
            out.say(
                f"{name} on these events against its parent: {refined.metrics[key]:+z.4f} [{low:+z.4f}, {high:+z.4f}]"
            )
    out.say(
        f"Version {refined.version[:12]} of {refined.parent[:12]}: {refined.k} prototypes, {report['moved_users']:,} users "
        f"changed prototype; {refined.registered.uri}"
    )
    out.say(
        ("" if report["compared"] else "It was not compared, for want of events (--events, --last or --window). ")
        + "It has the alias 'candidate', and the next `release` packs it"
        if refined.served
        else "It is behind its parent on these events, so the parent goes on being served"
    )
