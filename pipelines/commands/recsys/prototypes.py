"""The commands around prototypes and whom they stand on: `persona recsys prototypes`, `refine`, `collect` and `forget`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines import console
from pipelines.commands import task
from pipelines.commands.options import MAX_MISSED, ConfigOption, MaxMissed, Model, WorkOption
from pipelines.commands.recsys import show
from pipelines.commands.recsys.options import (
    WORK,
    Events,
    ItemColumn,
    Last,
    TimeColumn,
    UserColumn,
    Window,
    with_recsys_settings,
)
from recsys.task import RECSYS

if TYPE_CHECKING:
    from persona.prototypes import BankConfig
    from pipelines.steps.bank import Banked
    from pipelines.steps.workspace import Workspace
    from recsys.config import RecsysConfig

K = Annotated[
    int, typer.Option("--prototypes", min=0, help="How many prototypes; 0 chooses by validation and stability.")
]
MaxK = Annotated[int, typer.Option("--max-prototypes", min=1, help="The most that are tried.")]
REFINE_EXAMPLES = (
    "Examples:\n\n"
    "persona recsys refine --events today.csv                        a log of new events, with the columns of the first\n\n"
    "persona recsys refine --last 30                                 the last 30 days of the prepared log\n\n"
    "persona recsys refine --window 2016-09-01 2016-10-01            events of September\n\n"
    "persona recsys refine --statistics stats/                       what `collect` wrote on several workers"
)


COLLECT_EXAMPLES = (
    "Examples:\n\n"
    "persona recsys collect --events part-07.parquet --out stats/07.safetensors    a worker that holds a part of the users\n\n"
    "persona recsys collect --last 30 --shard 3/16 --out stats/3.safetensors       a worker that reads the shared log"
)


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command(epilog="Example:  persona recsys prototypes --max-prototypes 32")(with_recsys_settings(prototypes))
    app.command(epilog=REFINE_EXAMPLES)(refine)
    app.command(epilog=COLLECT_EXAMPLES)(collect)
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
    out = task.start(RECSYS, as_json)
    from persona.prototypes import BankConfig

    space = task.workspace(work)
    made = fit(space, space.settings(RECSYS, given, config), BankConfig(k=k, max_k=max_k, specialise=specialise))
    show.bank(made, out)
    out.result(made)


def refine(
    work: WorkOption = WORK,
    events: Events = "",
    last: Last = 0.0,
    window: Window = None,
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
    out = task.start(RECSYS, as_json)
    from persona.prototypes import RefineConfig
    from pipelines.steps import refining

    refined = refining.refine(
        task.workspace(work),
        source=events,
        columns={"user": user_column, "item": item_column, "time": time_column},
        window=window,
        days=last,
        statistics=statistics or (),
        limits=RefineConfig(eta=eta, budget=budget, min_users=min_users, max_missed=max_missed),
    )
    show.refined(refined, out)
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
    out = task.start(RECSYS, as_json)
    from pipelines.steps import forget as forgetting

    done = forgetting.forget(task.workspace(work), user, statistics or ())
    out.table(f"User {done.user} is no longer in", ["where", "what went"], [[p.where, p.what] for p in done.reached])
    if done.left:
        out.table("Not reached", ["where", "what to do"], [[p.where, p.what] for p in done.left])
    if done.rebuild:
        out.table("Made of their events as well", ["where", "make it again"], [[p.where, p.what] for p in done.rebuild])
    out.result(done)


def fit(space: Workspace, settings: RecsysConfig, config: BankConfig | None = None) -> list[Banked]:
    """The step ``prototypes``, with a bar of its parts."""
    from pipelines.steps import bank

    with task.epochs(settings) as on_epoch, console.progress("prototypes", 1) as advance:
        made = bank.prototypes(RECSYS, settings, space, config, on_epoch, lambda note: advance(0, note))
        advance(note="done")
    return made


def collect(
    out: Annotated[Path, typer.Option(help="File to write; it holds personal data.")],
    work: WorkOption = WORK,
    model: Model = "",
    events: Events = "",
    last: Last = 0.0,
    window: Window = None,
    shard: Annotated[str, typer.Option(help="Only this share of the users: 3/16 is the third of sixteen.")] = "",
    user_column: UserColumn = None,
    item_column: ItemColumn = None,
    time_column: TimeColumn = None,
    as_json: console.JsonOption = False,
) -> None:
    """Sum up new events on one of several workers; `refine --statistics` merges what all of them wrote.

    Sums of different workers add up whatever the cut. What a context holds is what its worker knows of the user: give each
    worker whole users (--shard does), or the prepared log, too.
    """
    shown = task.start(RECSYS, as_json)
    from pipelines.steps import collecting

    made = collecting.collect(
        task.workspace(work),
        out,
        model=model,
        shard=collecting.Shard.parse(shard),
        source=events,
        columns={"user": user_column, "item": item_column, "time": time_column},
        window=window,
        days=last,
    )
    shown.say(f"{made.contexts:,} contexts of {made.users:,} users, assigned by {made.bank[:12]}, are in {made.path}")
    shown.result(made)
