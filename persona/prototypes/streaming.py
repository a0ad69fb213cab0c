"""The first version of a bank from a stream of codes that no single memory holds, over any number of workers.

    1. every worker samples its stream; the samples merge
    2. k-means with restarts on the merged sample gives the first centres
    3. Lloyd's sweeps over the whole stream: every worker sums up its contexts by nearest centre, the sums add up
    4. a last pass sums up the members' codes; prototype j is the edit of their mean

``fit_bank`` does the same in memory. With sweeps until the centres rest, both end in a local optimum of one objective over all
contexts; without sweeps the centres are those of the sample, and only members and means are those of the whole. The basis is
fitted on the sample. Memory: the sample, and one block of the stream.

The result does not depend on how the stream was cut, but for the rounding of sums in float64. In the sample every context has a
priority, a hash of the seed, its user and the number of its event, and those of lowest priority are kept. The lowest of a whole
are among the lowest of its parts, so samples of shards merge to the sample of the whole: in any order, in any grouping, and a
shard that is merged twice changes nothing. Source: Cohen and Kaplan, "Summarizing data using bottom-k sketches" (PODC 2007).

Shapes: N contexts of a block, n of them in the sample, L layers, d code width, K prototypes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from persona.editor import ParameterEditor
from persona.errors import ConfigError, DataError, MismatchError
from persona.prototypes.bank import PrototypeBank
from persona.prototypes.clustering import SAMPLE, ClusterSums, kmeans, nearest_centres
from persona.prototypes.metric import HeadMetric
from persona.prototypes.partition import BASIS_SIZE, first_version
from persona.prototypes.user_statistics import StatisticsFold, UserStatistics

SWEEPS = 20
# At rest when the centres' squared movement is at most this share of the sample's variance of a coordinate.
_TOLERANCE = 1e-4

# The finaliser of SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014).
_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


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


@dataclass(frozen=True)
class CodeSample:
    """At most ``size`` contexts of a stream, rising by priority; no two have the same.

    Attributes:
        priorities: (n,) int64, not negative.
        users: (n,) int64.
        codes: (n, L, d).
        size: the most that are kept.
        seed: of the priorities.
    """

    priorities: Tensor
    users: Tensor
    codes: Tensor
    size: int
    seed: int

    @classmethod
    def collect(cls, codes: Tensor, users: Tensor, events: Tensor, size: int, seed: int = 0) -> CodeSample:
        """The sample of one shard.

        Args:
            codes: (N, L, d).
            users: (N,) whole numbers.
            events: (N,) whole numbers that tell the contexts of a user apart, the same wherever the stream is cut, such as
                the event's place in the user's history. One user and event twice are one context.
            size: the most that are kept.
            seed: of the choice.

        Raises:
            ConfigError: size below 1.
            DataError: different lengths, or codes that are not finite.
        """
        if size < 1:
            raise ConfigError(f"a sample of {size} contexts was asked for, but it needs at least 1")
        if not len(codes) == len(users) == len(events):
            raise DataError(
                f"codes, users and events have {len(codes)}, {len(users)} and {len(events)} rows: give one each"
            )
        found = priorities(users, events, seed)
        kept = _lowest(found, size)
        codes = codes.detach()[kept].clone()
        if not bool(torch.isfinite(codes).all()):
            raise DataError("some codes are not finite: leave out the contexts that made them")
        return cls(found[kept], users[kept].long(), codes, size, seed)

    def __len__(self) -> int:
        return len(self.priorities)

    def __add__(self, other: CodeSample) -> CodeSample:
        """The sample of two shards of one stream."""
        return merge_samples([self, other])


def merge_samples(shards: Sequence[CodeSample]) -> CodeSample:
    """The sample of all shards of one stream.

    Raises:
        MismatchError: samples of different sizes, seeds or shapes.
    """
    if len({(s.size, s.seed, s.codes.shape[1:]) for s in shards}) != 1:
        raise MismatchError("samples merge only if their size, seed and codes agree: draw all shards alike")
    found = torch.cat([s.priorities for s in shards])
    order = _lowest(found, shards[0].size)
    users, codes = torch.cat([s.users for s in shards]), torch.cat([s.codes for s in shards])
    return CodeSample(found[order], users[order], codes[order], shards[0].size, shards[0].seed)


def priorities(users: Tensor, events: Tensor, seed: int) -> Tensor:
    """(N,), (N,) whole numbers -> (N,) int64 hashes, uniform from 0 to 2^63."""
    mixed = np.full(len(users), seed, dtype=np.uint64)
    for part in (users, events):
        mixed = _mix(mixed ^ part.cpu().numpy().astype(np.int64).view(np.uint64))
    return torch.from_numpy((mixed >> np.uint64(1)).view(np.int64))


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
        keep_statistics: whether sums per user are kept; their memory grows with users.
        gather: brings together what the workers have.

    Raises:
        ConfigError: k, space or sweeps out of range.
        DataError: the stream is empty, or has fewer distinct edits than prototypes.
        MismatchError: codes of another editor.
    """
    shared = _Shared(stream, editor if isinstance(editor, HeadMetric) else HeadMetric(editor), space, gather)
    sample = shared.sample(sample_size, seed)
    rest = shared.centres(sample, k, seed, sweeps)
    own = shared.collected(rest.centres, keep_statistics)
    whole, inertia = shared.added(own)
    about = {"kind": "fit", "k": k, "seed": seed, "space": space, "sample": len(sample), "sweeps": len(rest.history)}
    bank = first_version(shared.metric, whole, sample.codes, BASIS_SIZE, about)
    history = (*rest.history, inertia)
    return StreamedPartition(bank, sample, history, rest.converged, int(whole.counts.sum()), own.statistics)


