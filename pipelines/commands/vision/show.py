"""What the commands `persona vision ...` print for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipelines import console
from pipelines.commands import notes

if TYPE_CHECKING:
    from pipelines.steps.answers import Classified
    from pipelines.steps.bank import Banked
    from pipelines.steps.evaluate import Comparison
    from pipelines.steps.release import Released
    from vision.replay import Replayed


def comparison(found: Comparison, out: console.Output) -> None:
    """The table of methods."""
    rows = []
    for row in found.rows:
        gain = str(row.differences["accuracy"].interval) if row.differences else "-"
        cost = [row.metrics[name] for name in ("forward_passes", "backward_passes")]
        times = row.metrics.get("ms_per_image")
        quality = [row.metrics["accuracy"], gain, row.metrics["accuracy_worst"], row.metrics["logloss"]]
        rows.append([row.method, *quality, *cost, times, notes.sent(row)])
    title = (
        f"{found.units:,} test devices, {found.seeds} seed(s), {found.settings['host']} host, "
        f"{found.settings['context_images']} unlabelled images at most"
    )
    columns = ["method", "accuracy", "against the host [95 %]", "worst tenth", "logloss", "forward", "backward"]
    out.table(title, [*columns, "ms an image", "bytes a refresh"], rows)
    for line in notes.under(found):
        out.say(line)


def replayed(result: Replayed, out: console.Output) -> None:
    """Accuracy by level."""
    title = f"Replay: {result.images:,} images of {result.devices:,} test devices in stream order"
    out.table(title, ["level", "accuracy"], [[level, value] for level, value in result.accuracy.items()])


def banked(made: Banked, out: console.Output) -> None:
    """One line about a version of a bank."""
    moved = made.report.get("moved_users")
    origin = f", from {made.parent[:12]}: {moved} device(s) changed their prototype" if made.parent else ""
    out.say(f"Bank {made.version[:12]}: {made.k} prototype(s){origin}, registered as {made.registered.uri}")


def as_json(made: Banked) -> dict[str, Any]:
    """A version of a bank as ``--json`` has always printed it: the registered version is called ``model`` there, too."""
    return {**vars(made), "model": made.registered}


def released(made: Released, out: console.Output) -> None:
    """One line about a released bundle."""
    out.say(f"Bundle {made.bundle}, mode {made.mode}, registered as {made.model.uri} {notes.called(made)}")
    notes.held_to(made, out)


def answered(answer: Classified, out: console.Output) -> None:
    """The classes of images."""
    found = answer.classification
    for line in answer.skipped:
        out.say(f"skipped {line}")
    title = f"{len(answer.images)} images, level {found.level}" + (f" ({found.fallback})" if found.fallback else "")
    truth = answer.truth or [""] * len(answer.images)
    rows = [
        [image, name, max(row), true]
        for image, name, row, true in zip(answer.images, found.classes, found.probabilities, truth, strict=True)
    ]
    out.table(title, ["image", "class", "probability", "true class"], rows)
