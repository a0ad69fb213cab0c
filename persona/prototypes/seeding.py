"""Seeds for k-means: greedy k-means++.

Each next seed is the best of 2 + ln k candidates, drawn with probability proportional to weight times squared distance to
the nearest seed so far. Source: Arthur and Vassilvitskii, "k-means++: The Advantages of Careful Seeding" (SODA 2007).

Shapes: N points, D coordinates, K seeds.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from persona.errors import DataError

CHUNK = 1 << 12


def distance_floor(points: Tensor) -> float:
    """Squared distances up to this are rounding: float64 cancels numbers as large as the longest point's square."""
    return 1e-13 * max(float(chunk.double().square().sum(1).max()) for chunk in torch.split(points, CHUNK))


def plus_plus(points: Tensor, k: int, weights: Tensor, generator: torch.Generator, floor: float) -> Tensor:
    """(N, D) points and (N,) weights -> (K, D) seeds, each a point, all distinct.

    Args:
        points: where to choose from.
        k: how many.
        weights: of the points.
        generator: of the draws, on the CPU.
        floor: squared distances up to this count as none.

    Raises:
        DataError: fewer than k distinct points of positive weight.
    """
    trials = 2 + int(math.log(k))
    chosen = [int(_draw(weights, 1, generator)[0])]
    nearest = _square_distances(points, points[chosen])[:, 0]
    for found in range(1, k):
        cost = torch.where(nearest > floor, nearest * weights, 0.0)
        if not float(cost.sum()) > 0:
            raise DataError(f"there are only {found} distinct edits for k = {k}: choose a smaller k")
        candidates = _draw(cost, trials, generator)
        after = torch.minimum(_square_distances(points, points[candidates]), nearest.unsqueeze(1))
        best = int((weights @ after).argmin())
        chosen.append(int(candidates[best]))
        nearest = after[:, best]
    return points[chosen].double()


def _draw(mass: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` rows, with replacement, each with probability proportional to its ``mass`` (N,)."""
    cumulative = mass.cumsum(0)
    at = torch.rand(count, generator=generator, dtype=torch.float64).to(mass.device) * cumulative[-1]
    rows = torch.searchsorted(cumulative, at, right=True)
    # Rounding at the very end must not fall on a row without mass.
    return rows.clamp_max(int(torch.nonzero(mass).max()))


def _square_distances(points: Tensor, centres: Tensor) -> Tensor:
    """(N, D), (C, D) -> (N, C) float64."""
    centres = centres.double()
    result = torch.empty(len(points), len(centres), dtype=torch.float64, device=points.device)
    for start in range(0, len(points), CHUNK):
        x = points[start : start + CHUNK].double()
        square = torch.addmm(centres.square().sum(1), x, centres.mT, alpha=-2).add_(x.square().sum(1, keepdim=True))
        result[start : start + CHUNK] = square.clamp_min_(0)
    return result
