"""What a target competes with under the softmax over the catalogue: all items seen so far, or some of them drawn by frequency.

Items that only later events hold take no part: that they exist is not known yet, and a model that learns to rank them last has
looked into the future.

Shapes: B rows, T positions, C targets of a row, P targets, S items seen, N negatives, V items, d width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from persona.training.objective import Part
from persona.training.ranks import Ranks
from recsys import losses
from recsys.data.batches import Context
from recsys.hosts import SequentialHost

# Up to so many items seen the softmax is exact; beyond, it is estimated from shared negatives.
EXACT_ITEMS = 20_000
# Negatives are drawn in proportion to this power of an item's count.
POWER = 0.75

Int64Array = NDArray[np.int64]


@dataclass(frozen=True)
class SequenceBatch:
    """Contexts of B users, several targets of each, and negatives that all targets meet.

    Attributes:
        context: (B, T).
        targets: (B, C) items, 0 where none.
        negatives: (N,).
        states: (B, C) after which item of the context each target is asked for; ``None`` where it is item c for target c.
        log_expected: (N,) how often each negative is expected, where they are drawn by frequency.
    """

    context: Context
    targets: Tensor
    negatives: Tensor
    states: Tensor | None = None
    log_expected: Tensor | None = None

    def part(self, ranks: Ranks) -> Part:
        """This rank's rows, and its share of the targets; the negatives are those of the whole batch."""
        rows = ranks.rows(len(self.context))
        targets = rows.of(self.targets)
        share = int((targets > 0).sum()) / int((self.targets > 0).sum()) if rows.counted else 0.0
        context = Context(rows.of(self.context.items), rows.of(self.context.lengths))
        states = None if self.states is None else rows.of(self.states)
        return Part(replace(self, context=context, targets=targets, states=states), rows, share)


class Competitors:
    """The items that a target competes with.

    Args:
        counts: (V + 1,) how often each item was seen.
        negatives: N, drawn for a batch where there are too many items for the exact softmax.

    Attributes:
        items: (S,) seen, ascending.
        exact: whether every target meets all of them.
    """

    def __init__(self, counts: Int64Array, negatives: int) -> None:
        seen = np.flatnonzero(counts)
        self.items = torch.from_numpy(seen)
        self.exact = len(seen) <= EXACT_ITEMS
        self.negatives = negatives
        place = np.full(len(counts), -1, dtype=np.int64)
        place[seen] = np.arange(len(seen))
        self._place = torch.from_numpy(place)
        shares = counts[seen].astype(np.float64) ** POWER
        self._cumulated = np.cumsum(shares / shares.sum())
        self._log_expected = torch.from_numpy(np.log(shares / shares.sum()) + math.log(negatives)).float()

    def draw(self, rng: np.random.Generator) -> tuple[Tensor, Tensor | None]:
        """(N,) negatives of a batch, and the logarithm of how often each is expected; none where the softmax is exact."""
        if self.exact:
            return self.items[:0], None
        drawn = np.searchsorted(self._cumulated, rng.random(self.negatives)).clip(max=len(self.items) - 1)
        chosen = torch.from_numpy(drawn)
        return self.items[chosen], self._log_expected[chosen]

    def loss(self, host: SequentialHost, users: Tensor, targets: Tensor, batch: SequenceBatch) -> Tensor:
        """Mean over targets.

        Args:
            host: makes the items' vectors.
            users: (P, d) user vectors.
            targets: (P,) items.
            batch: with what ``draw`` gave; a negative that is the target itself does not count.
        """
        if self.exact:
            vectors = host.target_vectors(self.items.to(users.device))
            return losses.softmax(users, vectors, self._place.to(users.device)[targets])
        negatives = batch.negatives
        vectors = host.target_vectors(torch.cat([targets, negatives]))
        positive = (users * vectors[: len(targets)]).sum(-1)
        scores = users @ vectors[len(targets) :].T
        scores = scores.masked_fill(targets.unsqueeze(1) == negatives, torch.finfo(scores.dtype).min / 2)
        return losses.sampled_softmax(positive, scores, log_expected=batch.log_expected)
