"""What was seen so far: how often each item occurs among the events that a training knows, and the ranking by that alone."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.data.batches import Context
from recsys.data.sequences import SequenceData

Int64Array = NDArray[np.int64]


def seen_counts(data: SequenceData, positions: Int64Array) -> Int64Array:
    """(V + 1,) how often each item occurs among the events known to who learns from ``positions``.

    These are each user's events up to the last one learned from; and, where all users share one time, all before the first one.
    """
    users = data.user_of(positions)
    last = np.full(data.n_users, -1, dtype=np.int64)
    np.maximum.at(last, users, positions)
    known = np.arange(data.n_events) <= np.repeat(last, np.diff(data.offsets))
    if not data.ordered_only:
        known |= data.times < data.times[positions].min()
    return np.bincount(data.items[known], minlength=data.n_items + 1)


class ByCount:
    """Scores every item by how often it was seen, for everybody alike: what any training has to beat.

    Args:
        counts: (V + 1,).
    """

    def __init__(self, counts: Int64Array) -> None:
        self.scores = torch.from_numpy(counts).double()

    def score(self, context: Context, candidates: Tensor) -> Tensor:
        """Counts (B, C) of ``candidates`` (B, C)."""
        return self.scores[candidates]

    def score_catalogue(self, context: Context) -> Tensor:
        """Counts (B, V + 1); column 0, the padding, is -inf."""
        scores = self.scores.repeat(len(context), 1)
        scores[:, 0] = -torch.inf
        return scores
