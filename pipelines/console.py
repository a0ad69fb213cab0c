"""What commands show, and how they end.

With ``--json`` a command prints one JSON document on stdout and everything meant for people on stderr; without it, tables
and remarks go to stdout. Progress bars always go to stderr. Exit codes: 0 done, 1 a bug (with its traceback) or a check
that failed, 2 something the user can mend (one sentence), 130 interrupted.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from persona.errors import PersonaError

JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document on stdout.")]

# A pipe has no width; tables should not be squeezed into the 80 columns that rich assumes then.
WIDTH_WITHOUT_TERMINAL = 160
SECONDS_BETWEEN_LINES = 10.0
INTERRUPTED = 130


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else WIDTH_WITHOUT_TERMINAL, highlight=False)


class Output:
    """Where a command prints: results for people or, with ``--json``, for machines.

    Example::

        out = Output(as_json)
        out.table("Methods", ["method", "UAUC"], [["host", 0.9038], ["editor", 0.9072]])
        out.result({"host": 0.9038, "editor": 0.9072})
    """

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self._people = _console(stderr=as_json)

    def say(self, text: str) -> None:
        """Print a line for people, which is never broken, so that commands and paths in it can be copied."""
        self._people.print(Text(text), soft_wrap=True)

    def show(self, drawn: RenderableType) -> None:
        """Print what rich draws, for example a tree."""
        self._people.print(drawn)

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Print a table for people: numbers to the right, with four decimals, and a dash for what is missing."""
        cells = [list(row) for row in rows]
        table = Table(title=title, title_justify="left", title_style="bold")
        for index, column in enumerate(columns):
            numbers = all(isinstance(row[index], (int, float)) or row[index] is None for row in cells)
            table.add_column(column, justify="right" if numbers else "left", overflow="fold")
        for row in cells:
            table.add_row(*(value if isinstance(value, Text) else Text(cell(value)) for value in row))
        self._people.print(table)

    def result(self, payload: Any) -> None:
        """Print ``payload`` as the JSON document of the command; nothing without ``--json``."""
        if self.as_json:
            print(to_json(payload))


def cell(value: Any) -> str:
    """How a table shows ``value``."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def to_json(value: Any) -> str:
    """Strict JSON of mappings, sequences, dataclasses, paths, arrays; numbers that are not finite become null."""
    return json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    """``value`` made of what JSON knows."""
    match _opened(value):
        case float() as number:
            return number if math.isfinite(number) else None
        case None | bool() | int() | str() as scalar:
            return scalar
        case Mapping() as mapping:
            return {str(key): _plain(item) for key, item in mapping.items()}
        case Iterable() as items:
            return [_plain(item) for item in items]
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _opened(value: Any) -> Any:
    """One layer of a path, dataclass, pydantic model, array or tensor turned into Python's own types."""
    if isinstance(value, Path):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    for method in ("model_dump", "tolist"):
        if hasattr(value, method):
            return getattr(value, method)()
    return value


class Advance(Protocol):
    """Says that ``steps`` more are done, and how it looks, for example ``uauc .9038``."""

    def __call__(self, steps: int = 1, note: str = "") -> None:
        """Move the bar."""


class _Clock:
    """How long something has taken, and how long it will still take if it goes on as it did so far.

    Args:
        total: steps.
        started: when it began (``time.monotonic``), if that was before now.
    """

    def __init__(self, total: int, started: float | None) -> None:
        self.total, self.done = total, 0
        self.start = self.told = time.monotonic() if started is None else started

    def advance(self, steps: int) -> float:
        """``steps`` more are done now; seconds since the start."""
        self.done += steps
        now = time.monotonic()
        if steps:
            self.told = now
        return now - self.start

    def left(self) -> float | None:
        """Seconds from now; ``None`` while nothing is done, which says nothing of them."""
        if not self.done:
            return None
        each = (self.told - self.start) / self.done
        return max(0.0, each * max(self.total - self.done, 0) - (time.monotonic() - self.told))


