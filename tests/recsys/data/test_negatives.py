import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from persona.errors import DataError
from recsys.data.negatives import popular_negatives, sample_negatives
from recsys.data.sequences import SequenceData


def log_of(items_of_users, n_items):
    """Data whose user u touched ``items_of_users[u]``, in this order and repeated as given."""
    items = np.array([item for own in items_of_users for item in own], dtype=np.int32)
    return SequenceData(
        items=items,
        times=np.arange(len(items)),
        offsets=np.concatenate([[0], np.cumsum([len(own) for own in items_of_users])]).astype(np.int64),
        basket_start=np.arange(len(items)),
        user_ids=pl.Series([f"u{u}" for u in range(len(items_of_users))]),
        item_ids=pl.Series([f"i{i}" for i in range(n_items)]),
        titles=None,
        baskets=False,
        ordered_only=False,
    )


@st.composite
def cases(draw):
    n_items = draw(st.integers(2, 12))
    histories = st.lists(st.integers(1, n_items), min_size=1, max_size=15).filter(lambda own: len(set(own)) < n_items)
    data = log_of(draw(st.lists(histories, min_size=1, max_size=5)), n_items)
    users = draw(st.lists(st.integers(0, data.n_users - 1), max_size=12))
    return data, np.array(users, dtype=np.int64), draw(st.integers(1, 8)), draw(st.integers(0, 99))


def untouched(data, user):
    own = data.items[data.offsets[user] : data.offsets[user + 1]]
    return set(range(1, data.n_items + 1)) - set(own.tolist())


@given(cases(), st.booleans())
def test_negatives_were_never_touched(case, distinct):
    data, users, count, seed = case
    negatives = sample_negatives(data, users, count, np.random.default_rng(seed), distinct=distinct)
    assert negatives.shape == (len(users), count)
    assert negatives.dtype == np.int32
    for user, row in zip(users, negatives, strict=True):
        assert set(row.tolist()) <= untouched(data, user)


@given(cases())
def test_distinct_rows_repeat_nothing_where_the_pool_allows(case):
    data, users, count, seed = case
    negatives = sample_negatives(data, users, count, np.random.default_rng(seed), distinct=True)
    for user, row in zip(users, negatives, strict=True):
        if len(untouched(data, user)) >= count:
            assert len(set(row.tolist())) == count


@pytest.mark.parametrize(
    ("n_items", "count", "distinct"),
    [
        (12, 3, False),
        (12, 3, True),  # drawn again until distinct
        (12, 6, True),  # the first of a permutation
        (12, 9, True),  # the whole pool
    ],
)
def test_every_untouched_item_is_equally_likely_in_every_column(n_items, count, distinct):
    data = log_of([[12, 1, 5, 5], [2]], n_items)
    rows = 20_000
    negatives = sample_negatives(
        data, np.zeros(rows, dtype=np.int64), count, np.random.default_rng(5), distinct=distinct
    )
    for column in negatives.T:
        seen = np.bincount(column, minlength=n_items + 1)
        assert seen[[0, 1, 5, 12]].sum() == 0
        # The seed is fixed, so that a fair sampler never fails by chance.
        assert chisquare(np.delete(seen, [0, 1, 5, 12])).pvalue > 1e-4


def test_pairs_of_distinct_negatives_are_equally_likely():
    """Uniform columns are not enough: every ordered pair has to be as likely as any other."""
    data = log_of([[1]], 6)
    negatives = sample_negatives(data, np.zeros(40_000, dtype=np.int64), 2, np.random.default_rng(6), distinct=True)
    pairs = np.bincount(negatives[:, 0] * 7 + negatives[:, 1], minlength=49)
    assert (pairs > 0).sum() == 20
    assert chisquare(pairs[pairs > 0]).pvalue > 1e-4


def test_a_heavy_user_gets_the_few_items_left():
    data = log_of([[item for item in range(1, 1001) if item not in (7, 500, 1000)], [1]], 1000)
    negatives = sample_negatives(data, np.array([0, 1, 0]), 3, np.random.default_rng(0), distinct=True)
    assert set(negatives[0].tolist()) == set(negatives[2].tolist()) == {7, 500, 1000}


def test_a_pool_too_small_for_distinct_rows_is_drawn_with_repetition():
    data = log_of([[1, 2, 3], [1]], 5)
    negatives = sample_negatives(data, np.array([0, 1]), 4, np.random.default_rng(0), distinct=True)
    assert set(negatives[0].tolist()) <= {4, 5}
    assert sorted(negatives[1].tolist()) == [2, 3, 4, 5]


def test_a_user_who_touched_everything_is_named():
    data = log_of([[1], [2, 1, 3, 3]], 3)
    with pytest.raises(DataError, match="user 'u1' touched all 3 items"):
        sample_negatives(data, np.array([0, 1]), 2, np.random.default_rng(0))
    assert sample_negatives(data, np.array([0, 0]), 2, np.random.default_rng(0)).shape == (2, 2)


@pytest.mark.parametrize("distinct", [False, True])
def test_an_epoch_is_fresh_and_reproducible(distinct):
    rng = np.random.default_rng(0)
    data = log_of([rng.integers(1, 201, 30).tolist() for _ in range(20)], 200)
    users = rng.integers(0, 20, 500)

    def epoch(number):
        return sample_negatives(data, users, 4, np.random.default_rng([3, number]), distinct=distinct)

    np.testing.assert_array_equal(epoch(1), epoch(1))
    assert (epoch(1) != epoch(2)).mean() > 0.9


def test_count_must_be_positive():
    with pytest.raises(ValueError, match="at least 1"):
        sample_negatives(log_of([[1]], 3), np.array([0]), 0, np.random.default_rng(0))


@given(cases(), st.data())
def test_popular_negatives_are_untouched_items_of_the_pool_where_it_has_any(case, more):
    data, users, count, seed = case
    pool = np.array(more.draw(st.lists(st.integers(1, data.n_items), min_size=1, max_size=20)))
    drawn = popular_negatives(data, users, count, np.random.default_rng(seed), pool)
    assert drawn.shape == (len(users), count)
    for user, row in zip(users, drawn, strict=True):
        free = untouched(data, user)
        assert set(row.tolist()) <= set(free)
        if len(set(pool) & set(free)) == len(set(pool)):
            assert set(row.tolist()) <= set(pool.tolist())


def test_popular_negatives_are_as_frequent_as_in_their_pool():
    data = log_of([[1], [2]], 5)
    pool = np.array([1, 3, 3, 3, 4, 4, 5, 2])
    drawn = popular_negatives(data, np.zeros(4000, dtype=np.int64), 2, np.random.default_rng(1), pool)
    observed = np.bincount(drawn.ravel(), minlength=6)
    assert observed[[0, 1]].tolist() == [0, 0]
    assert chisquare(observed[2:], drawn.size * np.array([1, 3, 2, 1]) / 7).pvalue > 1e-3
