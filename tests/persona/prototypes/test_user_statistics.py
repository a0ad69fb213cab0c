import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from persona.errors import DataError, MismatchError
from persona.prototypes import UserStatistics, merge
from tests.persona.prototypes.world import codes, users

K = 4


def _window(seed, n=60, count=9):
    generator = torch.Generator().manual_seed(seed)
    return codes(n, seed), users(n, count, seed), torch.randint(K, (n,), generator=generator)


def _equal(a, b):
    assert torch.equal(a.users, b.users)
    assert torch.equal(a.prototypes, b.prototypes)
    torch.testing.assert_close(a.counts, b.counts, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(a.sums, b.sums, rtol=1e-12, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000))
def test_rows_are_sums_by_user_and_prototype(seed):
    z, who, where = _window(seed)
    made = UserStatistics.collect(z, who, where, K)
    pairs = {}
    for i in range(60):
        count, total = pairs.get((int(who[i]), int(where[i])), (0, 0))
        pairs[int(who[i]), int(where[i])] = count + 1, total + z[i]
    assert list(zip(made.users.tolist(), made.prototypes.tolist(), strict=True)) == sorted(pairs)
    for i, key in enumerate(sorted(pairs)):
        assert made.counts[i] == pairs[key][0]
        torch.testing.assert_close(made.sums[i], pairs[key][1])
        torch.testing.assert_close(made.means()[i], pairs[key][1] / pairs[key][0])
    assert made.per_prototype().tolist() == torch.bincount(where, minlength=K).tolist()
    assert made.users_per_prototype().tolist() == [sum(p == j for _, p in pairs) for j in range(K)]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), shards=st.integers(1, 5))
def test_shards_add_up_whatever_the_cut_and_order(seed, shards):
    z, who, where = _window(seed)
    shard = torch.randint(shards, (60,), generator=torch.Generator().manual_seed(seed))
    parts = [UserStatistics.collect(z[m], who[m], where[m], K) for m in (shard == s for s in range(shards))]
    whole = UserStatistics.collect(z, who, where, K)
    _equal(merge(parts), whole)
    _equal(merge(parts[::-1]), whole)


def test_by_user_is_the_mean_of_all_of_a_users_contexts():
    z, who, where = _window(3)
    found, means = UserStatistics.collect(z, who, where, K).by_user()
    assert torch.equal(found, who.unique())
    for i, user in enumerate(found):
        torch.testing.assert_close(means[i], z[who == user].mean(0))


def test_weights_count_as_copies():
    z, who, where = _window(1)
    copies = torch.arange(60) % 3
    weighted = UserStatistics.collect(z, who, where, K, copies.double())
    repeated = UserStatistics.collect(*(t.repeat_interleave(copies, 0) for t in (z, who, where)), K)
    _equal(weighted, repeated)
    assert torch.equal(weighted.users_per_prototype(), repeated.users_per_prototype())


def test_without_a_user_is_a_window_without_them():
    z, who, where = _window(2)
    made = UserStatistics.collect(z, who, where, K)
    others = who != 3
    assert made.has(3)
    assert not made.without(3).has(3)
    _equal(made.without(3), UserStatistics.collect(z[others], who[others], where[others], K))
    _equal(made.without(99), made)


def test_what_is_refused():
    z, who, where = _window(0)
    with pytest.raises(DataError, match="60, 60 and 59 rows"):
        UserStatistics.collect(z, who, where[:59], K)
    for people in (who - 5, who + (1 << 54)):
        with pytest.raises(DataError, match="users have to be whole numbers"):
            UserStatistics.collect(z, people, where, K)
    for prototypes, k in ((where, 2), (where - 1, K)):
        with pytest.raises(DataError, match="prototypes have to be whole numbers"):
            UserStatistics.collect(z, who, prototypes, k)
    with pytest.raises(DataError, match="not finite"):
        UserStatistics.collect(z.masked_fill(z > 0.9, torch.nan), who, where, K)
    for weights in (torch.ones(59), -torch.ones(60), torch.full((60,), torch.inf)):
        with pytest.raises(DataError, match="weights"):
            UserStatistics.collect(z, who, where, K, weights)
    with pytest.raises(MismatchError, match="different banks"):
        UserStatistics.collect(z, who, where, K) + UserStatistics.collect(z, who, where, K + 1)
