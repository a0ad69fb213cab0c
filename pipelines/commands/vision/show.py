"""What the commands `persona vision ...` print for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines import console

if TYPE_CHECKING:
    from pipelines.steps import vision as vision_steps
    from pipelines.steps import vision_bank as vision_bank_steps
    from pipelines.steps.answers import Classified
    from pipelines.steps.evaluate import Comparison


def show_comparison(comparison: Comparison, out: console.Output) -> None:
    """The table of methods."""
    rows = []
    for row in comparison.rows:
        gain = str(row.differences["accuracy"].interval) if row.differences else "-"
        cost = [row.metrics[name] for name in ("forward_passes", "backward_passes")]
        times = row.metrics.get("ms_per_image")
        quality = [row.metrics["accuracy"], gain, row.metrics["accuracy_worst"], row.metrics["logloss"]]
        rows.append([row.method, *quality, *cost, times, f"{row.refresh_bytes:,}"])
    title = (
        f"{comparison.units:,} test devices, {comparison.seeds} seed(s), {comparison.settings['host']} host, "
        f"{comparison.settings['context_images']} unlabelled images at most"
    )
    columns = ["method", "accuracy", "against the host [95 %]", "worst tenth", "logloss", "forward", "backward"]
    out.table(title, [*columns, "ms an image", "bytes a refresh"], rows)


def show_replay(result: vision_bank_steps.Replayed, out: console.Output) -> None:
    """Accuracy by level."""
    title = f"Replay: {result.images:,} images of {result.devices:,} test devices in stream order"
    out.table(title, ["level", "accuracy"], [[level, value] for level, value in result.accuracy.items()])


def say_banked(banked: vision_bank_steps.Banked, out: console.Output) -> None:
    """One line about a version of a bank."""
    moved = banked.report.get("moved_users")
    origin = f", from {banked.parent[:12]}: {moved} device(s) changed their prototype" if banked.parent else ""
    out.say(f"Bank {banked.version[:12]}: {banked.k} prototype(s){origin}, registered as {banked.model.uri}")


def say_released(released: vision_steps.Released, out: console.Output) -> None:
    """One line about a released bundle."""
    out.say(
        f"Bundle {released.bundle}, mode {released.mode}, registered as {released.model.uri} with the alias 'candidate'"
    )


def show_answer(answer: Classified, out: console.Output) -> None:
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
