"""A uniform sample of the contexts of a stream, the same however the stream is cut.

Every context has a priority, a hash of the seed, its user and the number of its event; the sample is the contexts of lowest
priority. The lowest of a whole are among the lowest of its parts, so samples of shards merge to the sample of the whole: in any
order, in any grouping, and a shard that is merged twice changes nothing. Source: Cohen and Kaplan, "Summarizing data using
bottom-k sketches" (PODC 2007).

Shapes: N contexts, n of them in the sample, L layers, d code width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from persona.errors import ConfigError, DataError, MismatchError

# The finaliser of SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014).
_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


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
