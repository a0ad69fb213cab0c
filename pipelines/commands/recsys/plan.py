"""The command `persona recsys plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines import console

EXAMPLES = (
    "Examples:\n\n"
    "persona recsys plan --users 100000000 --items 10000000 --events 1000000000 --gpus 8 --price 2.5\n\n"
    "persona recsys plan --users 100000000 --items 1000000000 --events 10000000000 --gpus 16 --rows-per-second 50000"
)


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command(epilog=EXAMPLES)(plan)


def plan(
    users: Annotated[int, typer.Option(min=1, help="Users of the log.")],
    items: Annotated[int, typer.Option(min=1, help="Items: rows of the table.")],
    events: Annotated[int, typer.Option(min=1, help="Events of the log.")],
    dimension: Annotated[int, typer.Option(min=1, help="Width of the item table.")] = 64,
    preset: Annotated[str, typer.Option(help="paper (contexts of 10 items) or modern (50).")] = "modern",
    epochs: Annotated[int, typer.Option(min=1, help="Over all events.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows a device and step.")] = 1024,
    gpus: Annotated[int, typer.Option(min=1, help="Devices: GPUs, or with --cpu processes.")] = 1,
    cpu: Annotated[bool, typer.Option("--cpu", help="Plan for processes on CPUs.")] = False,
    memory: Annotated[float, typer.Option(min=0.1, help="GiB of one device.")] = 80.0,
    per_node: Annotated[int, typer.Option(min=1, help="Devices of one machine.")] = 8,
    price: Annotated[float, typer.Option(min=0, help="Of a device for an hour.")] = 0.0,
    rows_per_second: Annotated[
        float, typer.Option(min=0, help="Training rows of one device; 0 takes what one CPU core was measured at.")
    ] = 0.0,
    efficiency: Annotated[float, typer.Option(min=0.01, max=1, help="Share of its rate a device keeps.")] = 1.0,
    measured: Annotated[Path, typer.Option(help="Folder of measured constants.")] = Path("docs/evidence"),
    as_json: console.JsonOption = False,
) -> None:
    """Say what memory, time and money a log of this size will take, and how its tables are sharded.

    docs/scale.md tells how far such plans agree with what was measured.
    """
    from persona import runtime

    runtime.configure()
    from recsys import planning

    lines = planning.plan(
        planning.Workload(users, items, events, dimension, preset, epochs, batch_size),
        planning.Cluster(gpus, memory, "cpu" if cpu else "cuda", per_node, price, rows_per_second, efficiency),
        measured,
    )
    out = console.Output(as_json)
    rows = [
        [line.what, f"{line.value:,.4g}" if line.value < 1000 else f"{line.value:,.0f}", line.unit, line.basis]
        for line in lines
    ]
    out.table(f"{users:,} users, {items:,} items, {events:,} events", ["what", "value", "unit", "from"], rows)
    out.result(lines)
