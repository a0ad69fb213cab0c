"""The first version of a bank from a stream of codes that no single memory holds, over any number of workers.

    1. every worker samples its stream; the samples merge (``sampling``)
    2. k-means with restarts on the merged sample gives the first centres
    3. Lloyd's sweeps over the whole stream: every worker sums up its contexts by nearest centre, the sums add up
    4. a last pass sums up the members' codes; prototype j is the edit of their mean

``fit_bank`` does the same in memory. With sweeps until the centres rest, both end in a local optimum of one objective over all
contexts; without sweeps the centres are those of the sample, and only members and means are those of the whole. The basis is
fitted on the sample. Memory: the sample, and one block of the stream.

The result does not depend on how the stream was cut, but for the rounding of sums in float64.

Shapes: N contexts of a block, L layers, d code width, K prototypes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from persona.editor import ParameterEditor
from persona.errors import ConfigError, DataError
from persona.prototypes.bank import PrototypeBank
from persona.prototypes.clustering import SAMPLE, ClusterSums, kmeans, nearest_centres
from persona.prototypes.metric import HeadMetric
from persona.prototypes.partition import BASIS_SIZE, first_version
from persona.prototypes.sampling import CodeSample, merge_samples
from persona.prototypes.user_statistics import StatisticsFold, UserStatistics

SWEEPS = 20


@dataclass(frozen=True)
class CodeBlock:
    """A piece of a stream.

    Attributes:
        codes: (N, L, d).
        users: (N,) whole numbers: whom each context belongs to.
        events: (N,) whole numbers that tell the contexts of a user apart (see ``CodeSample.collect``).
    """

    codes: Tensor
    users: Tensor
    events: Tensor


# A stream is read several times, each time from its start.
Stream = Callable[[], Iterable[CodeBlock]]
# What one worker has -> what all workers have, in one and the same order on every worker; for ``torch.distributed``:
# ``all_gather_object``. All workers have to call it equally often.
Gather = Callable[[Any], Sequence[Any]]


@dataclass(frozen=True)
class StreamedPartition:
    """A first bank and how it came about; the same on every worker but for ``statistics``.

    Attributes:
        bank: the prototypes.
        sample: the contexts that the first centres and the basis were fitted on.
        history: inertia of every sweep over all contexts, the last one after the last update; it never rises.
        converged: whether the centres came to rest.
        contexts: of all workers.
        statistics: of this worker's contexts, which ``forget`` needs; personal data. None if they were not to be kept.
    """

    bank: PrototypeBank
    sample: CodeSample
    history: tuple[float, ...]
    converged: bool
    contexts: int
    statistics: UserStatistics | None


def fit_bank_streamed(
    editor: ParameterEditor | HeadMetric,
    stream: Stream,
    k: int,
    *,
    seed: int = 0,
    space: str = "edits",
    sample_size: int = SAMPLE,
    sweeps: int = SWEEPS,
    tolerance: float = 1e-4,
    basis_size: int = BASIS_SIZE,
    restarts: int = 4,
    keep_statistics: bool = False,
    gather: Gather = lambda own: [own],
) -> StreamedPartition:
    """Partition a stream of training contexts into k prototypes.

    Args:
        editor: that made the codes, or its metric.
        stream: this worker's contexts; read ``sweeps`` + 3 times at most.
        k: number of prototypes.
        seed: of sample and k-means.
        space: ``edits`` (the metric of the heads) or ``codes``.
        sample_size: contexts that the first centres are fitted on.
        sweeps: over the whole stream, at most; 0 keeps the centres of the sample.
        tolerance: at rest when the centres' squared movement is at most this share of the sample's variance of a coordinate.
        basis_size: directions of the shared edit basis, at most.
        restarts: of k-means on the sample.
        keep_statistics: whether sums per user are kept; their memory grows with users.
        gather: brings together what the workers have.

    Raises:
        ConfigError: k, space or sweeps out of range.
        DataError: the stream is empty, or has fewer distinct edits than prototypes.
        MismatchError: codes of another editor.
    """
    if sweeps < 0:
        raise ConfigError(f"sweeps is {sweeps}, but cannot be negative")
    metric = editor if isinstance(editor, HeadMetric) else HeadMetric(editor)
    sample = merge_samples(gather(_sampled(stream, metric, sample_size, seed)))
    if not len(sample):
        raise DataError("there is not a single context in this stream: partition when some have come")
    points = metric.points(sample.codes, space).double()
    centres = kmeans(points, k, seed=seed, restarts=restarts).centres
    limit = tolerance * float(points.var(0, correction=0).mean())
    history: list[float] = []
    converged = False
    for _ in range(sweeps):
        sums = _total(gather(_swept(stream, metric, space, centres)))
        history.append(sums.inertia)
        moved = _refilled(sums.means(centres), sums.weights, points)
        converged = float((moved - centres).square().sum()) <= limit
        centres = moved
        if converged:
            break
    own = _collected(stream, metric, space, centres, keep_statistics)
    parts = gather((own.whole, own.inertia))
    whole = _added([part for part, _ in parts])
    history.append(sum(inertia for _, inertia in parts))
    about = {"kind": "fit", "k": k, "seed": seed, "space": space, "sample": len(sample), "sweeps": len(history) - 1}
    bank = first_version(metric, whole, sample.codes, basis_size, about)
    return StreamedPartition(bank, sample, tuple(history), converged, int(whole.counts.sum()), own.statistics)


def _sampled(stream: Stream, metric: HeadMetric, size: int, seed: int) -> CodeSample:
    """The sample of one worker's contexts."""
    empty = torch.zeros(0, dtype=torch.int64)
    sample = CodeSample.collect(torch.zeros(0, *metric.shape), empty, empty, size, seed)
    for block in stream():
        metric.check_codes(block.codes)
        sample = sample + CodeSample.collect(block.codes, block.users, block.events, size, seed)
    return sample


