import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from persona.prototypes import UserStatistics
from persona.prototypes.robust import capped_weights, robust_means, trimmed
from tests.persona.prototypes.world import codes

few = settings(max_examples=40, deadline=None)


@few
@given(seed=st.integers(0, 1000), n=st.integers(1, 30), trim=st.sampled_from([0.0, 0.1, 0.3, 0.5]))
def test_at_most_a_share_is_left_out_and_it_is_the_farthest(seed, n, trim):
    generator = torch.Generator().manual_seed(seed)
    distances = torch.randint(0, 6, (n,), generator=generator).double()
    weights = torch.rand(n, generator=generator, dtype=torch.float64) + 0.1
    kept = trimmed(distances, weights, trim)
    assert float(weights[~kept].sum()) <= trim * float(weights.sum()) + 1e-9
    assert kept.any()
    if not kept.all():
        assert distances[kept].max() < distances[~kept].min()
        nearest_left_out = distances == distances[~kept].min()
        more = kept | nearest_left_out
        assert float(weights[kept].sum()) >= (1 - trim) * float(weights.sum()) - 1e-9
        assert more.sum() > kept.sum()
    order = torch.randperm(n, generator=generator)
    assert torch.equal(trimmed(distances[order], weights[order], trim), kept[order])


def test_trimming_by_hand():
    distances = torch.tensor([1.0, 9.0, 2.0, 3.0])
    even = torch.ones(4, dtype=torch.float64)
    assert trimmed(distances, even, 0.25).tolist() == [True, False, True, True]
    assert trimmed(distances, even, 0.24).tolist() == [True] * 4
    heavy = torch.tensor([1.0, 8.0, 1.0, 1.0], dtype=torch.float64)
    assert trimmed(distances, heavy, 0.5).tolist() == [True] * 4


def test_capped_means_by_hand():
    z = codes(7)
    who = torch.tensor([0, 0, 0, 0, 1, 2, 2])
    made = UserStatistics.collect(z, who, torch.zeros(7, dtype=torch.int64), 2)
    assert capped_weights(made, 2).tolist() == [2, 1, 2]
    found = robust_means(made, torch.tensor([0.0, 1.0, 5.0]), cap=2, trim=0.0)
    expected = (2 * z[:4].mean(0) + z[4] + 2 * z[5:].mean(0)) / 5
    torch.testing.assert_close(found.codes[0], expected)
    assert found.weights.tolist() == [5, 0]
    assert found.users.tolist() == [3, 0]
    less = robust_means(made, torch.tensor([0.0, 1.0, 5.0]), cap=2, trim=0.4)
    torch.testing.assert_close(less.codes[0], (2 * z[:4].mean(0) + z[4]) / 3)
    assert less.users.tolist() == [2, 0]


@few
@given(seed=st.integers(0, 1000), cap=st.sampled_from([1.0, 3.0]), repeat=st.integers(1, 2000))
def test_sending_more_gains_nothing_beyond_the_cap(seed, cap, repeat):
    """Without trimming: a user who repeats their contexts shifts the mean by at most cap over the others' weight."""
    others, mine = codes(20, seed), codes(1, seed + 1)
    who = torch.cat([torch.arange(20), torch.full((repeat,), 20)])
    z = torch.cat([others, mine.expand(repeat, -1, -1)])
    made = UserStatistics.collect(z, who, torch.zeros(len(z), dtype=torch.int64), 1)
    found = robust_means(made, torch.zeros(21, dtype=torch.float64), cap, 0.0).codes[0]
    shift = found - others.mean(0)
    share = min(repeat, cap) / (20 + min(repeat, cap))
    torch.testing.assert_close(shift, share * (mine[0] - others.mean(0)), rtol=1e-9, atol=1e-12)


def test_a_far_user_is_trimmed_away():
    others = codes(20, spread=0.1, groups=1)
    far = torch.full((1, 2, 8), 0.99, dtype=torch.float64)
    made = UserStatistics.collect(torch.cat([others, far]), torch.arange(21), torch.zeros(21, dtype=torch.int64), 1)
    distances = torch.cat([torch.zeros(20), torch.tensor([100.0])])
    found = robust_means(made, distances, 1, 0.05).codes[0]
    torch.testing.assert_close(found, others.mean(0))
    assert (robust_means(made, distances, 1, 0.0).codes[0] - others.mean(0)).norm() == pytest.approx(
        float((far[0] - others.mean(0)).norm()) / 21
    )
