"""What the commands `persona recsys ...` show people of their results."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import console
from pipelines.commands import notes
from recsys.task import RECSYS

if TYPE_CHECKING:
    from pipelines.steps.answers import Recommended
    from pipelines.steps.bank import Banked
    from pipelines.steps.evaluate import Comparison
    from pipelines.steps.release import Released
    from pipelines.steps.workspace import Workspace

SETTINGS = "settings.json"
NEAREST = {"uauc": "UAUC", "ndcg_10": "NDCG@10"}
# Whose values a comparison under a protocol averages.
RANKED = "; whole catalogues are ranked with what users have had"
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
            notes.sent(row),
            "-" if row.refresh_seconds is None else f"{row.refresh_seconds * 1000:,.2f} ms",
            "-" if row.parameters is None else f"{row.parameters:,}",
        ]
        for row in found.rows
    ]
    columns = [c for h in found.headlines for c in (f"{found.protocol}/{h}", "against the host [95 %]")]
    title = (
        f"Protocol {found.protocol}: {found.units:,} {COUNTED.get(found.protocol, 'users')}, {found.seeds} seed(s), "
        f"{found.settings['host']} host{RANKED if found.settings.get('seen') == 'yes' and found.protocol != 'paper' else ''}"
    )
    out.table(title, ["method", *columns, "training", "bytes a refresh", "time a refresh", "parameters"], rows)
    for line in notes.under(found):
        out.say(line)
    for metric in found.headlines:
        out.say(verdict(found, metric))
    out.say(strongest(found))


def verdict(found: Comparison, metric: str) -> str:
    """Which methods are above the host, and which below it, with their whole intervals."""
    intervals = {row.method: row.differences[metric].interval for row in found.rows if row.differences}
    above = [name for name, interval in intervals.items() if interval.low > 0]
    below = [name for name, interval in intervals.items() if interval.high < 0]
    sides = [f"{where} the host: {', '.join(names) or 'none'}" for where, names in (("above", above), ("below", below))]
    return f"{found.protocol}/{metric}, methods whose interval is {'; '.join(sides)}"


def strongest(found: Comparison) -> str:
    """Which method without Persona is best by the last headline, and how the best one with it stands against that."""
    from persona.comparison import is_own

    metric = found.headlines[-1]
    ranked = sorted(found.rows, key=lambda row: row.metrics[metric], reverse=True)
    rival = next(row for row in ranked if not is_own(row.method))
    said = f"{found.protocol}/{metric}, strongest rival: {rival.method} with {rival.metrics[metric]:.4f}"
    own = next((row for row in ranked if is_own(row.method)), None)
    if own is None:
        return said
    return f"{said}; {own.method} against it {found.between(own.method, rival.method)[metric].interval}"


def taken_over(space: Workspace, given: dict[str, Any], file: Path | None, out: console.Output) -> None:
    """Say in one line which settings come from the step before instead of the defaults."""
    kept = space.taken_over(RECSYS, given, file)
    if kept:
        values = ", ".join(f"{name} = {value}" for name, value in kept.items())
        out.say(f"Taken over from {space.root / SETTINGS}: {values} (options change them, another --work starts anew)")


def released(made: Released, out: console.Output) -> None:
    """Where the model is, and what it can do."""
    bank = f"{made.prototypes} prototypes of version {made.bank[:12]}" if made.bank else "no prototypes"
    out.say(f"Bundle {made.bundle}, mode {made.mode}, with {bank}, registered as {made.model.uri} {notes.called(made)}")
    notes.held_to(made, out)


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


def bank(made: list[Banked], out: console.Output) -> None:
    """K with what decided it, and what every level reaches on validation."""
    report = made[0].report
    if report["choice"] is not None:
        rows = [
            [c["k"], c["score"], c["stability_seeds"], c["stability_halves"], "chosen" if c["k"] == report["k"] else ""]
            for c in report["choice"]["candidates"]
        ]
        columns = ["K", "validation", "stable between seeds", "between halves of users", ""]
        out.table("Prototypes alone, by their number", columns, rows)
    out.table("Validation by serving level", ["level", "score"], list(report["levels"].items()))
    for banked in made:
        out.say(
            f"Version {banked.version[:12]} ({banked.kind}, {banked.k} prototypes) is {banked.registered.uri}, alias 'candidate'"
        )


def refined(refined: Banked, out: console.Output) -> None:
    """What moved, and whether it was for the better."""
    report = refined.report
    window = report["window"]
    out.say(
        f"{window['events']:,} events of {window['users']:,} users, {window['from']} to {window['to']}"
        + (f"; {window['unknown_items']:,} of unknown items were left out" if window["unknown_items"] else "")
    )
    rows = [[j, f"{max(moved):.4g}"] for j, moved in enumerate(report["movement"])]
    out.table("Largest movement of a layer, by prototype", ["prototype", "norm"], rows)
    for metric, name in NEAREST.items():
        key = f"window/{metric}_vs_parent"
        if key in refined.metrics:
            low, high = refined.metrics[f"{key}_low"], refined.metrics[f"{key}_high"]
            out.say(
                f"{name} against its parent, on events of users who did not decide: {refined.metrics[key]:+z.4f} [{low:+z.4f}, {high:+z.4f}]"
            )
    out.say(
        f"Version {refined.version[:12]} of {refined.parent[:12]}: {refined.k} prototypes, {report['moved_users']:,} users "
        f"changed prototype; {refined.registered.uri}"
    )
    out.say(
        ("" if report["compared"] else "It was not compared, for want of events (--events, --last or --window). ")
        + "It has the alias 'candidate', and the next `release` packs it"
        if refined.served
        else "It is behind its parent on these events, so the parent goes on being served"
    )
