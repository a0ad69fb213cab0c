"""Losses over one positive and N sampled negatives.

All return a scalar: the mean over the positions (``...``), weighted by ``mask`` where one is given. A mask has the shape of
the positions, is boolean or holds weights of at least 0, and positions of weight 0 (padding) get no gradient; where all
weights are 0 the loss is 0.
"""

import torch
from torch import Tensor
from torch.nn import functional

from persona.errors import ConfigError


def bce(logits: Tensor, mask: Tensor | None = None) -> Tensor:
    """Binary cross-entropy, the mean over all 1+N entries.

    Args:
        logits: (..., 1+N), column 0 the positive.
        mask: (...).
    """
    return _weighted_mean(_entry_bce(logits, positive_weight=1.0), mask)


def sampled_softmax(positive: Tensor, negatives: Tensor, mask: Tensor | None = None) -> Tensor:
    """Cross-entropy of the positive against the sampled negatives.

    Negatives are uniform, so that the correction by their sampling probability is one constant, which no gradient sees.

    Args:
        positive: (...) logits.
        negatives: (..., N) logits.
        mask: (...).
    """
    logits = _together(positive, negatives).flatten(0, -2)
    target = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    losses = functional.cross_entropy(logits, target, reduction="none")
    return _weighted_mean(losses.view_as(positive), mask)


def gbce(positive: Tensor, negatives: Tensor, catalogue: int, t: float = 0.75, mask: Tensor | None = None) -> Tensor:
    """Generalised binary cross-entropy, which takes the overconfidence out of negative sampling.

    The positive enters as log(sigmoid(s)^beta) = beta * log sigmoid(s); with the sampling rate alpha = N / (V-1),

        beta = alpha * (t * (1 - 1/alpha) + 1/alpha) = 1 - t * (1 - alpha).

    t = 0 is ``bce``; t = 1 calibrates the scores as if all negatives had been seen. Source: Petrov and Macdonald, gSASRec,
    RecSys 2023.

    Args:
        positive: (...) logits.
        negatives: (..., N) logits.
        catalogue: V, the number of items.
        t: calibration, 0..1.
        mask: (...).

    Raises:
        ConfigError: t outside 0..1, or more negatives than V-1.
    """
    n_negatives = negatives.shape[-1]
    if not 0.0 <= t <= 1.0:
        raise ConfigError(f"the calibration t of gbce must lie in 0..1, got {t}")
    if not 1 <= n_negatives <= catalogue - 1:
        raise ConfigError(f"gbce needs 1 to {catalogue - 1} negatives with {catalogue} items, got {n_negatives}")
    beta = 1.0 - t * (1.0 - n_negatives / (catalogue - 1))
    return _weighted_mean(_entry_bce(_together(positive, negatives), positive_weight=beta), mask)


def _together(positive: Tensor, negatives: Tensor) -> Tensor:
    return torch.cat([positive.unsqueeze(-1), negatives], dim=-1)


def _entry_bce(logits: Tensor, positive_weight: float) -> Tensor:
    """Mean (...) over the 1+N entries of each position, the term of the positive scaled."""
    target = torch.zeros_like(logits)
    target[..., 0] = 1.0
    scale = logits.new_full((), positive_weight)
    entries = functional.binary_cross_entropy_with_logits(logits, target, pos_weight=scale, reduction="none")
    return entries.mean(dim=-1)


def _weighted_mean(losses: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return losses.mean()
    weights = mask.to(losses.dtype)
    return (losses * weights).sum() / weights.sum().clamp_min(torch.finfo(losses.dtype).tiny)
