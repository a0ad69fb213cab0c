"""Figures that runs leave in MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from persona.comparison import Row, is_own

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HOST_COLOUR, OTHER_COLOUR, PERSONA_COLOUR = "#444444", "#8aa4c8", "#c8553d"


def learning_curves(histories: Mapping[str, Sequence[Mapping[str, float]]], monitor: str, protocol: str) -> Figure:
    """Loss and validation metric per epoch, one line a training."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, history in histories.items():
        epochs = [row["epoch"] for row in history]
        left.plot(epochs, [row["loss"] for row in history], label=name)
        right.plot(epochs, [row[monitor] for row in history], label=name)
    left.set(xlabel="epoch", ylabel="training loss", title="Training loss")
    right.set(xlabel="epoch", ylabel=monitor, title=f"Validation, protocol {protocol}")
    right.legend(fontsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return figure


def method_comparison(
    rows: Sequence[Row], metrics: Sequence[str], protocol: str, seeds: int, units: str = "users"
) -> Figure:
    """Difference of every method to the host, with its interval over ``units``, one panel a metric."""
    from matplotlib.figure import Figure

    others = [row for row in rows if row.differences]
    figure = Figure(figsize=(5 * len(metrics), 1.5 + 0.35 * len(others)), layout="constrained")
    for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        _differences(axes, others, metric)
        host = next(row.metrics[metric] for row in rows if not row.differences)
        axes.set(xlabel=f"change of {metric} against the host ({host:.4f})", title=f"{protocol}/{metric}")
    figure.suptitle(f"Mean of {seeds} seed{'s' * (seeds > 1)}, 95 % bootstrap interval over {units}", fontsize=9)
    return figure


def _differences(axes: Axes, rows: Sequence[Row], metric: str) -> None:
    for place, row in enumerate(reversed(rows)):
        interval = row.differences[metric].interval
        colour = PERSONA_COLOUR if is_own(row.method) else OTHER_COLOUR
        axes.plot([interval.low, interval.high], [place, place], color=colour, linewidth=2.5)
        axes.plot(interval.mean, place, "o", color=colour)
    axes.axvline(0, color=HOST_COLOUR, linewidth=1)
    axes.set_yticks(range(len(rows)), [row.method for row in reversed(rows)])
    axes.grid(axis="x", alpha=0.3)
