"""What there is to say about two versions: gains, moves, movement, shifts, examples, and the verdict on them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from persona.statistics import Interval

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
    sentences = []
    for better, label in (("B", found.b), ("A", found.a)):
        won = [gain for gain in found.overall if gain.better == better]
        if won:
            sentences.append(f"{label} is better: " + "; ".join(f"{gain.metric} {_by(gain)}" for gain in won) + ".")
    if not sentences:
        sentences.append(
            f"Neither is better beyond doubt over all {found.overall[0].units:,} {kind}s: every interval holds zero."
        )
    for label, gains in (("By segment", found.segments), ("By what happened to them", found.causes)):
        decided = [gain for gain in gains if gain.better != UNDECIDED]
        if decided:
            shown = "; ".join(
                f"{gain.group}: {found.b if gain.better == 'B' else found.a} by {gain.metric} {_by(gain)}"
                for gain in decided
            )
            sentences.append(f"{label}: {shown}.")
    if found.moves is not None:
        sentences.append(f"{found.moves.moved:,} of {found.moves.units:,} {kind}s changed prototype.")
    return sentences


def _by(gain: Gain) -> str:
    """The size of a gain whose direction is said already."""
    interval = gain.gain if gain.better == "B" else Interval(-gain.gain.mean, -gain.gain.high, -gain.gain.low)
    return str(interval)
