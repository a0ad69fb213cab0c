"""What there is to say about two versions: gains, moves, movement, shifts, examples, and the verdict on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from persona.bootstrap import Interval

UNDECIDED = "undecided"


@dataclass(frozen=True)
class Gain:
    """What a group of units gains from A to B by one metric.

    Attributes:
        metric: whole name.
        group: empty for all; a segment, or what happened to the units.
        units: how many.
        a: mean of A.
        b: mean of B.
        gain: in the direction of better, with its interval over units.
        better: ``A``, ``B`` or ``undecided``.
    """

    metric: str
    group: str
    units: int
    a: float
    b: float
    gain: Interval
    better: str


@dataclass(frozen=True)
class Moves:
    """Who changed prototype. ``flow`` (K of A, K of B) counts units."""

    moved: int
    units: int
    flow: list[list[int]]


@dataclass(frozen=True)
class Movement:
    """How far prototypes moved: (K of B, L) Frobenius norms as shares of the layer's own weights; ``origin`` (K of B,) in A."""

    layers: list[str]
    shares: list[list[float]]
    origin: list[int]
    members: list[float]


@dataclass(frozen=True)
class Shift:
    """An item, or class, and in which share of the answers it is."""

    item: str
    title: str
    a: float
    b: float

    @property
    def change(self) -> float:
        """Share of B minus share of A."""
        return self.b - self.a


@dataclass(frozen=True)
class Example:
    """One unit's answers before and after, best first."""

    unit: str
    segment: str
    input: str
    before: list[str]
    after: list[str]

    @property
    def new(self) -> set[str]:
        """Answers of B that A did not give."""
        return set(self.after) - set(self.before)


@dataclass(frozen=True)
class Difference:
    """All that ``persona compare`` shows; see the classes above.

    Attributes:
        a: label of the first.
        b: label of the second.
        verdict: which is better and for whom, in a few sentences.
        remarks: what could not be compared, and why.
        settings: parameters that differ: (name, A, B).
        metrics: plain metrics of both: (name, A, B).
        overall: gains of all units.
        segments: gains by segment.
        causes: gains of those who changed prototype and those who kept theirs, and by prototype of B.
        moves: who changed prototype.
        movement: how far prototypes moved.
        risen: items that more units are shown.
        fallen: items that fewer units are shown.
        examples: answers before and after, those that changed most first.
    """

    a: str
    b: str
    verdict: list[str]
    remarks: list[str]
    settings: list[tuple[str, str, str]]
    metrics: list[tuple[str, float | None, float | None]]
    overall: list[Gain] = field(default_factory=list)
    segments: list[Gain] = field(default_factory=list)
    causes: list[Gain] = field(default_factory=list)
    moves: Moves | None = None
    movement: Movement | None = None
    risen: list[Shift] = field(default_factory=list)
    fallen: list[Shift] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def verdict(found: Difference, kind: str) -> list[str]:
    """Which version is better, for whom and why, in sentences that stand on the intervals."""
    if not found.overall:
        return ["The two cannot be judged unit by unit; see the remarks."]
    a, b = _names(found.a, found.b)
    count = f"{found.overall[0].units:,} {kind}s"
    won = _won(found.overall, a, b)
    sentences = [
        f"Over all {count}: {won}."
        if won
        else f"Neither is better beyond doubt over all {count}: every interval holds zero."
    ]
    for gains, told in ((found.segments, "{group} {kind}s"), (found.causes, "{kind}s that {group}")):
        sentences += [
            f"{told.format(group=group, kind=kind).capitalize()}: {won}."
            for group in dict.fromkeys(gain.group for gain in gains)
            if (won := _won([gain for gain in gains if gain.group == group], a, b))
        ]
    if found.moves is not None:
        sentences.append(f"{found.moves.moved:,} of {found.moves.units:,} {kind}s changed prototype.")
    return sentences


def _names(a: str, b: str) -> tuple[str, str]:
    """What to call the two: versions of one model by their numbers alone."""
    parts = [label.rpartition("/") for label in (a, b)]
    if parts[0][0] and parts[0][0] == parts[1][0]:
        return f"version {parts[0][2]}", f"version {parts[1][2]}"
    return a, b


def _won(gains: Sequence[Gain], a: str, b: str) -> str:
    """Who is better by which metrics; empty where nothing is beyond doubt."""
    return "; ".join(
        f"{name} is better by " + ", ".join(f"{gain.metric} {_by(gain)}" for gain in own)
        for name, own in (
            (side, [gain for gain in gains if gain.better == letter]) for side, letter in ((b, "B"), (a, "A"))
        )
        if own
    )


def _by(gain: Gain) -> str:
    """The size of a gain whose direction is said already."""
    interval = gain.gain if gain.better == "B" else Interval(-gain.gain.mean, -gain.gain.high, -gain.gain.low)
    return str(interval)
