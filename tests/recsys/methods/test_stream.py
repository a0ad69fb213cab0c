import numpy as np
import pytest

from recsys.methods.stream import Pairs, Stream, Sums
from tests.recsys.toy import ITEMS, sequences, walks

DATA = walks(users=12, events=8)
ALL = np.arange(DATA.n_events)


def stream(data=DATA, live=True):
    return Stream(data, np.ones(data.n_events, dtype=bool), live)


def test_what_is_known_is_what_has_an_earlier_time_stamp():
    data = sequences([[1, 2, 3], [4, 5, 6]], times=[[1, 3, 3], [2, 3, 4]])
    known = stream(data).before(np.arange(6))
    assert known.tolist() == [0, 2, 2, 1, 2, 5], "of one time stamp nothing is learned before all of it is answered"
    assert stream(data, live=False).before(np.arange(6)).tolist() == [6] * 6


@pytest.mark.parametrize("half_life", [7.0, np.inf])
def test_counts_are_those_of_the_events_before_each_row(half_life):
    asked = np.random.default_rng(0).permutation(ALL)[:40]
    flow = stream()
    known = flow.before(asked)
    rows = dict(flow.counts(known, None, half_life))
    few = np.arange(80).reshape(40, 2) % ITEMS
    for row, some in flow.counts(known, few, half_life):
        np.testing.assert_array_equal(some, rows[row][few[row]])
    assert sorted(rows) == list(range(40))
    for row, count in enumerate(known):
        expected = np.zeros(ITEMS + 1)
        for place, item in enumerate(flow.items[:count]):
            expected[item] += 0.5 ** ((count - place) / half_life)
        np.testing.assert_allclose(rows[row], expected, rtol=1e-9)


@pytest.mark.parametrize("both", [False, True])
def test_pairs_are_items_of_one_user_near_each_other_once_both_are_known(both):
    flow = stream()
    pairs = Pairs(flow, steps=3, both=both)
    rank = {int(position): place for place, position in enumerate(flow.events)}
    for known in (0, 30, 61, DATA.n_events):
        expected = np.zeros((ITEMS + 1, ITEMS + 1))
        for user in range(DATA.n_users):
            own = range(DATA.offsets[user], DATA.offsets[user + 1])
            for first in own:
                for second in own:
                    if 0 < second - first <= 3 and max(rank[first], rank[second]) < known:
                        a, b = DATA.items[first], DATA.items[second]
                        expected[a, b] += 1 / (second - first)
                        expected[b, a] += both / (second - first)
        items = np.arange(ITEMS, 0, -1)
        places, of = pairs.of(items, known, DATA.n_events)
        found = np.zeros_like(expected)
        np.add.at(found, (items[of], pairs.targets[places]), pairs.weights[places])
        np.testing.assert_allclose(found, expected)


def test_the_latest_pairs_are_the_last_that_became_known():
    pairs = Pairs(stream(), steps=1, both=True)
    items = np.array([0, 3, 7])
    whole, owners = pairs.of(items, DATA.n_events, DATA.n_events)
    counts = np.bincount(owners, minlength=3)
    assert counts[0] == 0
    assert counts[1:].min() > 2
    places, of = pairs.of(items, DATA.n_events, 2)
    assert of.tolist() == [1, 1, 2, 2]
    assert places.tolist() == [*whole[owners == 1][-2:], *whole[owners == 2][-2:]]
    per_item = np.bincount(pairs.of(np.arange(ITEMS + 1), DATA.n_events, DATA.n_events)[1])
    assert pairs.counting(2) == np.minimum(per_item, 2).sum()


def test_sums_of_a_row_do_not_reach_the_next():
    sums = Sums(4)
    assert sums.of(np.array([1, 3, 1]), np.array([0.5, 2.0, 0.25]), None, 0).tolist() == [0, 0.75, 0, 2, 0]
    assert sums.of(np.array([3]), 1.0, np.array([[3, 1, 3]]), 0).tolist() == [1, 0, 1]