def _swept(stream: Stream, metric: HeadMetric, space: str, centres: Tensor) -> ClusterSums:
    """One sweep over one worker's contexts."""
    sums = ClusterSums(torch.zeros(len(centres), dtype=torch.float64), torch.zeros_like(centres), 0.0)
    for block in stream():
        weights = torch.ones(len(block.codes), dtype=torch.float64)
        sums = sums + ClusterSums.of(metric.points(block.codes, space), weights, centres)
    return sums


def _total(parts: Sequence[ClusterSums]) -> ClusterSums:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _refilled(centres: Tensor, weights: Tensor, points: Tensor) -> Tensor:
    """Centres (K, D), those of empty clusters put where the sample's ``points`` (n, D) are farthest from the others."""
    for cluster in torch.nonzero(weights <= 0).squeeze(1).tolist():
        others = torch.cat([centres[:cluster], centres[cluster + 1 :]])
        centres = centres.clone()
        centres[cluster] = points[int(nearest_centres(points, others)[1].argmax())]
    return centres


@dataclass(frozen=True)
class _Collected:
    """Last pass over one worker's contexts: sums over each cluster as if of one user, inertia, and sums per user."""

    whole: UserStatistics
    inertia: float
    statistics: UserStatistics | None


def _collected(stream: Stream, metric: HeadMetric, space: str, centres: Tensor, keep: bool) -> _Collected:
    k = len(centres)
    by_cluster, by_user = StatisticsFold(k, metric.shape), StatisticsFold(k, metric.shape)
    inertia = 0.0
    for block in stream():
        labels, square = nearest_centres(metric.points(block.codes, space), centres)
        inertia += float(square.sum())
        nobody = torch.zeros_like(labels)
        by_cluster.add(UserStatistics.collect(block.codes, nobody, labels, k))
        if keep:
            by_user.add(UserStatistics.collect(block.codes, block.users, labels, k))
    return _Collected(by_cluster.result(), inertia, by_user.result() if keep else None)


def _added(parts: Sequence[UserStatistics]) -> UserStatistics:
    fold = StatisticsFold(parts[0].k, parts[0].sums.shape[1:])
    for part in parts:
        fold.add(part)
    whole = fold.result()
    if len(whole) < whole.k:
        raise DataError(f"only {len(whole)} of {whole.k} prototypes have a member: choose a smaller k")
    return whole
