"""The first version of a bank: k-means over the edits of the training contexts.

Prototype j is the mean edit of its members. As edits are affine in the codes, that is the edit of the mean code, and nothing
but K prototypes and the basis is ever written out.

Shapes: N contexts, L layers, d code width, K prototypes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from persona.editor import ParameterEditor
from persona.errors import DataError
from persona.prototypes.algebra import to_dtype
from persona.prototypes.bank import PrototypeBank
from persona.prototypes.basis import fit_basis
from persona.prototypes.clustering import kmeans
from persona.prototypes.metric import HeadMetric
from persona.prototypes.user_statistics import UserStatistics

BASIS_SIZE = 32


@dataclass(frozen=True)
class Partition:
    """A first bank and how it came about.

    Attributes:
        bank: the prototypes.
        labels: (N,) the cluster of every context.
        inertia: weighted sum of squared distances to the clusters' centres, in the space of the partition.
        converged: whether k-means came to rest.
        statistics: what has to be kept to forget a user later; personal data. None if no users were given.
    """

    bank: PrototypeBank
    labels: Tensor
    inertia: float
    converged: bool
    statistics: UserStatistics | None


def fit_bank(
    editor: ParameterEditor | HeadMetric,
    codes: Tensor,
    k: int,
    *,
    seed: int = 0,
    space: str = "edits",
    weights: Tensor | None = None,
    users: Tensor | None = None,
    basis_size: int = BASIS_SIZE,
    restarts: int = 4,
) -> Partition:
    """Partition training contexts into k prototypes.

    Args:
        editor: that made the codes, or its metric.
        codes: (N, L, d), one a distinct context.
        k: number of prototypes.
        seed: of k-means.
        space: ``edits`` (the metric of the heads) or ``codes``.
        weights: (N,) weights of the contexts.
        users: (N,) whole numbers from 0 on: whom each context belongs to.
        basis_size: directions of the shared edit basis, at most.
        restarts: of k-means.

    Raises:
        ConfigError: k or space out of range.
        DataError: fewer distinct edits than prototypes.
        MismatchError: codes of another editor.
    """
    metric = editor if isinstance(editor, HeadMetric) else HeadMetric(editor)
    if users is not None and len(users) != len(codes):
        raise DataError(f"{len(codes)} contexts need as many users, but got {len(users)}")
    found = kmeans(metric.points(codes, space), k, seed=seed, weights=weights, restarts=restarts)
    # Without users all contexts count as one user's: only the sums over each cluster are wanted then.
    owners = torch.zeros(len(codes), dtype=torch.int64, device=codes.device) if users is None else users
    statistics = UserStatistics.collect(codes, owners, found.labels, k, weights)
    about = {"kind": "fit", "k": k, "seed": seed, "space": space}
    bank = first_version(metric, statistics, codes, basis_size, about, weights)
    return Partition(bank, found.labels, found.inertia, found.converged, None if users is None else statistics)


def fit_distinct(editor: ParameterEditor | HeadMetric, codes: Tensor, k: int, **options: Any) -> Partition:
    """A bank of k prototypes, or of half as many until codes (N, L, d) make enough distinct edits: an editor that has learned
    nothing, or whose edits validation switched off, makes one. Options as in ``fit_bank``.
    """
    while True:
        try:
            return fit_bank(editor, codes, k, **options)
        except DataError:
            if k == 1:
                raise
            k //= 2


def first_version(
    metric: HeadMetric,
    statistics: UserStatistics,
    codes: Tensor,
    basis_size: int,
    about: Mapping[str, Any],
    weights: Tensor | None = None,
) -> PrototypeBank:
    """The bank whose prototypes are the mean edits of their members.

    Args:
        metric: of the editor.
        statistics: of all members; no prototype may be empty.
        codes: (N, L, d) that the basis is fitted on.
        basis_size: directions of the basis, at most.
        about: metadata of the version.
        weights: (N,) of ``codes``.
    """
    centres, members = cluster_means(statistics)
    prototypes = to_dtype(metric.edits(centres), torch.float32)
    return PrototypeBank(
        prototypes=prototypes,
        centres=centres,
        members=members,
        origin=torch.full((statistics.k,), -1),
        idle=torch.zeros(statistics.k, dtype=torch.int64),
        basis=fit_basis(metric, prototypes, codes, basis_size, weights),
        bound=metric.bound,
        weight_scales=metric.weight_scales,
        editor=metric.editor,
        metadata=about,
    )


def cluster_means(statistics: UserStatistics) -> tuple[Tensor, Tensor]:
    """(K, L, d) mean codes of the members of every prototype, and (K,) their weight; no prototype may be empty."""
    members = statistics.per_prototype()
    sums = torch.zeros(statistics.k, *statistics.sums.shape[1:], dtype=torch.float64, device=members.device)
    sums.index_add_(0, statistics.prototypes, statistics.sums)
    return sums / members[:, None, None], members
