import pytest
import torch

from persona.prototypes.split import split_test


def _normal(n, seed=0, d=5):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_two_groups_are_told_apart():
    shift = torch.tensor([6.0, 0, 0, 0, 0]) * (torch.arange(90) % 3 == 0).unsqueeze(1)
    found = split_test(_normal(90) + shift, torch.ones(90, dtype=torch.float64), 0.0, 1, 0)
    assert torch.equal(found.second, torch.arange(90) % 3 == 0)
    assert found.bimodality > 0.85
    assert split_test(_normal(90) + shift, torch.ones(90, dtype=torch.float64), 0.0, 31, 0) is None
    assert split_test(_normal(90) + shift, torch.ones(90, dtype=torch.float64), 1.01 * found.saved, 1, 0) is None
    # Two groups 6 apart, one third and two thirds: n p q 36.
    assert abs(found.saved / (90 * 2 / 9 * 36) - 1) < 0.15


def test_one_group_is_not_bimodal():
    """Published shares for 2-means of a normal (0.64) and a uniform (0.75) distribution, and a skewed one."""
    n = 4000
    ones = torch.ones(n, dtype=torch.float64)
    narrow = torch.tensor([1.0, 0.01, 0.01, 0.01, 0.01])
    normal = split_test(_normal(n) * narrow, ones, 0.0, 1, 0).bimodality
    assert 0.60 < normal < 0.68
    uniform = torch.rand(n, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert 0.73 < split_test(uniform, ones, 0.0, 1, 0).bimodality < 0.77
    assert split_test(-uniform.log(), ones, 0.0, 1, 0).bimodality < 0.75


@pytest.mark.parametrize("d", [2, 16, 64])
@pytest.mark.parametrize("n", [20, 60])
def test_small_cohorts_do_not_look_bimodal_by_chance(n, d):
    """Many more coordinates than users, where 2-means separates even noise that it sees."""
    values = [
        split_test(_normal(n, seed, d), torch.ones(n, dtype=torch.float64), 0.0, 1, 0).bimodality for seed in range(20)
    ]
    assert max(values) < 0.8


@pytest.mark.parametrize("d", [2, 16, 64])
def test_small_groups_far_apart_still_do(d):
    for seed in range(10):
        x = _normal(20, seed, d)
        x[:10, 0] += 10 * d**0.5
        assert split_test(x, torch.ones(20, dtype=torch.float64), 0.0, 1, 0).bimodality > 0.8


def test_the_order_of_rows_decides_nothing():
    for seed in range(10):
        x, w = _normal(40, seed, 8), torch.rand(40, dtype=torch.float64) + 0.5
        order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
        a, b = split_test(x, w, 0.0, 1, 0), split_test(x[order], w[order], 0.0, 1, 0)
        assert torch.equal(a.second[order], b.second)
        assert a.bimodality == pytest.approx(b.bimodality)


def test_weights_count_as_copies():
    x = _normal(30) * 3
    copies = 1 + torch.arange(30) % 3
    weighted = split_test(x, copies.double(), 0.0, 1, 1)
    repeated = split_test(x.repeat_interleave(copies, 0), torch.ones(int(copies.sum()), dtype=torch.float64), 0.0, 1, 1)
    assert weighted.saved == pytest.approx(repeated.saved, rel=0.1)
    assert weighted.second.shape == (30,)


def test_equal_members_are_not_split():
    assert split_test(torch.ones(10, 3, dtype=torch.float64), torch.ones(10, dtype=torch.float64), 0.0, 1, 0) is None


def test_parts_of_noise_save_unseen_members_nothing():
    """With as many coordinates as members: what 2-means saves on those that it saw is chance."""
    for seed in range(20):
        found = split_test(_normal(40, seed, 64), torch.ones(40, dtype=torch.float64), 0.0, 1, 0)
        assert found.saved_unseen < 0 < found.saved


def test_parts_of_a_wide_group_save_unseen_members_as_much():
    """Of a normal distribution along one coordinate, 2/pi of its variance."""
    narrow = torch.tensor([1.0, 0.01, 0.01, 0.01, 0.01])
    found = split_test(_normal(4000) * narrow, torch.ones(4000, dtype=torch.float64), 0.0, 1, 0)
    assert found.saved_unseen == pytest.approx(4000 * 2 / torch.pi, rel=0.05)
    assert found.saved_unseen == pytest.approx(found.saved, rel=0.05)
