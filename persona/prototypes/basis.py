"""The shared edit basis: a few orthonormal edits in which the remaining edits of all devices are short to say.

The directions are the principal ones of the training contexts' remaining edits, about zero: no basis of this size keeps more
of their energy. With one prototype they are the principal directions of all edits.

A remaining edit is R = M (z - p_j) + D_j, where p_j are the codes nearest to prototype j and D_j = M p_j + c - P_j is the part
of P_j that the heads cannot make: zero until a prototype is trained further. D_j is orthogonal to all M, so

    y = [R_l (z - p_j)_l for every layer l;  T e_j],   T^T T = (<D_i, D_j>)

are Euclidean coordinates of remaining edits, in which principal directions are found without writing edits out.

Shapes: N contexts, L layers, d code width, K prototypes, m directions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from persona.edits import Edit
from persona.errors import ConfigError
from persona.prototypes.algebra import combine, inner, linear, to_dtype
from persona.prototypes.assign import Assigner
from persona.prototypes.metric import CHUNK, HeadMetric, roots

# Directions with a smaller share of the energy are rounding.
_NEGLIGIBLE = 1e-10
# Singular values of a root below this share of the largest are rounding (their squares were computed).
_RANK = 1e-7
# Remaining edits with a smaller share of the edits' energy are what float32 makes of none.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class EditBasis:
    """Orthonormal edits and what they hold.

    Attributes:
        directions: an edit of batch m, orthonormal over all layers, weights and biases.
        energy: (m,) share of the remaining edits' energy that lies in each direction, falling.
    """

    directions: Edit
    energy: Tensor

    def __len__(self) -> int:
        return len(self.energy)

    def edits(self, coefficients: Tensor) -> Edit:
        """(B, m) or fewer leading coefficients -> the edits they stand for (float64)."""
        return combine(self.directions[slice(coefficients.shape[1])], coefficients)


def fit_basis(
    metric: HeadMetric, prototypes: Edit, codes: Tensor, size: int, weights: Tensor | None = None
) -> EditBasis:
    """The ``size`` principal directions of the contexts' remaining edits.

    Args:
        metric: of the editor.
        prototypes: unbounded, batch K; a context's remaining edit is the smallest one.
        codes: (N, L, d) of the training contexts.
        size: at most so many directions: fewer where the remaining edits span fewer, none where nothing remains.
        weights: (N,) weights of the contexts.

    Raises:
        ConfigError: size below 1.
    """
    if size < 1:
        raise ConfigError(f"a basis of {size} directions was asked for, but it needs at least 1")
    codes_at = metric.nearest_codes(prototypes)
    outside = metric.edits(codes_at) - to_dtype(linear(prototypes), torch.float64)
    outside_root = roots(inner(outside, outside).sum(-1))
    whole = torch.zeros((), dtype=torch.float64, device=codes.device)
    moment = torch.zeros(2 * [codes_at[0].numel() + len(codes_at)], dtype=torch.float64, device=codes.device)
    assigner = Assigner(metric, prototypes)
    for start in range(0, len(codes), CHUNK):
        chunk = codes[start : start + CHUNK]
        nearest = assigner(chunk).prototypes
        inside = metric.points(chunk.double() - codes_at[nearest])
        y = torch.cat([inside, outside_root.mT[nearest]], dim=1)
        w = torch.ones(len(chunk), device=codes.device) if weights is None else weights[start : start + CHUNK]
        moment += y.mT @ (y * w.double().unsqueeze(1))
        whole += w.double() @ metric.square_norms(chunk).sum(1)
    energy, vectors = torch.linalg.eigh(moment)
    share = (energy / energy.clamp_min(0).sum().clamp_min(1e-300)).flip(0)[:size]
    kept = (share > _NEGLIGIBLE) & (energy.sum() > _ROUNDING * whole)
    directions = _edits(metric, outside, outside_root, vectors.flip(1).mT[:size][kept])
    return EditBasis(to_dtype(directions, torch.float32), share[kept])


def _edits(metric: HeadMetric, outside: Edit, outside_root: Tensor, y: Tensor) -> Edit:
    """(m, L d + K) coordinates -> the edits they belong to (float64)."""
    layers, width = metric.shape
    inside = y[:, : layers * width].reshape(len(y), layers, width)
    codes = torch.einsum("lij,nlj->nli", torch.linalg.pinv(metric.roots, rtol=_RANK), inside)
    weights = y[:, layers * width :] @ torch.linalg.pinv(outside_root, rtol=_RANK).mT
    return metric.shift(codes) + combine(outside, weights)
