"""What the commands `persona recsys ...` show people of their results."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import console

if TYPE_CHECKING:
    from pipelines.steps import recsys as recsys_steps
    from pipelines.steps.answers import Recommended
    from pipelines.steps.evaluate import Comparison
    from pipelines.steps.workspace import Workspace

SETTINGS = "settings.json"
# Whose values a comparison under a protocol averages.
COUNTED = {"time": "users with events after the cut"}


def comparison(found: Comparison, out: console.Output) -> None:
    """Methods side by side, and in one sentence which of them are above the host."""
    rows = [
        [
            row.method,
            *(
                v
                for h in found.headlines
                for v in (row.metrics[h], str(row.differences[h].interval) if row.differences else "-")
            ),
            f"{row.seconds:.0f} s",
            f"{row.refresh_bytes:,}",
            "-" if row.refresh_seconds is None else f"{row.refresh_seconds * 1000:,.2f} ms",
            "-" if row.parameters is None else f"{row.parameters:,}",
        ]
        for row in found.rows
    ]
    columns = [c for h in found.headlines for c in (f"{found.protocol}/{h}", "against the host [95 %]")]
    title = (
        f"Protocol {found.protocol}: {found.units:,} {COUNTED.get(found.protocol, 'users')}, {found.seeds} seed(s), "
        f"{found.settings['host']} host"
    )
    out.table(title, ["method", *columns, "training", "bytes a refresh", "time a refresh", "parameters"], rows)
    for metric in found.headlines:
        out.say(verdict(found, metric))


def verdict(found: Comparison, metric: str) -> str:
    """Which methods are above the host, and which below it, with their whole intervals."""
    intervals = {row.method: row.differences[metric].interval for row in found.rows if row.differences}
    above = [name for name, interval in intervals.items() if interval.low > 0]
    below = [name for name, interval in intervals.items() if interval.high < 0]
    sides = [f"{where} the host: {', '.join(names) or 'none'}" for where, names in (("above", above), ("below", below))]
    return f"{found.protocol}/{metric}, methods whose interval is {'; '.join(sides)}"


def taken_over(space: Workspace, given: dict[str, Any], file: Path | None, out: console.Output) -> None:
    """Say in one line which settings come from the step before instead of the defaults."""
    kept = space.taken_over(given, file)
    if kept:
        values = ", ".join(f"{name} = {value}" for name, value in kept.items())
        out.say(f"Taken over from {space.root / SETTINGS}: {values} (options change them, another --work starts anew)")


def released(made: recsys_steps.Released, out: console.Output) -> None:
    """Where the model is, and what it can do."""
    bank = f"{made.prototypes} prototypes of version {made.bank[:12]}" if made.bank else "no prototypes"
    out.say(
        f"Bundle {made.bundle}, mode {made.mode}, with {bank}, registered as {made.model.uri} with the alias 'candidate'"
    )


def answered(answer: Recommended, out: console.Output) -> None:
    """The items for one history."""
    recommendation = answer.recommendation
    if recommendation.unknown:
        shown = ", ".join(map(str, recommendation.unknown[:5]))
        out.say(f"{len(recommendation.unknown)} item(s) of the history are unknown and were skipped: {shown}")
    if recommendation.fallback:
        out.say(f"Answered at level {recommendation.level}: {recommendation.fallback}")
    stands_on = "" if recommendation.prototype is None else f" {recommendation.prototype}"
    out.table(
        f"From a history of {len(answer.history)} events, level {recommendation.level}{stands_on}",
        ["rank", "item", "title", "score"],
        [[i, item.item_id, item.title or "", item.score] for i, item in enumerate(recommendation.items, start=1)],
    )


def before_after(user: str, answers: dict[str, Recommended], out: console.Output) -> None:
    """What the last five events of a user changed."""
    before, after = ([i.title or i.item_id for i in a.recommendation.items] for a in answers.values())
    new = set(after) - set(before)
    out.table(
        f"Ten items for user {user}: before and after their last five events",
        ["rank", "before", "after", ""],
        [
            [i, b, a, "new" if a in new else ""]
            for i, (b, a) in enumerate(zip_longest(before, after, fillvalue=""), start=1)
        ],
    )
