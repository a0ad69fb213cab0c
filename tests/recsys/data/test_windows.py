"""Windows of new events: which are new, what a device knew before and after them, in whose vocabulary."""

import numpy as np
import polars as pl
import pytest

from persona.errors import ConfigError, DataError
from recsys.data.log import read_log
from recsys.data.windows import DAY, last_days, log_window, moment, prepared_window
from tests.recsys.toy import sequences

IDS = [str(100 + i) for i in range(1, 7)]


def timed(histories, times):
    """Users with events at these times, no baskets."""
    data = sequences(histories, n_items=6)
    flat = np.array([t for own in times for t in own], dtype=np.int64)
    return type(data)(**{**vars(data), "times": flat})


@pytest.fixture
def data():
    return timed([[1, 2, 3], [4, 5], [6]], [[10, 20, 30], [15, 25], [5]])


def log(rows, **more):
    return read_log(pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row"), **more)


def test_a_window_of_prepared_data_is_what_happened_in_it(data):
    window = prepared_window(data, IDS, 20, 30)
    assert window.data.items[window.positions].tolist() == [2, 5]
    context, users = window.contexts(2)
    assert context.items.tolist() == [[1, 2], [4, 5]], "what they know after it, and nothing later"
    assert context.lengths.tolist() == [2, 2]
    assert window.data.user_ids.gather(users).to_list() == ["u0", "u1"]
    assert window.targets().tolist() == window.positions.tolist()
    described = {"events": 2, "users": 2, "unknown_items": 0}
    assert window.describe() == {**described, "from": "1970-01-01 00:00:20 UTC", "to": "1970-01-01 00:00:25 UTC"}


def test_a_first_event_is_no_row_to_compare_on_but_a_context(data):
    window = prepared_window(data, IDS, 0, 16)
    assert window.data.items[window.positions].tolist() == [1, 4, 6]
    assert len(window.targets()) == 0
    assert window.contexts(2)[0].items.tolist() == [[1, 0], [4, 0], [6, 0]]


def test_another_vocabulary_renumbers_and_leaves_out(data):
    window = prepared_window(data, ["105", "104", "999"], 0, 100)
    assert window.data.items.tolist() == [2, 1]
    assert window.unknown == 4
    assert window.data.n_items == 3
    assert window.data.user_ids.to_list() == ["u1"]


def test_a_log_continues_what_is_known_of_its_users(data):
    new = log([("u0", "103", 30), ("u0", "106", 40), ("u9", "101", 41), ("u9", "777", 42), ("u1", "101", 20)])
    window = log_window(new, IDS, data)
    assert window.unknown == 1
    found = dict(
        zip(window.data.user_ids.to_list(), np.split(window.data.items, window.data.offsets[1:-1]), strict=True)
    )
    assert {user: items.tolist() for user, items in found.items()} == {
        "u0": [1, 2, 3, 6],
        "u1": [4, 1, 5],
        "u9": [1],
    }
    assert sorted(window.data.items[window.positions].tolist()) == [1, 1, 6], "the event at 30 was known"
    alone = log_window(new, IDS)
    assert sorted(alone.data.items[alone.positions].tolist()) == [1, 1, 3, 6]


def test_where_there_is_an_order_only_new_events_come_last(data):
    before = type(data)(**{**vars(data), "ordered_only": True})
    rows = pl.DataFrame({"user_id": ["u0", "u0", "u1", "u1"], "item_id": ["103", "101", "102", "103"]})
    window = log_window(read_log(rows), IDS, before)
    first = window.data.items[: window.data.offsets[1]]
    assert first.tolist() == [1, 2, 3, 3, 1]
    with pytest.raises(ConfigError, match="an order but no time"):
        prepared_window(before, IDS, 0, 10)


def test_a_basket_is_one_context_and_never_its_own_past():
    data = sequences([[1, 2, 3, 4], [5, 6]], [[1, 5, 5, 7], [5, 6]], n_items=6)
    window = prepared_window(data, IDS, 5, 7)
    context, users = window.contexts(3)
    assert context.items.tolist() == [[1, 2, 3], [5, 0, 0], [5, 6, 0]]
    assert users.tolist() == [0, 1, 1]
    assert window.data.items[window.targets()].tolist() == [2, 3, 6]
    assert window.data.basket_start.tolist() == [0, 1, 1, 3, 4]


def test_windows_without_an_event_say_so(data):
    with pytest.raises(DataError, match=r"no event lies between .* the prepared log goes from 1970-01-01 00:00:05"):
        prepared_window(data, IDS, 100, 200)
    with pytest.raises(DataError, match="the bundle knows none of the items"):
        prepared_window(data, ["999"], 0, 200)
    with pytest.raises(DataError, match="no event that the prepared log does not have"):
        log_window(log([("u0", "103", 30), ("u0", "102", 20), ("u1", "104", 15)]), IDS, data)


def test_moments_are_dates_or_seconds(data):
    assert moment("86400") == moment("1970-01-02") == moment("1970-01-02T00:00:00+00:00") == DAY
    assert last_days(data, 1 / DAY * 10) == (21, 31)
    with pytest.raises(ConfigError, match="'soon' is no time: give a date such as"):
        moment("soon")
