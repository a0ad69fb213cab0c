"""Self-contained HTML pages: one file, no scripts, readable by keyboard, on paper, in light and dark."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipelines import console
from pipelines.versions.difference import UNDECIDED, Difference, Gain

SECTIONS = {
    "overall": "Over all",
    "segments": "For which",
    "causes": "Why",
    "moves": "Who changed prototype",
    "movement": "How far prototypes moved",
    "items": "What rose and fell",
    "examples": "Before and after",
    "settings": "Settings",
    "metrics": "All metrics",
}


def render(template: str, **values: Any) -> str:
    """A page of ``pipelines/templates``; values are escaped."""
    environment = Environment(
        loader=PackageLoader("pipelines"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template(template).render(**values)


def comparison(difference: Difference, kind: str) -> str:
    """The page of ``persona compare``.

    Args:
        difference: what there is to say.
        kind: what a unit is, for example ``user``.
    """
    there = {name: bool(getattr(difference, name, None)) for name in SECTIONS}
    there["items"] = bool(difference.risen or difference.fallen)
    gains = [*difference.overall, *difference.segments, *difference.causes]
    ends = [abs(end) for gain in gains for end in (gain.gain.low, gain.gain.high)]
    shares = [share for row in difference.movement.shares for share in row] if difference.movement else []
    return render(
        "comparison.html",
        d=difference,
        kind=kind,
        sections=[(name, text) for name, text in SECTIONS.items() if there[name]],
        scale=max(ends, default=0.0) or 1.0,
        farthest=max(shares, default=0.0) or 1.0,
        tone=_tone,
        number=console.cell,
    )


def _tone(gain: Gain) -> str:
    """The name of the colour of a gain's bar."""
    return "soft" if gain.better == UNDECIDED else "good" if gain.better == "B" else "bad"
