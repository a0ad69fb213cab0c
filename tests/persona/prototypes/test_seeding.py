import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from persona.errors import DataError
from persona.prototypes.seeding import distance_floor, plus_plus


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(8, 60), k=st.integers(1, 8))
def test_seeds_are_distinct_points(seed, n, k):
    x = torch.randn(n, 3, generator=_generator(seed), dtype=torch.float64)
    seeds = plus_plus(x, k, torch.ones(n, dtype=torch.float64), _generator(seed), distance_floor(x))
    assert all((x == s).all(1).any() for s in seeds)
    assert len(seeds.unique(dim=0)) == k


def test_far_groups_get_a_seed_each():
    """Four groups far apart: D^2 weighting finds all of them, uniform choice would in 9 % of the tries."""
    x = torch.randn(400, 2, generator=_generator()) + 1e3 * torch.arange(4).repeat(100).unsqueeze(1)
    for seed in range(20):
        seeds = plus_plus(x, 4, torch.ones(400, dtype=torch.float64), _generator(seed), distance_floor(x))
        assert sorted((seeds[:, 0] / 1e3).round().tolist()) == [0, 1, 2, 3]


def test_the_first_seed_is_drawn_by_weight():
    x = torch.arange(4.0).unsqueeze(1)
    w = torch.tensor([0.0, 1.0, 0.0, 3.0], dtype=torch.float64)
    drawn = torch.stack([plus_plus(x, 1, w, _generator(seed), 0.0)[0, 0] for seed in range(400)])
    assert set(drawn.tolist()) == {1.0, 3.0}
    # 0.75 +- 4 standard errors
    assert abs(float((drawn == 3.0).double().mean()) - 0.75) < 4 * math.sqrt(0.75 * 0.25 / 400)


def test_copies_are_not_distinct():
    x = torch.tensor([[0.1, 0.2], [0.7, 0.3]]).repeat(30, 1)
    with pytest.raises(DataError, match="only 2 distinct edits for k = 3"):
        plus_plus(x, 3, torch.ones(60, dtype=torch.float64), _generator(), distance_floor(x))
