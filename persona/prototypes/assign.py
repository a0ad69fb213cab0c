"""Assignment: the prototype with the smallest remaining edit, j*(x) = arg min_j ||E(x) - P_j||_F, in code space.

Over all layers, weights and biases, unbounded edits. With Q_j = P_j - c, once computed,

    ||E(x) - P_j||^2 = sum_l z_l^T G_l z_l - 2 <M z, Q_j> + ||Q_j||^2,   <M z, Q_j> = sum_l z_l^T (M_l^T Q_jl),

so that K prototypes cost one editor pass and one small matrix product, and prototypes that no code makes are measured
exactly too.

Shapes: N contexts, L layers, d code width, K prototypes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from persona.edits import Edit
from persona.errors import MismatchError
from persona.prototypes.algebra import inner, linear, to_dtype
from persona.prototypes.metric import CHUNK, HeadMetric
from persona.wire import TIE


@dataclass(frozen=True)
class Assignment:
    """Nearest prototypes.

    Attributes:
        prototypes: (N,) int64 index; ties go to the lowest.
        distances: (N,) float64 norm of the remaining edit.
    """

    prototypes: Tensor
    distances: Tensor


class Assigner:
    """Measures contexts against prototypes.

    Args:
        metric: of the editor that makes the codes.
        prototypes: unbounded edits, batch K, inside or outside what the heads can make.

    Raises:
        MismatchError: prototypes of another host.

    Example::

        assigner = Assigner(metric, bank.prototypes)
        nearest = assigner(editor.codes(context, lengths)).prototypes
    """

    def __init__(self, metric: HeadMetric, prototypes: Edit) -> None:
        if prototypes.specs != metric.specs or prototypes.host != metric.host:
            raise MismatchError("these prototypes belong to another host than this editor: use both from one release")
        self.metric = metric
        self.offset = to_dtype(linear(prototypes), torch.float64) - metric.constant.expand(len(prototypes))
        self._projected = metric.project(self.offset).flatten(1).mT.contiguous()
        self._square = inner(self.offset, self.offset).sum(-1).diagonal().contiguous()

    def square_distances(self, codes: Tensor) -> Tensor:
        """(N, L, d) -> (N, K) squared norms of the remaining edits, float64."""
        return self._measure(codes)[0]

    def __call__(self, codes: Tensor) -> Assignment:
        """(N, L, d) -> the nearest prototype of every context and its distance."""
        self.metric.check_codes(codes)
        nearest = torch.empty(len(codes), dtype=torch.int64, device=codes.device)
        distances = torch.empty(len(codes), dtype=torch.float64, device=codes.device)
        for start in range(0, len(codes), CHUNK):
            rows = slice(start, start + CHUNK)
            square, scale = self._measure(codes[rows])
            # Not a plain arg min: how a product is cut into blocks may round equal distances apart.
            tied = square <= square.amin(1, keepdim=True) + TIE * scale
            nearest[rows] = tied.to(torch.uint8).argmax(1)
            distances[rows] = square.gather(1, nearest[rows].unsqueeze(1)).squeeze(1).sqrt()
        return Assignment(nearest, distances)

    def distances_to(self, codes: Tensor, prototypes: Tensor) -> Tensor:
        """(N, L, d) and (N,) -> (N,) norm of every context's remaining edit from a prototype of its own."""
        parts = zip(torch.split(codes, CHUNK), torch.split(prototypes, CHUNK), strict=True)
        return torch.cat([self.square_distances(z).gather(1, j.unsqueeze(1)).squeeze(1) for z, j in parts]).sqrt()

    def _measure(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """(N, K) squared distances, and (N, 1) the size of the numbers that made them."""
        self.metric.check_codes(codes)
        own = self.metric.square_norms(codes).sum(1, keepdim=True)
        square = torch.addmm(self._square, codes.detach().double().flatten(1), self._projected, alpha=-2).add_(own)
        return square.clamp_min_(0), own + self._square.max()
