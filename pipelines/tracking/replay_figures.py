"""The figure of a replayed stream: how well every policy keeps up, and what it sends."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from pipelines.tracking.figures import HOST_COLOUR

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    "edits": "#c8553d",
    "prototypes": "#e3a857",
    "refined": "#4f7942",
    "refined_checked": "#93b48b",
    "finetune_adaptive": "#8aa4c8",
    "finetune_all": "#3b5b92",
}


def stream(report: Mapping[str, Any], metrics: tuple[str, ...]) -> Figure:
    """Change against the host in every window with its interval, a panel a metric; and bytes sent so far."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6 * (len(metrics) + 1), 4.5), layout="constrained")
    *panels, last = figure.subplots(1, len(metrics) + 1)
    for axes, metric in zip(panels, metrics, strict=True):
        _gains(axes, report, metric)
    _bytes(last, report)
    for axes in (*panels, last):
        if report["scenario"] != "none":
            axes.axvline(report["shift"], color=HOST_COLOUR, linewidth=1, linestyle=":")
        axes.set_xlabel("window")
        axes.grid(alpha=0.3)
    figure.legend(*last.get_legend_handles_labels(), loc="outside lower center", ncols=len(COLOURS), fontsize=8)
    figure.suptitle(
        f"Stream after the cut, scenario {report['scenario']}: 95 % bootstrap interval over the users of a window",
        fontsize=9,
    )
    return figure


def _gains(axes: Axes, report: Mapping[str, Any], metric: str) -> None:
    axes.axhline(0, color=HOST_COLOUR, linewidth=1)
    for place, (name, colour) in enumerate(COLOURS.items()):
        rows = [row[f"{metric}_vs_host"] for row in report["policies"][name]["windows"]]
        # Side by side, so that intervals do not hide each other.
        x = [index + 0.1 * (place - len(COLOURS) / 2) for index in range(len(rows))]
        mean = [row["mean"] for row in rows]
        reach = [[row["mean"] - row["low"] for row in rows], [row["high"] - row["mean"] for row in rows]]
        axes.errorbar(x, mean, reach, color=colour, label=name, marker="o", markersize=3, linewidth=1, elinewidth=0.7)
    axes.set(ylabel=f"change of {metric} against the host", title=metric)


def _bytes(axes: Axes, report: Mapping[str, Any]) -> None:
    for name, colour in COLOURS.items():
        sent = [row["bytes_sent"] for row in report["policies"][name]["windows"]]
        axes.plot(list(accumulate(sent)), color=colour, label=name, marker="o", markersize=3)
    axes.set(yscale="symlog", ylabel="bytes sent so far, all devices", title="Communication")
