"""Options that several commands `persona recsys ...` have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from pipelines.commands.options import with_settings
from recsys.task import RECSYS

DATA_HELP = "A CSV, TSV, .inter or Parquet file, a folder of Parquet parts, or movielens-small, ml-100k."

DataOption = Annotated[str, typer.Option("--data", help=DATA_HELP)]
UserColumn = Annotated[str | None, typer.Option("--user-column", help="Column of user ids, if its name does not tell.")]
ItemColumn = Annotated[str | None, typer.Option("--item-column", help="Column of item ids.")]
TimeColumn = Annotated[str | None, typer.Option("--time-column", help="Column of times or positions.")]
TitleColumn = Annotated[str | None, typer.Option("--title-column", help="Column of item titles.")]
Baskets = Annotated[
    bool | None,
    typer.Option("--baskets/--no-baskets", help="Events of a user at one time are a set; found out by default."),
]
MinEvents = Annotated[int, typer.Option(min=1, help="Leave out users and items with fewer events, counted once.")]
Protocols = Annotated[str, typer.Option(help="Comma-separated protocols to evaluate under; the first one is released.")]
Events = Annotated[str, typer.Option(help="Log of new events.")]
Last = Annotated[float, typer.Option(min=0, help="Days at the end of the prepared log.")]
Window = Annotated[
    tuple[str, str] | None, typer.Option(metavar="START END", help="Dates or seconds since 1970, END left out.")
]

LevelOption = Annotated[
    str,
    typer.Option(
        help="edit: the whole edit; basis: prototype and remaining edit in 64 bytes; prototype: one byte; host: the same "
        "model for everybody."
    ),
]

SeenOption = Annotated[
    bool | None,
    typer.Option(
        "--seen/--no-seen", help="Whether items of the history may be recommended again; as released by default."
    ),
]

WORK = RECSYS.work


def with_recsys_settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give ``command(given, ...)`` one option for every setting of a recommender."""
    return with_settings(command, RECSYS.config)