class _Left(ProgressColumn):
    """What is left of a bar, over all of its steps; rich's own column forgets steps that are longer than half a minute."""

    def __init__(self, clock: _Clock, at_most: str) -> None:
        super().__init__()
        self.clock, self.at_most = clock, at_most

    def render(self, task: Task) -> Text:
        """Hours, minutes and seconds."""
        left = self.clock.left()
        return Text("left -:--:--" if left is None else f"left{self.at_most} {timedelta(seconds=round(left))}")


@contextmanager
def progress(description: str, total: int, *, started: float | None = None, at_most: bool = False) -> Iterator[Advance]:
    """A bar with elapsed and remaining time on stderr; a line every ten seconds where that is no terminal.

    Args:
        description: of what is done.
        total: steps.
        started: when it began (``time.monotonic``), if that was before now.
        at_most: it may end before all steps are done.

    Example::

        with progress("host", config.epochs) as advance:
            fit(..., on_epoch=lambda metrics: advance(note=f"uauc {metrics['uauc']:.4f}"))
    """
    clock, limit = _Clock(total, started), " at most" if at_most else ""
    if not sys.stderr.isatty():
        yield _lines(description, clock, limit)
        return
    columns = [
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        _Left(clock, limit),
        TextColumn("[dim]{task.fields[note]}"),
    ]
    with Progress(*columns, console=_console(stderr=True)) as bar:
        task = bar.add_task(description, total=total, note="")
        bar.tasks[0].start_time = bar.get_time() - clock.advance(0)

        def advance(steps: int = 1, note: str = "") -> None:
            clock.advance(steps)
            bar.update(task, advance=steps, note=note)

        yield advance


def _lines(description: str, clock: _Clock, limit: str) -> Advance:
    """Progress for log files: a line at the end, and at most one every ten seconds before."""
    last = time.monotonic()

    def advance(steps: int = 1, note: str = "") -> None:
        nonlocal last
        seconds, now = clock.advance(steps), time.monotonic()
        if not (steps and clock.done >= clock.total) and now - last < SECONDS_BETWEEN_LINES:
            return
        last = now
        left = clock.left()
        said = "" if left is None else f", {left:.0f} s left{limit if clock.done < clock.total else ''}"
        print(f"{description} {clock.done}/{clock.total}, {seconds:.0f} s{said}  {note}".rstrip(), file=sys.stderr)

    return advance


def fail(error: PersonaError, *, as_json: bool = False) -> int:
    """Print what the user can mend, and return the exit code that says so."""
    _fail(str(error), type(error).__name__, as_json)
    return error.exit_code


def _fail(sentence: str, kind: str, as_json: bool) -> None:
    _console(stderr=True).print(Text.assemble(("Error: ", "bold red"), (sentence, "red")), soft_wrap=True)
    if as_json:
        print(to_json({"error": sentence, "kind": kind}))


def run(
    app: typer.Typer,
    arguments: Sequence[str] | None = None,
    *,
    name: str = "persona",
    on_failure: Callable[[str], None] = lambda sentence: None,
) -> int:
    """Run a command line and return its exit code; bugs leave as the exceptions they are.

    Args:
        app: the commands; one that returns a number ends with that exit code.
        arguments: those of the process if left out.
        name: of the program in its help.
        on_failure: told the sentence of what the user can mend, besides printing it.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in given
    try:
        code = typer.main.get_command(app).main(args=given, prog_name=name, standalone_mode=False)
        sys.stdout.flush()
    except PersonaError as error:
        on_failure(str(error))
        return fail(error, as_json=as_json)
    except typer.TyperException as error:
        on_failure(error.format_message())
        return _misused(error, as_json)
    except typer.Abort:
        code = INTERRUPTED
    except BrokenPipeError:  # `persona ... | head`: nobody reads any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if code == INTERRUPTED:
        print("interrupted", file=sys.stderr)
    return code if isinstance(code, int) else 0


def _misused(error: typer.TyperException, as_json: bool) -> int:
    """An unknown command or option, or a value it does not take: say so, with the usage and the nearest name."""
    message, context = error.format_message(), getattr(error, "ctx", None)
    if message and context is not None:
        print(context.get_usage(), file=sys.stderr)
        print(f"Try '{context.command_path} --help' for help.", file=sys.stderr)
    if message:  # else the help was shown, as no command was given
        _fail(message, "UsageError", as_json)
    return error.exit_code
