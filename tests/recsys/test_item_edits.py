from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from persona.rows import RowSums
from recsys.data.batches import Context
from recsys.item_edits import Blocks, Events, ItemEdits, new_edits, table_of
from recsys.methods import Problem
from tests.recsys.toy import ITEMS, SMALL, personalised, sequences, walks

TIME = replace(SMALL, protocol="time")
DATA = walks(users=25, events=12)
# The same in baskets of two, and four users at a time.
TIED = sequences(DATA.items.reshape(25, 12).tolist(), [[e // 2 * 25 + u // 4 for e in range(12)] for u in range(25)])
LENGTH = 5


def context_of(data, positions):
    items, lengths = data.contexts(positions, LENGTH)
    return Context(torch.from_numpy(items), torch.from_numpy(lengths))


def following(data, kind="gru4rec", half_life=np.inf, size=7, **changes):
    split = Problem(data, TIME).split
    model = personalised(kind, learned=True)
    events, edits, _ = new_edits(data, model.host, split.train, seed=0)
    edits = replace(edits, **{"k0": 0.1, "beta": 0.5, **changes})
    return ItemEdits(model, events, edits, Blocks(data, split.cut_times["adapt"], size), half_life)


def catalogue(edits, data, positions):
    return edits.at(positions).score_catalogue(context_of(data, positions)).detach().numpy()


@pytest.mark.parametrize("data", [DATA, TIED], ids=["one at a time", "tied"])
@pytest.mark.parametrize("half_life", [np.inf, 20.0])
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_no_later_event_changes_a_score(data, half_life, seed):
    """What happens from the moment of an answer on is put in another order, the judged event with it."""
    rng = np.random.default_rng(seed)
    position = rng.choice(Problem(data, TIME).split.test, 1)
    later = np.flatnonzero(data.times >= data.times[position])
    items = data.items.copy()
    items[later] = rng.permutation(items[later])
    changed = replace(data, items=items)
    one, other = (catalogue(following(d, half_life=half_life), d, position) for d in (data, changed))
    np.testing.assert_array_equal(one, other)


def test_an_earlier_event_changes_scores():
    position = Problem(DATA, TIME).split.test[-1:]
    cut = Problem(DATA, TIME).split.cut_times["adapt"]
    items = DATA.items.copy()
    items[(DATA.times >= cut) & (DATA.times < DATA.times[position] - 30)] = ITEMS
    changed = replace(DATA, items=items)
    asked = context_of(DATA, position)
    one, other = (following(d).at(position).score_catalogue(asked).detach() for d in (DATA, changed))
    assert not torch.equal(one, other)


@pytest.mark.parametrize("kind", ["sasrec", "gru4rec", "din"])
def test_rows_have_the_same_scores_in_any_company(kind):
    edits, rows = following(DATA, kind, half_life=20.0), Problem(DATA, TIME).split.test
    rows = np.random.default_rng(3).permutation(rows)
    together = catalogue(edits, DATA, rows)
    alone = np.concatenate([catalogue(edits, DATA, row) for row in np.split(rows[:6], 6)])
    np.testing.assert_allclose(together[:6], alone, rtol=1e-4, atol=1e-6)
    assert np.isneginf(together[:, 0]).all()
    candidates = torch.randint(1, ITEMS + 1, (len(rows), 8))
    few = edits.at(rows).score(context_of(DATA, rows), candidates).detach().numpy()
    np.testing.assert_allclose(few, np.take_along_axis(together, candidates.numpy(), 1), rtol=1e-4, atol=1e-5)


def test_a_row_meets_the_table_of_the_blocks_before_its_own():
    edits = following(TIED)
    for position in Problem(TIED, TIME).split.test[::5]:
        block = edits.blocks.before(np.array([position]))[0]
        ends = np.append(edits.blocks.starts, len(edits.blocks.events))
        known, own = edits.blocks.events[: ends[block]], edits.blocks.events[ends[block] : ends[block + 1]]
        assert position in own, "it is served in its own block"
        assert (TIED.times[known] < TIED.times[position]).all()
        sums = RowSums(*edits.events.table.shape)
        edits.events.add(sums, known)
        catalogue(edits, TIED, np.array([position]))
        np.testing.assert_array_equal(table_of(edits.host), edits.edits.table(sums.at()))


def test_before_its_first_block_a_host_without_biases_is_what_it_was():
    edits = following(DATA, beta=0.0)
    model = personalised("gru4rec", learned=True)
    first = edits.blocks.events[:1]
    context = context_of(DATA, first)
    assert torch.equal(edits.at(first).score_catalogue(context), model.score_catalogue(context))
    catalogue(edits, DATA, edits.blocks.events[-1:])
    assert not np.array_equal(table_of(edits.host), table_of(model.host))
    assert torch.equal(edits.at(first).score_catalogue(context), model.score_catalogue(context)), "and again"
    unmoved = following(DATA, generator=None)
    catalogue(unmoved, DATA, unmoved.blocks.events[-1:])
    np.testing.assert_array_equal(table_of(unmoved.host), table_of(model.host))
    assert unmoved.moved_rows() == 0 < edits.moved_rows() <= ITEMS


def test_an_event_adds_the_mean_of_the_known_items_in_its_context():
    table = np.arange(12, dtype=np.float32).reshape(6, 2)
    known = np.array([0, 3, 0, 1, 0, 2])
    data = sequences([[1, 2, 3, 2], [2, 4, 5]], n_items=5)
    messages, has = Events(data, table, known, 5).messages(np.arange(7))
    expected = {1: table[1], 2: table[1], 3: (table[1] + table[3]) / 2}
    for position in range(7):
        assert has[position] == (position in expected)
        np.testing.assert_array_equal(messages[position], expected.get(position, np.zeros(2)))


def test_generators_are_the_same_for_the_same_seed():
    host, rows = personalised().host, Problem(DATA, TIME).split.train
    one, other = (new_edits(DATA, host, rows, seed=1)[1].generator for _ in range(2))
    np.testing.assert_array_equal(one, other)
    assert not np.array_equal(new_edits(DATA, host, rows, seed=2)[1].generator, one)
