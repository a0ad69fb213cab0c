"""Figures that show images: devices, prototypes, and what editing changed in the streams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines.tracking.figures import HOST_COLOUR, OTHER_COLOUR, PERSONA_COLOUR
from vision.data.images import DeviceImages

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# A row of a grid of images: its name, the positions of the images, and a note to each where there is one.
Row = tuple[str, NDArray[np.int64], list[str]]

COLUMNS = 12
DEVICES = 6
BINS = 12
COLOURS = {"host": HOST_COLOUR, "edit": PERSONA_COLOUR, "prototype": OTHER_COLOUR, "basis": "#7aa874"}


def sample_of_devices(data: DeviceImages, count: int = DEVICES) -> Figure:
    """The first images of some devices, one a row."""
    chosen = np.unique(np.linspace(0, data.n_devices - 1, count).round().astype(int))
    rows: list[Row] = [(data.device_ids[d], data.positions_of(np.array([d]))[:COLUMNS], []) for d in chosen]
    return _pictures(data, rows, "Devices and their first images")


def gallery(data: DeviceImages, owners: NDArray[np.int64], labels: NDArray[np.int64], k: int) -> Figure:
    """Images of the devices whose windows came to each prototype, one prototype a row, and which groups they belong to."""
    rows: list[Row] = []
    for j in range(k):
        members = np.unique(owners[labels == j])
        groups, counts = np.unique([data.groups[d] or data.device_ids[d] for d in members], return_counts=True)
        most = ", ".join(f"{groups[i]} {counts[i]}" for i in counts.argsort()[::-1][:2])
        shown = members[np.linspace(0, len(members) - 1, COLUMNS).round().astype(int)] if len(members) else members
        # The middle of a stream: its beginning may be clean.
        positions = [int(data.offsets[d] + data.offsets[d + 1]) // 2 for d in shown]
        rows.append((f"prototype {j}: {len(members)} devices\n{most}", np.array(positions, np.int64), []))
    return _pictures(data, rows, "Prototypes: an image of each of some members")


def of_replay(data: DeviceImages, answers: pl.DataFrame, levels: Sequence[str]) -> dict[str, Figure]:
    """Accuracy along the stream, the worst and the most improved devices, by name."""
    right = [(pl.col(level) == pl.col("truth")).mean().alias(level) for level in levels]
    devices = answers.group_by("device", maintain_order=True).agg(*right)
    gain = pl.col("edit") - pl.col("host")
    orders = {
        "worst_devices": (devices.sort("edit"), "Devices with the lowest accuracy after editing"),
        "most_improved_devices": (devices.sort(gain, descending=True), "Devices that editing improved most"),
        "most_harmed_devices": (devices.sort(gain), "Devices that editing harmed most"),
    }
    found = {"accuracy_along_the_stream": along_the_stream(answers, levels)}
    for name, (ranked, title) in orders.items():
        rows = [_device_row(data, answers, row) for row in ranked.head(DEVICES).to_dicts()]
        found[name] = _pictures(data, rows, f"{title} (red: wrong after editing; blue: put right by it)")
    return found


def along_the_stream(answers: pl.DataFrame, levels: Sequence[str]) -> Figure:
    """Accuracy of every level by the place in the stream, all devices together."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    length = int(answers["time"].to_numpy().max()) + 1
    width = max(1, -(-length // BINS))
    places = answers.with_columns((pl.col("time") // width * width + width / 2).alias("place"))
    for level in levels:
        curve = places.group_by("place").agg((pl.col(level) == pl.col("truth")).mean().alias("accuracy")).sort("place")
        axes.plot(curve["place"].to_numpy(), curve["accuracy"].to_numpy(), label=level, color=COLOURS.get(level))
    axes.set(xlabel="images seen by the device", ylabel="accuracy", title="Accuracy along the stream")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def _device_row(data: DeviceImages, answers: pl.DataFrame, device: dict[str, Any]) -> Row:
    """The images of a device on which host and edit differ first, then others."""
    own = answers.filter(pl.col("device") == device["device"])
    own = own.with_columns((pl.col("host") != pl.col("edit")).alias("changed"))
    own = own.sort("changed", descending=True, maintain_order=True).head(COLUMNS)
    notes = []
    for row in own.to_dicts():
        mark = "!" if row["edit"] != row["truth"] else "+" if row["host"] != row["truth"] else ""
        notes.append(f"{mark}{row['truth']}: {row['host']} > {row['edit']}")
    name = f"{data.device_ids[device['device']]}\nhost {device['host']:.2f}, edit {device['edit']:.2f}"
    return name, own["position"].to_numpy().astype(np.int64), notes


def _pictures(data: DeviceImages, rows: Sequence[Row], title: str) -> Figure:
    """A grid of images, one row with its name, and a note above each image where there is one."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 + 0.8 * COLUMNS, 0.6 + 1.1 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), COLUMNS, squeeze=False)
    for axes, (name, positions, notes) in zip(grid, rows, strict=True):
        for column, panel in enumerate(axes):
            panel.set_axis_off()
            if column < len(positions):
                _picture(panel, data, int(positions[column]), notes[column] if notes else "")
        axes[0].text(-0.15, 0.5, name, transform=axes[0].transAxes, ha="right", va="center", fontsize=7)
    figure.suptitle(title, fontsize=9)
    return figure


def _picture(axes: Axes, data: DeviceImages, position: int, note: str) -> None:
    pixels = data.pixels[position]
    axes.imshow(pixels[..., 0] if pixels.shape[2] == 1 else pixels, cmap="gray", vmin=0, vmax=255)
    if note:
        colour = {"!": "#b03030", "+": "#2050a0"}.get(note[0], "black")
        axes.set_title(note.lstrip("!+"), fontsize=5, color=colour, pad=1)
