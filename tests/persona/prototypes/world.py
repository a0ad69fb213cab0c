"""Editors with random heads, codes and users for the tests of prototypes."""

from functools import cache

import pytest
import torch
from torch import Tensor

from persona.editor import ParameterEditor
from persona.prototypes import HeadMetric, Partition, UserStatistics, fit_bank
from tests.persona.toy import editor_for, mlp

HEADS = ("full", "low_rank")
by_head = pytest.mark.parametrize("head", HEADS)
L, D = 2, 8


@cache
def editor(head: str = "full", bias: bool = True, seed: int = 0) -> ParameterEditor:
    """An editor as if trained, in float64, so that materialised edits are exact enough to compare with."""
    made = editor_for(mlp(bias=bias), head=head, rank=2)
    with torch.no_grad():
        for i, p in enumerate(made.heads.parameters()):
            p.copy_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * seed + i)))
    return made.double().requires_grad_(False)


@cache
def metric(head: str = "full", bias: bool = True) -> HeadMetric:
    return HeadMetric(editor(head, bias))


def codes(n: int, seed: int = 0, groups: int = 0, spread: float = 0.1, place: int = 0) -> Tensor:
    """(n, L, D) float64 codes in (-1, 1); if given, around so many centres, which depend on ``place`` alone."""
    z = torch.randn(n, L, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if groups:
        generator = torch.Generator().manual_seed(1000 + place)
        centres = torch.randn(groups, L, D, generator=generator, dtype=torch.float64)
        z = centres[torch.arange(n) % groups] + spread * z
    return torch.tanh(z)


def users(n: int, count: int, seed: int = 0) -> Tensor:
    return torch.randint(count, (n,), generator=torch.Generator().manual_seed(seed))


@cache
def partition(head: str = "full", k: int = 4, n: int = 300) -> Partition:
    return fit_bank(editor(head), codes(n, groups=k), k, seed=0, users=users(n, 30), basis_size=16)


def window(part: Partition, z: Tensor, who: Tensor, head: str = "full") -> UserStatistics:
    """Statistics of contexts, assigned by the bank."""
    from persona.prototypes import Assigner

    nearest = Assigner(metric(head), part.bank.prototypes)(z).prototypes
    return UserStatistics.collect(z, who, nearest, len(part.bank))
