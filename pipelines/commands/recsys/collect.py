"""The command `persona recsys collect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines import console
from pipelines.commands.recsys.main import WORK, ItemColumn, TimeColumn, UserColumn, WorkOption, start, workspace

EXAMPLES = (
    "Examples:\n\n"
    "persona recsys collect --events part-07.parquet --out stats/07.safetensors    a worker that holds a part of the users\n\n"
    "persona recsys collect --last 30 --shard 3/16 --out stats/3.safetensors       a worker that reads the shared log"
)


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command(epilog=EXAMPLES)(collect)


def collect(
    out: Annotated[Path, typer.Option(help="File to write; it holds personal data.")],
    work: WorkOption = WORK,
    model: Annotated[str, typer.Option(help="A bundle folder or a registered model; the workspace's by default.")] = "",
    events: Annotated[str, typer.Option(help="Log of new events.")] = "",
    last: Annotated[float, typer.Option(min=0, help="Days at the end of the prepared log.")] = 0.0,
    window: Annotated[
        tuple[str, str] | None, typer.Option(metavar="START END", help="Dates or seconds since 1970, END left out.")
    ] = None,
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
    _, shown = start(as_json)
    from pipelines.steps import collecting

    made = collecting.collect(
        workspace(work),
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