@dataclass(frozen=True)
class _Rest:
    """Centres after the last update, the inertia before each, and whether they came to rest."""

    centres: Tensor
    history: tuple[float, ...]
    converged: bool


@dataclass(frozen=True)
class _Collected:
    """Last pass over one worker's contexts: sums over each cluster as if of one user, inertia, and sums per user."""

    whole: UserStatistics
    inertia: float
    statistics: UserStatistics | None


@dataclass(frozen=True)
class _Shared:
    """A stream that several workers have parts of, and the space in which its contexts are points."""

    stream: Stream
    metric: HeadMetric
    space: str
    gather: Gather

    def sample(self, size: int, seed: int) -> CodeSample:
        """The sample of all workers' contexts."""
        empty = torch.zeros(0, dtype=torch.int64)
        own = CodeSample.collect(torch.zeros(0, *self.metric.shape), empty, empty, size, seed)
        for block in self.stream():
            self.metric.check_codes(block.codes)
            own = own + CodeSample.collect(block.codes, block.users, block.events, size, seed)
        whole = merge_samples(self.gather(own))
        if not len(whole):
            raise DataError("there is not a single context in this stream: partition when some have come")
        return whole

    def centres(self, sample: CodeSample, k: int, seed: int, sweeps: int) -> _Rest:
        """Those of the sample, and from there Lloyd's sweeps over all workers' contexts."""
        if sweeps < 0:
            raise ConfigError(f"sweeps is {sweeps}, but cannot be negative")
        points = self.metric.points(sample.codes, self.space).double()
        centres = kmeans(points, k, seed=seed).centres
        limit = _TOLERANCE * float(points.var(0, correction=0).mean())
        history: list[float] = []
        converged = False
        while len(history) < sweeps and not converged:
            sums = _total(self.gather(self._swept(centres)))
            history.append(sums.inertia)
            moved = _refilled(sums.means(centres), sums.weights, points)
            converged = float((moved - centres).square().sum()) <= limit
            centres = moved
        return _Rest(centres, tuple(history), converged)

    def collected(self, centres: Tensor, keep: bool) -> _Collected:
        """The last pass over one worker's contexts."""
        k = len(centres)
        by_cluster, by_user = StatisticsFold(k, self.metric.shape), StatisticsFold(k, self.metric.shape)
        inertia = 0.0
        for block in self.stream():
            labels, square = nearest_centres(self.metric.points(block.codes, self.space), centres)
            inertia += float(square.sum())
            nobody = torch.zeros_like(labels)
            by_cluster.add(UserStatistics.collect(block.codes, nobody, labels, k))
            if keep:
                by_user.add(UserStatistics.collect(block.codes, block.users, labels, k))
        return _Collected(by_cluster.result(), inertia, by_user.result() if keep else None)

    def added(self, own: _Collected) -> tuple[UserStatistics, float]:
        """Sums over each cluster, and the inertia, of all workers."""
        parts = self.gather((own.whole, own.inertia))
        fold = StatisticsFold(own.whole.k, own.whole.sums.shape[1:])
        for part, _ in parts:
            fold.add(part)
        whole = fold.result()
        if len(whole) < whole.k:
            raise DataError(f"only {len(whole)} of {whole.k} prototypes have a member: choose a smaller k")
        return whole, sum(inertia for _, inertia in parts)

    def _swept(self, centres: Tensor) -> ClusterSums:
        """One sweep over one worker's contexts."""
        sums = ClusterSums(torch.zeros(len(centres), dtype=torch.float64), torch.zeros_like(centres), 0.0)
        for block in self.stream():
            weights = torch.ones(len(block.codes), dtype=torch.float64)
            sums = sums + ClusterSums.of(self.metric.points(block.codes, self.space), weights, centres)
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


def _lowest(found: Tensor, size: int) -> Tensor:
    """Rows of the ``size`` lowest of ``found`` (N,), rising; of equal ones the first alone."""
    order = torch.argsort(found, stable=True)
    fresh = torch.ones(len(order), dtype=torch.bool)
    fresh[1:] = found[order[1:]] != found[order[:-1]]
    return order[fresh][:size]


def _mix(values: np.ndarray) -> np.ndarray:
    values = values + _STEP
    values = (values ^ (values >> np.uint64(30))) * _FIRST
    values = (values ^ (values >> np.uint64(27))) * _SECOND
    mixed: np.ndarray = values ^ (values >> np.uint64(31))
    return mixed
