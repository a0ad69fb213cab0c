"""Losses over one positive and N sampled negatives, and the softmax over all items.

Those over negatives return a scalar: the mean over the positions (``...``), weighted by ``mask`` where one is given. A mask has
the shape of the positions, is boolean or holds weights of at least 0, and positions of weight 0 (padding) get no gradient;
where all weights are 0 the loss is 0.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from persona.errors import ConfigError

# Scores made at a time by the softmax over all items: 2 MB of them, which stay in the cache.
SCORES = 1 << 19


def bce(logits: Tensor, mask: Tensor | None = None) -> Tensor:
    """Binary cross-entropy, the mean over all 1+N entries.

    Args:
        logits: (..., 1+N), column 0 the positive.
        mask: (...).
    """
    return _weighted_mean(_entry_bce(logits, positive_weight=1.0), mask)


def softmax(users: Tensor, items: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of the targets against all items, the mean over users, in blocks of users.

    A block's gradients are made together with its loss, while its scores are at hand: no more than ``SCORES`` of them exist at a
    time, and they are made once.

    Args:
        users: (P, d).
        items: (S, d); the score of a user and an item is their dot product.
        targets: (P,) int64, 0..S-1.
    """
    wide = torch.promote_types(users.dtype, torch.float32)
    with torch.autocast(users.device.type, enabled=False):
        loss: Tensor = _Softmax.apply(users.to(wide), items.to(wide), targets)
    return loss


class _Softmax(torch.autograd.Function):
    """See ``softmax``."""

    @staticmethod
    def forward(ctx: Any, users: Tensor, items: Tensor, targets: Tensor) -> Tensor:
        """The loss; its gradients are kept for ``backward``."""
        of_users, of_items = ctx.needs_input_grad[:2]
        user_gradient = torch.empty_like(users) if of_users else None
        item_gradient = torch.zeros_like(items) if of_items else None
        total = users.new_zeros(())
        for rows in torch.split(torch.arange(len(users), device=users.device), max(1, SCORES // len(items))):
            block, chosen = users[rows], targets[rows]
            scores = block @ items.T
            most, own = scores.amax(1, keepdim=True), scores.gather(1, chosen.unsqueeze(1))
            mass = scores.sub_(most).exp_().sum(1, keepdim=True)
            total += (most + mass.log() - own).sum()
            # The derivative by the scores is what the softmax gives each item, scores / mass, less 1 for the target. Both are
            # brought in on the narrow side of the products.
            if user_gradient is not None:
                user_gradient[rows] = (scores @ items).div_(mass).sub_(items[chosen])
            if item_gradient is not None:
                item_gradient.addmm_(scores.T, block / mass).index_add_(0, chosen, block, alpha=-1)
        count = max(1, len(users))
        ctx.gradients = [None if g is None else g.div_(count) for g in (user_gradient, item_gradient)]
        return total / count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The kept gradients, times that of the loss."""
        return (*(None if g is None else g * gradients[0] for g in ctx.gradients), None)


def sampled_softmax(
    positive: Tensor, negatives: Tensor, mask: Tensor | None = None, log_expected: Tensor | None = None
) -> Tensor:
    """Cross-entropy of the positive against the sampled negatives.

    Where negatives are uniform, the correction by their sampling probability is one constant, which no gradient sees. Where
    they are not, each counts for as many items as it was unlikely to be drawn: exp(s_j) / (N q_j) summed over the draws is, in
    expectation, what all items but the positive would add. Source: Bengio and Senecal, 2008.

    Args:
        positive: (...) logits.
        negatives: (..., N) logits.
        mask: (...).
        log_expected: (N,) log(N q_j), how often each negative is expected among N draws; where not given, it is uniform.
    """
    if log_expected is not None:
        negatives = negatives - log_expected
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
