import json
from itertools import accumulate, pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from persona.errors import ConfigError, DataError
from recsys.data.protocols import PROTOCOLS, Split, TimeCuts, hold_back, make_split
from recsys.data.sequences import SequenceData

PARTS = ("train", "adapt", "validation", "test")


def sequences(times_of_users, *, baskets=False, ordered_only=False):
    """Data whose user u has events at ``times_of_users[u]``; item i is the i-th event, so that items tell events apart."""
    times = [time for own in times_of_users for time in sorted(own)]
    offsets = [0, *accumulate(len(own) for own in times_of_users)]
    starts = []
    for position in range(len(times)):
        user_start = max(offset for offset in offsets if offset <= position)
        tied = [p for p in range(user_start, position + 1) if times[p] == times[position]]
        starts.append(tied[0] if baskets else position)
    return SequenceData(
        items=np.arange(1, len(times) + 1, dtype=np.int32),
        times=np.array(times, dtype=np.int64),
        offsets=np.array(offsets, dtype=np.int64),
        basket_start=np.array(starts, dtype=np.int64),
        user_ids=pl.Series([f"u{u}" for u in range(len(times_of_users))]),
        item_ids=pl.Series([f"i{i}" for i in range(len(times))]),
        titles=None,
        baskets=baskets,
        ordered_only=ordered_only,
    )


def split_or_skip(data, protocol, cuts=None):
    try:
        return make_split(data, protocol, cuts)
    except DataError:
        assume(False)


def hold_back_or_skip(data, split, share):
    try:
        return hold_back(data, split, share)
    except DataError:
        assume(False)


# Few distinct times, so that ties and baskets are common.
datasets = st.builds(
    sequences,
    st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=9), min_size=1, max_size=6),
    baskets=st.booleans(),
)
protocols = st.sampled_from(PROTOCOLS)
shares = st.floats(0.05, 0.95)


def check_no_leak(data, split):
    """What holds under every protocol."""
    everything = np.concatenate([getattr(split, part) for part in PARTS])
    assert len(everything) == len(set(everything)), "no position is in two parts"
    for part in PARTS:
        positions = getattr(split, part)
        assert (np.diff(positions) > 0).all()
        items, lengths = data.contexts(positions, data.n_events)
        assert (lengths > 0).all(), "every target has a past"
        for position, row, length in zip(positions, items, lengths, strict=True):
            past = row[:length] - 1  # item i is event i - 1
            assert (past < position).all()
            assert (data.user_of(past) == data.user_of(position)).all()
            assert (data.times[past] <= data.times[position]).all()
            assert not data.baskets or (data.times[past] < data.times[position]).all()
    for one in PARTS:
        for other in PARTS:
            if one != other:
                shared = np.intersect1d(
                    data.basket_start[getattr(split, one)], data.basket_start[getattr(split, other)]
                )
                assert not len(shared), f"a basket is in {one} and {other}"


@given(datasets, protocols, shares)
def test_nothing_leaks(data, protocol, share):
    split = split_or_skip(data, protocol)
    check_no_leak(data, split)
    check_no_leak(data, hold_back_or_skip(data, split, share))


@given(datasets, protocols, shares)
def test_time_never_runs_backwards_between_parts(data, protocol, share):
    """Under ``time`` for the whole log, under ``paper`` and ``full`` for each user."""
    split = split_or_skip(data, protocol, TimeCuts(0.4, 0.6, 0.8) if protocol == "time" else None)
    split = hold_back_or_skip(data, split, share)
    owners = [np.full(data.n_events, True)]
    if protocol != "time":
        owners = [data.user_of(np.arange(data.n_events)) == user for user in range(data.n_users)]
    for own in owners:
        parts = [getattr(split, part)[own[getattr(split, part)]] for part in PARTS]
        parts = [positions for positions in parts if len(positions)]
        for earlier, later in pairwise(parts):
            if protocol == "time":
                assert data.times[earlier].max() < data.times[later].min()
            else:
                assert earlier.max() < later.min()


@given(datasets)
def test_time_cuts_are_global_and_complete(data):
    cuts = TimeCuts(0.4, 0.6, 0.8)
    split = split_or_skip(data, "time", cuts)
    ends = [data.times.min(), *split.cut_times.values(), data.times.max() + 1]
    has_past = data.basket_start > data.offsets[data.user_of(np.arange(data.n_events))]
    for part, begin, end in zip(PARTS, ends[:-1], ends[1:], strict=True):
        expected = np.flatnonzero((data.times >= begin) & (data.times < end) & has_past)
        np.testing.assert_array_equal(getattr(split, part), expected)
    for name, share in (("adapt", 0.4), ("validation", 0.6), ("test", 0.8)):
        before = (data.times < split.cut_times[name]).mean()
        assert before <= share < before + (data.times == split.cut_times[name]).mean() + 1e-9


def test_time_with_distinct_times_cuts_at_the_asked_shares():
    data = sequences([list(range(0, 100, 2)), list(range(1, 100, 2))])
    split = make_split(data, "time")
    assert split.describe() == {
        "protocol": "time",
        "train": 68,  # 70 less the first event of each of two users
        "adapt": 12,
        "validation": 3,
        "test": 15,
        "cut_times": {"adapt": 70, "validation": 82, "test": 85},
    }
    json.dumps(split.describe())


def test_contexts_of_tests_may_reach_past_the_cut():
    data = sequences([list(range(20))])
    split = make_split(data, "time")
    items, lengths = data.contexts(split.test[-1:], 3)
    np.testing.assert_array_equal(items[0, : lengths[0]] - 1, [16, 17, 18])
    assert 18 in split.test


