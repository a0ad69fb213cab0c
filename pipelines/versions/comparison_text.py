"""A comparison in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.console import Output
from pipelines.versions.difference import UNDECIDED, Difference, Gain

METRICS_SHOWN = 12


def show(difference: Difference, kind: str, out: Output) -> None:
    """Print a comparison.

    Args:
        difference: what there is to say.
        kind: what a unit is, for example ``user``.
        out: where to.
    """
    out.say(f"A: {difference.a}    B: {difference.b}")
    for line in (*difference.verdict, *difference.remarks):
        out.say(f"  {line}")
    if difference.overall:
        _gains(f"Gain of B over A, all {kind}s", difference.overall, out)
        _gains("By segment", difference.segments, out)
        _gains("By what happened to them", difference.causes, out)
    else:
        shared = [(name, a, b) for name, a, b in difference.metrics if a is not None and b is not None]
        out.table("Metrics of both", ["metric", "A", "B"], shared[:METRICS_SHOWN])
    if difference.settings:
        out.table("Settings that differ", ["setting", "A", "B"], difference.settings)
    if difference.movement is not None:
        movement = difference.movement
        rows = [
            [j, movement.origin[j], f"{movement.members[j]:,.0f}", *(f"{100 * share:.2f} %" for share in row)]
            for j, row in enumerate(movement.shares)
        ]
        columns = ["prototype of B", "from A's", "members", *movement.layers]
        out.table("How far prototypes moved, of the layer's own weights", columns, rows)
    if difference.risen or difference.fallen:
        rows = [
            [
                shift.title or shift.item,
                f"{100 * shift.a:.1f} %",
                f"{100 * shift.b:.1f} %",
                "rose" if shift.change > 0 else "fell",
            ]
            for shift in (*difference.risen[:5], *difference.fallen[:5])
        ]
        out.table("In which share of the answers", ["item", "A", "B", ""], rows)
    for example in difference.examples[:1]:
        rows = [
            [rank, old, new, "new" if new in example.new else ""]
            for rank, (old, new) in enumerate(zip(example.before, example.after, strict=False), start=1)
        ]
        out.table(f"{kind.capitalize()} {example.unit}, after {example.input}", ["rank", "A", "B", ""], rows)


def _gains(title: str, gains: Sequence[Gain], out: Output) -> None:
    if not gains:
        return
    rows = [
        [
            gain.metric,
            gain.group or "all",
            gain.units,
            gain.a,
            gain.b,
            str(gain.gain),
            "" if gain.better == UNDECIDED else gain.better,
        ]
        for gain in gains
    ]
    out.table(title, ["metric", "for", "how many", "A", "B", "gain [95 %]", "better"], rows)
