"""What is remembered of a window of contexts: per user and prototype, how many contexts there were and the sum of their codes.

These sums are sufficient for refining a bank and for forgetting a user. They add up over shards, whatever the cut, and do not
grow with the number of contexts: a row is a user at a prototype, L d + 1 float64 numbers and two indices. They hold personal
data and never travel with a bank.

Shapes: N contexts, R rows, L layers, d code width, K prototypes, U users.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from persona.errors import DataError, MismatchError

# A user and a prototype (one byte) make one key of 63 bits.
MAX_USER = 1 << 54
_CHUNK = 1 << 14


@dataclass(frozen=True)
class UserStatistics:
    """Rows sorted by user, then by prototype; each pair occurs once, and only with a positive count.

    Attributes:
        users: (R,) int64.
        prototypes: (R,) int64 in 0..k-1.
        counts: (R,) float64 contexts, or their total weight.
        sums: (R, L, d) float64 (weighted) sums of codes.
        k: number of prototypes of the bank that the contexts were assigned by.
    """

    users: Tensor
    prototypes: Tensor
    counts: Tensor
    sums: Tensor
    k: int

    @classmethod
    def collect(
        cls, codes: Tensor, users: Tensor, prototypes: Tensor, k: int, weights: Tensor | None = None
    ) -> UserStatistics:
        """Statistics of one shard of a window.

        Args:
            codes: (N, L, d).
            users: (N,) whole numbers from 0 to 2^54.
            prototypes: (N,) the prototype that each context was assigned to.
            k: number of prototypes.
            weights: (N,) of the contexts; 1 each by default.

        Raises:
            DataError: different lengths, a user or prototype out of range, or codes or weights that
                are not finite.
        """
        if not len(codes) == len(users) == len(prototypes):
            raise DataError(
                f"codes, users and prototypes have {len(codes)}, {len(users)} and {len(prototypes)} rows: give one each"
            )
        users, prototypes = users.long(), prototypes.long()
        if len(users) and not (users.min() >= 0 and users.max() < MAX_USER):
            raise DataError("users have to be whole numbers from 0 to 2^54: give rows of a table instead of hashes")
        if len(users) and not (prototypes.min() >= 0 and prototypes.max() < k):
            raise DataError(f"prototypes have to be whole numbers from 0 to {k - 1}: assign with the bank of this size")
        counts = torch.ones(len(codes), dtype=torch.float64) if weights is None else weights.double()
        if len(counts) != len(codes) or not bool((torch.isfinite(counts) & (counts >= 0)).all()):
            raise DataError("the weights of contexts have to be one each, finite and not negative")
        return cls._grouped(users, prototypes, counts.to(codes.device), codes, counts.to(codes.device), k)

    @classmethod
    def _grouped(
        cls, users: Tensor, prototypes: Tensor, counts: Tensor, codes: Tensor, factors: Tensor, k: int
    ) -> UserStatistics:
        """Rows with one key added up: ``counts``, and ``codes`` times ``factors``."""
        keys, inverse = torch.unique(users * k + prototypes, return_inverse=True)
        total = torch.zeros(len(keys), dtype=torch.float64, device=codes.device).index_add_(0, inverse, counts)
        sums = torch.zeros(len(keys), *codes.shape[1:], dtype=torch.float64, device=codes.device)
        for start in range(0, len(codes), _CHUNK):
            rows = slice(start, start + _CHUNK)
            sums.index_add_(0, inverse[rows], codes[rows].detach().double() * factors[rows, None, None])
        if not torch.isfinite(sums).all():
            raise DataError("some codes are not finite: leave out the contexts that made them")
        there = total > 0
        return cls(keys[there] // k, keys[there] % k, total[there], sums[there], k)

    def __len__(self) -> int:
        return len(self.users)

    def __add__(self, other: UserStatistics) -> UserStatistics:
        """Statistics of two shards of one window."""
        if self.k != other.k or self.sums.shape[1:] != other.sums.shape[1:]:
            raise MismatchError("these statistics were collected with different banks, so they cannot be added")
        parts = zip(self._parts(), other._parts(), strict=True)
        users, prototypes, counts, sums = (torch.cat(pair) for pair in parts)
        return self._grouped(users, prototypes, counts, sums, torch.ones_like(counts), self.k)

    def _parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.users, self.prototypes, self.counts, self.sums

    def means(self) -> Tensor:
        """(R, L, d) mean code of every row."""
        return self.sums / self.counts[:, None, None]

    def by_user(self) -> tuple[Tensor, Tensor]:
        """(U,) users, rising, and (U, L, d) mean codes over all their contexts."""
        whole = self._grouped(
            self.users, torch.zeros_like(self.users), self.counts, self.sums, torch.ones_like(self.counts), 1
        )
        return whole.users, whole.means()

    def per_prototype(self) -> Tensor:
        """(K,) float64 contexts, or their weight, at every prototype."""
        return torch.zeros(self.k, dtype=torch.float64, device=self.counts.device).index_add_(
            0, self.prototypes, self.counts
        )

    def users_per_prototype(self) -> Tensor:
        """(K,) int64 users with a context at every prototype."""
        return torch.bincount(self.prototypes, minlength=self.k)

    def has(self, user: int) -> bool:
        """Whether a context of ``user`` is in here."""
        return bool((self.users == user).any())

    def without(self, user: int) -> UserStatistics:
        """The same window had ``user`` never been there."""
        kept = self.users != user
        return UserStatistics(self.users[kept], self.prototypes[kept], self.counts[kept], self.sums[kept], self.k)


def merge(shards: list[UserStatistics]) -> UserStatistics:
    """Statistics of all shards of one window."""
    return reduce(UserStatistics.__add__, shards)
