import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persona.errors import ConfigError, DataError
from recsys.data.scenarios import PAST, SCENARIOS, SHOCKED_ITEMS, apply_scenario
from tests.recsys.toy import sequences, walks


def log(users=40, events=24, items=200, seed=0):
    """Users who are active all the time, on a catalogue of which the last quarter is not touched before the end."""
    rng = np.random.default_rng(seed)
    histories = rng.integers(1, 3 * items // 4, (users, events)).tolist()
    data = sequences(histories, n_items=items)
    moments = np.arange(events)[None] * users + np.arange(users)[:, None]
    return type(data)(**{**vars(data), "times": moments.reshape(-1).astype(np.int64)})


DATA = log()
MOMENT = 480  # twelve events of everybody lie before
LATER = DATA.times >= MOMENT


@pytest.mark.parametrize("name", SCENARIOS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), moment=st.integers(200, 800))
def test_what_was_before_the_moment_stays_and_times_never_change(name, seed, moment):
    changed = apply_scenario(DATA, name, moment, seed)
    early = DATA.times < moment
    assert (changed.items[early] == DATA.items[early]).all()
    assert (changed.times == DATA.times).all()
    assert changed.items.dtype == DATA.items.dtype
    assert changed.items.min() >= 1
    assert changed.items.max() <= DATA.n_items
    assert (np.diff(changed.offsets) >= 0).all()
    assert len(changed.offsets) == changed.n_users + 1
    assert (changed.digest == DATA.digest) == (name == "none")
    assert apply_scenario(DATA, name, moment, seed).digest == changed.digest, "the seed decides"


@pytest.mark.parametrize("name", ["interest", "catalogue", "popularity"])
def test_another_seed_is_another_shift(name):
    assert apply_scenario(DATA, name, MOMENT, 0).digest != apply_scenario(DATA, name, MOMENT, 1).digest


def test_interests_are_exchanged_in_pairs_item_by_item():
    changed = apply_scenario(DATA, "interest", MOMENT)
    events = np.arange(DATA.n_events) - DATA.offsets[DATA.user_of(np.arange(DATA.n_events))]
    moved = LATER & (events >= PAST)
    assert sorted(changed.items[moved]) == sorted(DATA.items[moved]), "nothing is lost or made up"
    assert (changed.items[~moved] == DATA.items[~moved]).all()
    tails = {tuple(DATA.items[a:b][-10:]): user for user, (a, b) in enumerate(pairs(DATA))}
    partners = [tails[tuple(changed.items[a:b][-10:])] for a, b in pairs(changed)]
    assert all(partners[partner] == user != partner for user, partner in enumerate(partners))


def pairs(data):
    return list(zip(data.offsets[:-1].tolist(), data.offsets[1:].tolist(), strict=True))


def test_users_without_a_past_cannot_leave_an_interest_behind():
    with pytest.raises(DataError, match="no two users"):
        apply_scenario(sequences([[1, 2, 3], [4, 5, 6]]), "interest", 0)


def test_baskets_change_hands_whole():
    histories = [[1 + 20 * u + i for i in range(16)] for u in range(2)]
    times = [[i // 4 for i in range(16)]] * 2
    data = sequences(histories, times, n_items=60)
    changed = apply_scenario(data, "interest", 2)
    # Ten events of the past end inside a basket, which moves as a whole.
    assert changed.items[:8].tolist() == histories[0][:8]
    assert changed.items[8:16].tolist() == histories[1][8:]


def test_new_users_have_no_past():
    changed = apply_scenario(DATA, "new_users", MOMENT)
    assert changed.n_users == 2 * DATA.n_users
    assert (changed.items == DATA.items).all()
    owners = changed.user_of(np.arange(DATA.n_events))
    assert not set(owners[LATER]) & set(owners[~LATER])
    assert len(set(changed.user_ids.to_list())) == changed.n_users
    with pytest.raises(DataError, match="before and after"):
        apply_scenario(DATA, "new_users", 0)


def test_half_of_the_catalogues_events_go_to_items_nobody_knew():
    changed = apply_scenario(DATA, "catalogue", MOMENT)
    known = set(DATA.items[~LATER])
    replaced = changed.items != DATA.items
    assert 0.15 < replaced[LATER].mean() <= 0.6
    assert not set(changed.items[replaced]) & known
    assert not set(DATA.items[replaced]) & set(changed.items[LATER]), "what vanished is gone"
    pairs_ = set(zip(DATA.items[replaced], changed.items[replaced], strict=True))
    assert len({old for old, _ in pairs_}) == len({new for _, new in pairs_}) == len(pairs_), "one for one"
    full = sequences([[1, 2, 3, 1, 2, 3]], n_items=3)
    with pytest.raises(DataError, match="nobody touched before"):
        apply_scenario(full, "catalogue", 3)


def test_a_shock_makes_a_few_rare_items_popular():
    changed = apply_scenario(DATA, "popularity", MOMENT)
    before = np.bincount(DATA.items[~LATER], minlength=DATA.n_items + 1)
    replaced = changed.items != DATA.items
    shocked, events = np.unique(changed.items[replaced], return_counts=True)
    assert 0 < len(shocked) <= SHOCKED_ITEMS
    assert before[shocked].max() <= np.median(before[before > 0])
    assert replaced[LATER].mean() > 0.2
    assert events.max() > 2 * events.min()
    users = DATA.user_of(np.flatnonzero(replaced))
    assert len(set(zip(users, changed.items[replaced], strict=True))) == replaced.sum(), "once a user"


def test_unknown_scenarios_are_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'interest'"):
        apply_scenario(walks(), "intrest", 5)
