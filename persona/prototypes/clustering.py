"""k-means: Lloyd's iterations from k-means++ seeds, in chunks, with weights, deterministic from a seed.

Arithmetic is float64 whatever the precision of the points, and a sweep needs memory for one chunk beyond the points. What a
sweep finds is a sum over points (``ClusterSums``), so the sums of shards add up to the sums of the whole.

Seeds are those of greedy k-means++: each next one is the best of 2 + ln k candidates, drawn with probability proportional to
weight times squared distance to the nearest seed so far. Source: Arthur and Vassilvitskii, "k-means++: The Advantages of Careful
Seeding" (SODA 2007). Restarts compete on a sample of the points; the best of them then runs on all.

Shapes: N points, D coordinates, K clusters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from persona.errors import ConfigError, DataError

CHUNK = 1 << 12
# Restarts are compared on so many points, or on 256 a cluster where that is more.
SAMPLE = 1 << 16


@dataclass(frozen=True)
class ClusterSums:
    """Sufficient statistics of one sweep; those of shards add up.

    Attributes:
        weights: (K,) total weight of every cluster's points.
        sums: (K, D) weighted sums of the points.
        inertia: weighted sum of squared distances to the nearest centre.
    """

    weights: Tensor
    sums: Tensor
    inertia: float

    @classmethod
    def of(cls, points: Tensor, weights: Tensor, centres: Tensor) -> ClusterSums:
        """Sums of points (N, D) with weights (N,), each counted to its nearest centre (K, D)."""
        return _sweep(points, weights, centres).sums

    def __add__(self, other: ClusterSums) -> ClusterSums:
        return ClusterSums(self.weights + other.weights, self.sums + other.sums, self.inertia + other.inertia)

    def means(self, otherwise: Tensor) -> Tensor:
        """(K, D) means; ``otherwise`` (K, D) where a cluster is empty."""
        occupied = (self.weights > 0).unsqueeze(1)
        return torch.where(occupied, self.sums / self.weights.clamp_min(1e-300).unsqueeze(1), otherwise)


@dataclass(frozen=True)
class Clustering:
    """Result of k-means.

    Attributes:
        centres: (K, D) float64.
        labels: (N,) int64, the nearest centre of every point.
        inertia: weighted sum of squared distances to it.
        history: the inertia of every sweep; it never rises.
        converged: whether the centres came to rest before the last iteration allowed.
    """

    centres: Tensor
    labels: Tensor
    inertia: float
    history: tuple[float, ...]
    converged: bool


@dataclass(frozen=True)
class _Sweep:
    labels: Tensor
    square: Tensor
    sums: ClusterSums


def kmeans(
    points: Tensor,
    k: int,
    *,
    seed: int = 0,
    restarts: int = 4,
    iterations: int = 100,
    tolerance: float = 1e-4,
    weights: Tensor | None = None,
    init: Tensor | None = None,
) -> Clustering:
    """Partition points into k clusters that all have a member.

    Args:
        points: (N, D), any floating precision.
        k: number of clusters.
        seed: determines seeds and sample.
        restarts: how many k-means++ seedings compete.
        iterations: at most so many updates of the centres.
        tolerance: at rest when the centres' squared movement is at most this share of the mean variance of a coordinate.
        weights: (N,) non-negative weights; 1 each by default.
        init: (K, D) centres to start from instead of seeding.

    Raises:
        ConfigError: ``k`` or ``restarts`` below 1, or ``init`` of another shape.
        DataError: fewer distinct points of positive weight than clusters, points or weights that are not finite, or
            weights that are negative.
    """
    if k < 1 or restarts < 1 or iterations < 1:
        raise ConfigError(f"k, restarts and iterations are {k}, {restarts} and {iterations}, but have to be at least 1")
    weights = _checked(points, weights)
    floor = distance_floor(points)
    limit = tolerance * _mean_variance(points, weights)
    if init is not None:
        if init.shape != (k, points.shape[1]):
            raise ConfigError(f"init has the shape {tuple(init.shape)}, but needs {(k, points.shape[1])}")
        return _lloyd(points, weights, init.double(), iterations, limit, floor)
    generator = torch.Generator().manual_seed(seed)
    rows = _sample(weights, max(SAMPLE, 256 * k), generator)
    sample, sample_weights = (points, weights) if rows is None else (points[rows], weights[rows])
    tries = []
    for _ in range(restarts):
        start = plus_plus(sample, k, sample_weights, generator, floor)
        tries.append(_lloyd(sample, sample_weights, start, iterations, limit, floor))
    best = min(tries, key=lambda t: t.inertia)
    return best if rows is None else _lloyd(points, weights, best.centres, iterations, limit, floor)


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


def nearest_centres(points: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """(N, D), (K, D) -> (N,) int64 nearest centre, ties to the lowest index, and (N,) squared distance to it."""
    sweep = _sweep(points, torch.ones(len(points), dtype=torch.float64, device=points.device), centres)
    return sweep.labels, sweep.square


def _checked(points: Tensor, weights: Tensor | None) -> Tensor:
    if points.ndim != 2 or not len(points):
        raise DataError(f"k-means needs points of shape (N, D), but got {tuple(points.shape)}")
    if not all(torch.isfinite(chunk).all() for chunk in torch.split(points, CHUNK)):
        raise DataError("k-means needs finite points: look for contexts whose codes are not finite")
    if weights is None:
        return torch.ones(len(points), dtype=torch.float64, device=points.device)
    if weights.shape != (len(points),):
        raise DataError(f"{len(points)} points need as many weights, but got {tuple(weights.shape)}")
    if not torch.isfinite(weights).all() or (weights < 0).any() or not (weights > 0).any():
        raise DataError("weights have to be finite, not negative, and not all zero")
    return weights.double()


def _mean_variance(points: Tensor, weights: Tensor) -> float:
    """Weighted variance of a coordinate, averaged over coordinates."""
    zero = torch.zeros(1, points.shape[1], dtype=torch.float64, device=points.device)
    whole = ClusterSums.of(points, weights, zero)
    total = float(whole.weights[0])
    return max(0.0, whole.inertia / total - float((whole.sums / total).square().sum())) / points.shape[1]


def _sample(weights: Tensor, size: int, generator: torch.Generator) -> Tensor | None:
    """Rows of a sample among the points of positive weight, or None where all fit."""
    if len(weights) <= size:
        return None
    rows = torch.nonzero(weights.cpu() > 0).squeeze(1)
    return rows[torch.randperm(len(rows), generator=generator)[:size]].to(weights.device)


def _sweep(points: Tensor, weights: Tensor, centres: Tensor) -> _Sweep:
    """Nearest centre and squared distance of every point, ties to the lowest index, and the sums."""
    k, d = centres.shape
    centre_norms = centres.square().sum(1)
    labels = torch.empty(len(points), dtype=torch.int64, device=points.device)
    square = torch.empty(len(points), dtype=torch.float64, device=points.device)
    counted = torch.zeros(k, dtype=torch.float64, device=points.device)
    sums = torch.zeros(k, d, dtype=torch.float64, device=points.device)
    for start in range(0, len(points), CHUNK):
        rows = slice(start, start + CHUNK)
        x, w = points[rows].double(), weights[rows]
        nearest, labels[rows] = torch.addmm(centre_norms, x, centres.mT, alpha=-2).min(dim=1)
        square[rows] = (nearest + x.square().sum(1)).clamp_min_(0)
        counted.index_add_(0, labels[rows], w)
        sums.index_add_(0, labels[rows], x * w.unsqueeze(1))
    return _Sweep(labels, square, ClusterSums(counted, sums, float(square @ weights)))


def _lloyd(points: Tensor, weights: Tensor, centres: Tensor, iterations: int, limit: float, floor: float) -> Clustering:
    history: list[float] = []
    previous: Tensor | None = None
    converged = False
    for _ in range(iterations):
        sweep = _sweep(points, weights, centres)
        history.append(sweep.sums.inertia)
        sums = _refill(points, weights, sweep, floor)
        moved = sums.means(centres)
        change = float((moved - centres).square().sum())
        at_rest = change <= limit or (previous is not None and torch.equal(previous, sweep.labels))
        centres, previous = moved, sweep.labels
        if at_rest:
            converged = True
            break
    sweep = _sweep(points, weights, centres)
    history.append(sweep.sums.inertia)
    if not (sweep.sums.weights > 0).all():
        centres = _refill(points, weights, sweep, floor).means(centres)
    return Clustering(centres, sweep.labels, sweep.sums.inertia, tuple(history), converged)


def _refill(points: Tensor, weights: Tensor, sweep: _Sweep, floor: float) -> ClusterSums:
    """Give every empty cluster the point that is farthest from its centre; labels are changed in place.

    A cluster's only member stays where it is. The inertia about the new means is at most what it was.
    """
    counted, sums = sweep.sums.weights.clone(), sweep.sums.sums.clone()
    empty = torch.nonzero(counted <= 0).squeeze(1).tolist()
    if not empty:
        return sweep.sums
    members = torch.bincount(sweep.labels[weights > 0], minlength=len(counted))
    cost = sweep.square * weights
    candidates = iter(torch.topk(cost, min(len(cost), len(empty) + len(counted))).indices.tolist())
    for cluster in empty:
        row = next((i for i in candidates if members[sweep.labels[i]] > 1 and sweep.square[i] > floor), None)
        if row is None or weights[row] <= 0:
            found = len(counted) - len(empty)
            raise DataError(f"there are only about {found} distinct edits for k = {len(counted)}: choose a smaller k")
        donor, x, w = int(sweep.labels[row]), points[row].double(), weights[row]
        counted[donor] -= w
        sums[donor] -= w * x
        members[donor] -= 1
        counted[cluster], sums[cluster], members[cluster] = w, w * x, 1
        sweep.labels[row] = cluster
    return ClusterSums(counted, sums, sweep.sums.inertia)


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
