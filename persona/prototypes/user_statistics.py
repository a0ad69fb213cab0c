"""What is remembered of a window of contexts: per user and prototype, how many contexts there were and the sum of their codes.

These sums are sufficient for refining a bank and for forgetting a user. They add up over shards, whatever the cut, and do not
grow with the number of contexts: a row is a user at a prototype, L d + 1 float64 numbers and two indices. They hold personal
data and never travel with a bank.

Shapes: N contexts, R rows, L layers, d code width, K prototypes, U users.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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
        counts = counts.to(codes.device)
        return cls._grouped([(users, prototypes, counts, codes, counts)], k)

    @classmethod
    def _grouped(cls, parts: Sequence[tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]], k: int) -> UserStatistics:
        """Rows of one user and prototype added up; parts are users, prototypes, counts, codes, and factors of codes."""
        keys, inverse = torch.unique(torch.cat([part[0] * k + part[1] for part in parts]), return_inverse=True)
        counts = torch.cat([part[2] for part in parts])
        total = torch.zeros(len(keys), dtype=torch.float64, device=counts.device).index_add_(0, inverse, counts)
        sums = torch.zeros(len(keys), *parts[0][3].shape[1:], dtype=torch.float64, device=counts.device)
        # Part by part and piece by piece: codes are never copied as a whole.
        for (*_, codes, factors), rows in zip(parts, torch.split(inverse, [len(p[0]) for p in parts]), strict=True):
            for start in range(0, len(codes), _CHUNK):
                piece = slice(start, start + _CHUNK)
                values = codes[piece].detach().double()
                sums.index_add_(0, rows[piece], values if factors is None else values * factors[piece, None, None])
        if not torch.isfinite(sums).all():
            raise DataError("some codes are not finite: leave out the contexts that made them")
        made = cls(keys // k, keys % k, total, sums, k)
        return made if bool((total > 0).all()) else made._rows(total > 0)

    def __len__(self) -> int:
        return len(self.users)

    def __add__(self, other: UserStatistics) -> UserStatistics:
        """Statistics of two shards of one window."""
        return merge([self, other])

    def means(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """(R, L, d) mean code of every row, or of some rows."""
        return self.sums[rows] / self.counts[rows, None, None]

    def by_user(self) -> tuple[Tensor, Tensor]:
        """(U,) users, rising, and (U, L, d) mean codes over all their contexts."""
        whole = self._grouped([(self.users, torch.zeros_like(self.users), self.counts, self.sums, None)], 1)
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
        return self._rows(self.users != user)

    def _rows(self, kept: Tensor) -> UserStatistics:
        return UserStatistics(self.users[kept], self.prototypes[kept], self.counts[kept], self.sums[kept], self.k)


def merge(shards: Sequence[UserStatistics]) -> UserStatistics:
    """Statistics of all shards of one window.

    Raises:
        MismatchError: shards collected with different banks.
    """
    if len({(shard.k, shard.sums.shape[1:]) for shard in shards}) != 1:
        raise MismatchError("these statistics were collected with different banks, so they cannot be added")
    return UserStatistics._grouped([(s.users, s.prototypes, s.counts, s.sums, None) for s in shards], shards[0].k)


class StatisticsFold:
    """Adds up any number of shards one at a time, in memory for about twice the result.

    Like carries in a binary counter: a shard is merged with one of its own size, so that each is copied a logarithmic number
    of times.

    Args:
        k: number of prototypes.
        shape: (L, d) of the codes.
    """

    def __init__(self, k: int, shape: Iterable[int]) -> None:
        whole = torch.zeros(0, dtype=torch.int64)
        self._empty = UserStatistics(whole, whole, whole.double(), torch.zeros(0, *shape, dtype=torch.float64), k)
        self._waiting: list[UserStatistics] = []

    def add(self, shard: UserStatistics) -> None:
        """One more shard.

        Raises:
            MismatchError: it was collected with another bank.
        """
        merged = merge([self._empty, shard])
        while self._waiting and len(self._waiting[-1]) <= 2 * len(merged):
            merged = merge([self._waiting.pop(), merged])
        self._waiting.append(merged)

    def result(self) -> UserStatistics:
        """Statistics of all shards so far."""
        return merge([self._empty, *self._waiting])
