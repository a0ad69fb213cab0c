"""What stands in and under the tables of both tasks: what a method turned out to be, what it costs, what a release is held to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipelines import console

if TYPE_CHECKING:
    from persona.comparison import Measured, Row
    from pipelines.steps.evaluate import Comparison
    from pipelines.steps.release import Released

# Settings that validation chooses, as people read them; a mode is a name with the value 1.
NUMBERS = {"gate": "gate {:g}", "prototypes": "{:.0f} prototypes", "share": "share {:g}"}


def sent(row: Row) -> str:
    """Bytes that a device receives with each refresh, and those of a body that it has to fetch once before."""
    return f"{row.refresh_bytes:,}" + (f" + {row.body_bytes:,} once" if row.body_bytes else "")


def under(found: Comparison) -> list[str]:
    """Lines under a comparison: what ``persona`` is, who applies no edits, and who kept its start."""
    lines = []
    for row in found.rows:
        measured = found.of(row.method)
        what = [*dict.fromkeys(filter(None, (_what(row.method, m.chosen) for m in measured)))]
        if what:
            lines.append(f"{row.method}: {' | '.join(what)}")
        starts = sum(_kept_start(m) for m in measured)
        if starts:
            often = "" if starts == len(measured) else f" with {starts} of {len(measured)} seeds"
            lines.append(f"{row.method} kept its start{often}: no epoch was better on validation")
    return lines


def called(made: Released) -> str:
    """Whether a version is the candidate, as the end of a sentence."""
    return "with the alias 'candidate'" if made.candidate else "and not called candidate"


def held_to(made: Released, out: console.Output) -> None:
    """What the gate found, if it found anything."""
    if made.gate != "passed":
        out.say(f"Gate: {made.gate}")


def _what(method: str, chosen: Mapping[str, float]) -> str:
    """What validation made of a method; of others than ``persona`` only that they apply no edits."""
    nothing = "no edits (gate 0): it is its host" if chosen.get("gate") == 0 else ""
    if method != "persona":
        return nothing
    modes = [f"mode {name}" for name in chosen if name not in NUMBERS]
    numbers = [text.format(chosen[name]) for name, text in NUMBERS.items() if name in chosen and not nothing]
    return ", ".join([*modes, *([nothing] if nothing else numbers)])


def _kept_start(measured: Measured) -> bool:
    """Whether it was trained and none of its epochs was better than the weights it started with."""
    return measured.epochs > 0 and measured.best_epoch < 0
