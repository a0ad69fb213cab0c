from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.data.batches import Context
from recsys.methods import METHODS, Problem, measure, rivals, train_method
from recsys.methods.stream import Pairs
from recsys.task import RECSYS
from tests.recsys.toy import ITEMS, SMALL, sequences, walks

SIMPLE = ("popularity", "popularity_recent", "item_knn", "markov", "personal")
TIME = replace(SMALL, protocol="time")
DATA = walks(users=25, events=12)
# The same in baskets of two, and four users at a time.
TIED = sequences(DATA.items.reshape(25, 12).tolist(), [[e // 2 * 25 + u // 4 for e in range(12)] for u in range(25)])
# With settings of their own: what validation would choose depends on its negatives, which nobody touches at any time.
MADE = {
    "popularity": lambda problem: train_method("popularity", problem).scorer,
    "popularity_recent": lambda problem: rivals.Popularity(rivals._stream(problem), 40.0),
    "item_knn": lambda problem: rivals.ItemKNN(rivals._stream(problem), 5),
    "markov": lambda problem: rivals.Markov(Pairs(rivals._stream(problem), 1, both=False), 10.0),
    "personal": lambda problem: rivals.Personal(rivals._stream(problem), 4.0),
}


def scores(name, data, positions, config=TIME):
    """(B, V + 1) of the catalogue."""
    items, lengths = data.contexts(positions, 5)
    context = Context(torch.from_numpy(items), torch.from_numpy(lengths))
    return MADE[name](Problem(data, config)).at(positions).score_catalogue(context).numpy()


def test_the_rivals_of_every_comparison_are_methods():
    assert set(RECSYS.rivals) < set(SIMPLE) < set(METHODS)


@pytest.mark.parametrize("name", SIMPLE)
@pytest.mark.parametrize("data", [DATA, TIED], ids=["one at a time", "tied"])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_no_later_event_changes_a_score(name, data, seed):
    """What happens from the moment of an answer on is put in another order, the judged event with it."""
    rng = np.random.default_rng(seed)
    position = rng.choice(Problem(data, TIME).split.test)
    later = np.flatnonzero(data.times >= data.times[position])
    items = data.items.copy()
    items[later] = rng.permutation(items[later])
    changed = replace(data, items=items)
    asked = np.array([position])
    np.testing.assert_array_equal(scores(name, changed, asked), scores(name, data, asked))


@pytest.mark.parametrize("name", [name for name in SIMPLE if name != "popularity"])
def test_an_earlier_event_changes_scores(name):
    position = Problem(DATA, TIME).split.test[-1:]
    user = DATA.user_of(position)[0]
    items = DATA.items.copy()
    items[DATA.offsets[user] : position[0]] = ITEMS
    changed = replace(DATA, items=items)
    assert not np.array_equal(scores(name, changed, position), scores(name, DATA, position))


@pytest.mark.parametrize("name", SIMPLE)
def test_candidates_have_the_scores_that_they_have_in_the_catalogue(name):
    problem = Problem(DATA, TIME)
    rows, candidates = problem.split.test, torch.randint(1, ITEMS + 1, (len(problem.split.test), 40))
    few = MADE[name](problem).at(rows).score(None, candidates).numpy()
    np.testing.assert_array_equal(few, np.take_along_axis(scores(name, DATA, rows), candidates.numpy(), axis=1))


@pytest.mark.parametrize("name", SIMPLE)
@pytest.mark.parametrize("protocol", ["paper", "time"])
def test_rows_have_the_same_scores_in_any_company(name, protocol):
    config = replace(SMALL, protocol=protocol)
    rows = Problem(DATA, config).split.test
    rows = np.random.default_rng(3).permutation(rows)
    together = scores(name, DATA, rows, config)
    alone = np.concatenate([scores(name, DATA, row, config) for row in np.split(rows[:6], 6)])
    np.testing.assert_allclose(together[:6], alone, rtol=1e-9)
    assert np.isneginf(together[:, 0]).all()
    assert np.isfinite(together[:, 1:]).all()


@pytest.mark.parametrize("name", SIMPLE)
def test_where_the_last_event_is_left_out_no_method_knows_it(name):
    """Validation and test events of all users become others: nothing but their histories may tell."""
    problem = Problem(DATA, SMALL)
    held = np.concatenate([problem.split.validation, problem.split.test])
    items = DATA.items.copy()
    items[problem.split.test] = 1
    changed = replace(DATA, items=items)
    positions = problem.split.test
    np.testing.assert_array_equal(scores(name, changed, positions, SMALL), scores(name, DATA, positions, SMALL))
    assert not np.isin(problem.everything, held).any()


def test_counts_of_training_do_not_move_and_recent_ones_do():
    """A new item that everybody has is found by the stream alone."""
    new = ITEMS
    histories = [[1 + (u + e) % 9 for e in range(8)] + [new if u % 2 else 1] for u in range(30)]
    times = [[100 * e + u for e in range(9)] for u in range(30)]
    data = sequences(histories, times)
    last = data.offsets[1:][-1:] - 1  # of the latest user
    assert scores("popularity", data, last)[0, new] == 0
    assert scores("popularity_recent", data, last)[0, new] > 0


def test_neighbours_and_transitions_know_the_walks():
    """Nine steps of ten are certain: co-visits and transitions find them, counts do not."""
    found = {name: measure(Problem(walks(), TIME), name).summary["uauc"] for name in SIMPLE}
    assert min(found["item_knn"], found["markov"]) > 0.8
    assert max(found["popularity"], found["popularity_recent"]) < 0.6


def test_own_counts_know_who_repeats():
    histories = [[1 + u % 7, 8 + u % 11] * 6 for u in range(30)]
    data = sequences(histories)
    config = replace(SMALL, protocol="full", monitor="ndcg_10", seen="no")
    assert measure(Problem(data, config), "personal").summary["mrr"] == pytest.approx(1.0)


def test_a_log_with_nothing_but_an_order_has_rivals_too():
    data = replace(walks(), ordered_only=True)
    same = [measure(Problem(data, SMALL), name).summary["uauc"] for name in ("popularity", "popularity_recent")]
    assert 0 < same[1] < 1
    assert measure(Problem(data, SMALL), "item_knn").summary["uauc"] > 0.8


@pytest.mark.parametrize("name", SIMPLE)
def test_rivals_say_what_a_refresh_sends_and_have_no_parameters(name):
    result = measure(Problem(DATA, TIME), name)
    assert (result.refresh_bytes == 0) == (name in ("popularity", "personal"))
    assert result.parameters == 0
    assert result.epochs == 0
    assert result.seconds > 0
