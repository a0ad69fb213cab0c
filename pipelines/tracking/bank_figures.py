"""Figures of prototype banks: where the codes lie, how K was chosen, what a refinement moved, and who went where.

Shapes: N contexts, L layers, d code width, K prototypes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from persona.prototypes import Choice, Server

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN_CONTEXTS = 4000
CHOSEN_COLOUR, LINE_COLOUR, MUTED = "#c8553d", "#3d6a9e", "#888888"
# Cells above this share of the darkest colour have white numbers.
_DARK = 0.6


def prototype_map(server: Server, codes: Tensor, seed: int = 0) -> Figure:
    """Codes (N, L, d) in the plane in which their edits differ most, coloured by prototype; rings are the prototypes."""
    from matplotlib.figure import Figure

    rows = torch.randperm(len(codes), generator=torch.Generator().manual_seed(seed))[:SHOWN_CONTEXTS]
    metric, shown = server.assigner.metric, codes[rows]
    points = metric.points(shown).double()
    centre = points.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(points.T).reshape(points.shape[1], -1))
    axes_of_plane = vectors.flip(1)[:, :2]
    share = values.flip(0)[:2] / values.sum().clamp_min(1e-300)
    flat = ((points - centre) @ axes_of_plane).numpy()
    places = metric.nearest_codes(server.bank.prototypes)
    rings = ((metric.points(places).double() - centre) @ axes_of_plane).numpy()
    labels = server.assign(shown).numpy()
    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.subplots()
    colours = _colours(len(server.bank))
    for j in range(len(server.bank)):
        own = flat[labels == j]
        axes.scatter(own[:, 0], own[:, 1], s=6, alpha=0.5, color=colours[j], label=f"{j}: {len(own) / len(flat):.0%}")
    axes.scatter(rings[:, 0], rings[:, 1], s=110, facecolors="none", edgecolors="black", linewidths=1.4)
    for j, (x, y) in enumerate(rings):
        axes.annotate(str(j), (x, y), fontsize=10, fontweight="bold", ha="center", va="center")
    axes.set(
        xlabel=f"first principal direction of edits ({float(share[0]):.1%} of their variance)",
        ylabel=f"second ({float(share[1]):.1%})",
        title=f"{len(flat):,} contexts by nearest prototype",
    )
    axes.legend(title="prototype: share", fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), markerscale=2)
    return figure


def choice_of_k(choice: Choice, monitor: str, levels: Mapping[str, float]) -> Figure:
    """Validation score and stability for every K that was tried, and what host and whole edits reach."""
    from matplotlib.figure import Figure

    ks = [c.k for c in choice.candidates]
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    spread = [c.score_std for c in choice.candidates]
    left.errorbar(ks, [c.score for c in choice.candidates], yerr=spread, marker="o", color=LINE_COLOUR, capsize=3)
    for level, style in (("host", ":"), ("edit", "--")):
        left.axhline(levels[level], color=MUTED, linestyle=style)
        left.annotate(
            level, (1.0, levels[level]), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=9
        )
    left.set(ylabel=f"validation {monitor}", title="Prototypes alone, mean and spread over seeds")
    for name, values, marker in (
        ("between seeds", [c.stability_seeds for c in choice.candidates], "o"),
        ("between halves of the users", [c.stability_halves for c in choice.candidates], "s"),
    ):
        right.plot(ks, values, marker=marker, label=name)
    right.set(
        ylabel="adjusted Rand index", title="Stability of the partition", ylim=(min(0.0, *right.get_ylim()), 1.05)
    )
    right.legend(fontsize=9)
    for axes in (left, right):
        axes.axvline(choice.k, color=CHOSEN_COLOUR, linewidth=1.5, alpha=0.7)
        axes.set_xscale("log", base=2)
        axes.set_xticks(ks, [str(k) for k in ks])
        axes.set_xlabel(f"prototypes K (chosen: {choice.k})")
        axes.grid(alpha=0.3)
    return figure


def movement(norms: Tensor, layers: Sequence[str]) -> Figure:
    """(K, L) how far each prototype moved in each layer, as a heat map with its numbers."""
    from matplotlib.figure import Figure

    values = norms.double().numpy()
    figure = Figure(figsize=(3.2 + 1.3 * len(layers), 1.8 + 0.38 * len(values)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values, cmap="Blues", aspect="auto", vmin=0.0, vmax=max(float(values.max()), 1e-12))
    _numbers(axes, values, "{:.3g}")
    axes.set_xticks(range(len(layers)), layers, rotation=20, ha="right")
    axes.set_yticks(range(len(values)), [str(j) for j in range(len(values))])
    axes.set(ylabel="prototype", title="Movement per layer (Frobenius norm)")
    figure.colorbar(image, ax=axes)
    return figure


def assignment_flow(flow: Tensor, origin: Sequence[int], unit: str = "user") -> Figure:
    """Units by prototype before and after: bands from left to right, as wide as the units are many.

    Args:
        flow: (K, K') counts.
        origin: (K',) the prototype before that each one after comes from; the first that names one continues it.
        unit: what is counted.
    """
    from matplotlib.figure import Figure

    counts = flow.double().numpy()
    total = max(counts.sum(), 1.0)
    figure = Figure(figsize=(7, max(4.0, 0.45 * max(counts.shape))), layout="constrained")
    axes = figure.subplots()
    gap = 0.02
    colours = _colours(max(counts.shape))
    continued = {before: after for after, before in reversed(list(enumerate(origin)))}
    left, right = (_starts(counts.sum(axis) / total, gap) for axis in (1, 0))
    from_left, from_right = left.copy(), right.copy()
    for i, j in np.ndindex(*counts.shape):
        share = counts[i, j] / total
        if share > 0:
            _band(
                axes, float(from_left[i]), float(from_right[j]), float(share), colours[i], moved=continued.get(i) != j
            )
            from_left[i] += share
            from_right[j] += share
    for x, starts, sums, side in ((0.0, left, counts.sum(1), "right"), (1.0, right, counts.sum(0), "left")):
        for j, (start, count) in enumerate(zip(starts, sums, strict=True)):
            axes.plot([x, x], [start, start + count / total], color=colours[j], linewidth=8, solid_capstyle="butt")
            place = (x - 0.03 if side == "right" else x + 0.03, start + count / total / 2)
            axes.annotate(f"{j}  ({count:,.0f})", place, ha=side, va="center", fontsize=9)
    moved = counts.sum() - sum(counts[i, j] for i, j in continued.items())
    axes.set(
        xlim=(-0.25, 1.25),
        title=f"{unit.capitalize()}s by nearest prototype: {moved:,.0f} of {counts.sum():,.0f} changed",
    )
    axes.set_xticks([0, 1], ["before", "after"])
    axes.invert_yaxis()
    axes.get_yaxis().set_visible(False)
    for side in ("left", "right", "top", "bottom"):
        axes.spines[side].set_visible(False)
    return figure


def _band(axes: Axes, left: float, right: float, width: float, colour: tuple[float, ...], *, moved: bool) -> None:
    """A smooth band of one width from the left edge to the right one."""
    x = np.linspace(0, 1, 50)
    smooth = x * x * (3 - 2 * x)
    low = left + (right - left) * smooth
    axes.fill_between(x, low, low + width, color=colour, alpha=0.75 if moved else 0.3, linewidth=0.2)


def _starts(shares: NDArray[np.float64], gap: float) -> NDArray[np.float64]:
    return np.concatenate([[0.0], np.cumsum(shares + gap)[:-1]])


def _numbers(axes: Axes, values: NDArray[np.float64], form: str) -> None:
    largest = float(values.max())
    for (i, j), value in np.ndenumerate(values):
        colour = "white" if largest > 0 and value > _DARK * largest else "black"
        axes.annotate(form.format(value), (j, i), ha="center", va="center", fontsize=8, color=colour)


def _colours(count: int) -> list[tuple[float, ...]]:
    """Distinct colours for so many prototypes; repeated beyond twenty."""
    import matplotlib as mpl

    palette = mpl.colormaps["tab10" if count <= 10 else "tab20"]
    return [palette(i % palette.N) for i in range(count)]