@pytest.mark.parametrize("protocol", ["paper", "full"])
def test_leave_one_out_of_events(protocol):
    """Users with fewer than three events only train; first events have no past."""
    data = sequences([[1], [1, 2], [1, 2, 3], [1, 2, 3, 4, 5]])
    split = make_split(data, protocol)
    assert split.protocol == protocol
    np.testing.assert_array_equal(split.train, [2, 7, 8])
    np.testing.assert_array_equal(split.validation, [4, 9])
    np.testing.assert_array_equal(split.test, [5, 10])
    assert len(split.adapt) == 0
    assert split.cut_times == {}


def test_leave_one_out_of_baskets():
    """The rest of a held-out basket is dropped; two baskets of any size are too few to hold anything out."""
    data = sequences([[1, 1, 2, 2, 3, 3, 4, 4, 4], [1, 1, 2, 2]], baskets=True)
    split = make_split(data, "paper")
    np.testing.assert_array_equal(split.test, [8])
    np.testing.assert_array_equal(split.validation, [5])
    np.testing.assert_array_equal(split.train, [2, 3, 11, 12])


@given(datasets)
def test_leave_one_out_keeps_every_event_but_first_ones_without_baskets(data):
    assume(not data.baskets)
    split = split_or_skip(data, "full")
    used = sorted(np.concatenate([split.train, split.validation, split.test]))
    np.testing.assert_array_equal(used, np.setdiff1d(np.arange(data.n_events), data.offsets[:-1]))


@pytest.mark.parametrize("protocol", ["paper", "full"])
def test_an_order_without_times_can_be_left_out_but_not_cut(protocol):
    data = sequences([[0, 1, 2, 3]], ordered_only=True)
    assert len(make_split(data, protocol).test) == 1
    with pytest.raises(ConfigError, match="use protocol 'paper' or 'full'"):
        make_split(data, "time")


def test_hold_back_moves_the_later_share_in_global_time():
    data = sequences([list(range(0, 100, 2)), list(range(1, 100, 2))])
    split = make_split(data, "time", TimeCuts(adapt=0.8, validation=0.8, test=0.9))
    assert len(split.adapt) == 0
    held = hold_back(data, split, share=0.25)
    assert len(held.train) + len(held.adapt) == len(split.train)
    assert len(held.adapt) / len(split.train) == pytest.approx(0.25, abs=0.02)
    assert data.times[held.train].max() < held.cut_times["adapt"] == data.times[held.adapt].min()
    assert held.describe()["cut_times"]["validation"] == split.cut_times["validation"]
    np.testing.assert_array_equal(held.test, split.test)


def test_hold_back_takes_the_later_share_of_every_user():
    data = sequences([list(range(13)), list(range(7)), [1, 2]])
    held = hold_back(data, make_split(data, "paper"), share=0.4)
    # 10, 4 and 1 training positions: 4, 2 (of 1.6) and 0 (of 0.4) of them are held back.
    np.testing.assert_array_equal(held.adapt, [7, 8, 9, 10, 16, 17])
    np.testing.assert_array_equal(held.train, [1, 2, 3, 4, 5, 6, 14, 15, 21])


def test_hold_back_divides_no_basket():
    data = sequences([[0, 1, 2, 3, 3, 3, 4, 5, 6]], baskets=True)
    held = hold_back(data, make_split(data, "full"), share=0.5)
    np.testing.assert_array_equal(held.train, [1, 2, 3, 4, 5])
    np.testing.assert_array_equal(held.adapt, [6])


def test_hold_back_leaves_an_adapt_part_alone():
    data = sequences([list(range(100))])
    split = make_split(data, "time")
    assert hold_back(data, split, 0.5) is split


def test_hold_back_of_nothing_is_refused():
    data = sequences([[1, 2, 3, 4]])
    with pytest.raises(DataError, match="leaves nothing on one side"):
        hold_back(data, make_split(data, "paper"))
    with pytest.raises(ConfigError, match="between 0 and 1"):
        hold_back(data, make_split(data, "paper"), share=1.0)


@pytest.mark.parametrize("baskets", [False, True])
@pytest.mark.parametrize("protocol", ["paper", "full"])
@pytest.mark.parametrize("times", [[[1, 2], [3]], [[1], [5, 6, 7]]], ids=["nothing to test", "nothing to train"])
def test_too_short_histories_are_refused(times, protocol, baskets):
    data = sequences(times, baskets=baskets)
    with pytest.raises(DataError, match="at least four " + ("baskets" if baskets else "events")):
        make_split(data, protocol)


def test_one_time_for_all_cannot_be_cut():
    data = sequences([[7] * 10, [7] * 10])
    with pytest.raises(DataError, match=r"for train and adapt and validation at the cuts 0\.7, 0\.82, 0\.85"):
        make_split(data, "time")


@pytest.mark.parametrize(
    "cuts", [(0.0, 0.5, 0.9), (0.6, 0.5, 0.9), (0.5, 0.9, 0.9), (0.5, 0.6, 1.0), (0.5, 0.6, float("nan"))]
)
def test_cuts_out_of_order_are_refused(cuts):
    with pytest.raises(ConfigError, match="0 < adapt <= validation < test < 1"):
        TimeCuts(*cuts)


def test_settings_that_do_not_apply_are_refused():
    data = sequences([[1, 2, 3, 4]])
    with pytest.raises(ConfigError, match="did you mean 'paper'"):
        make_split(data, "papper")
    with pytest.raises(ConfigError, match="makes no cuts"):
        make_split(data, "paper", TimeCuts())


def test_a_split_cannot_be_changed():
    split = make_split(sequences([[1, 2, 3, 4]]), "paper")
    assert isinstance(split, Split)
    with pytest.raises(AttributeError):
        split.test = split.train
