import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from persona.rows import Caps


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), per_row=st.integers(1, 4), per_user=st.integers(1, 6))
def test_no_user_counts_more_and_nobody_less(seed, per_row, per_user):
    rng = np.random.default_rng(seed)
    users, rows, days = (rng.integers(0, top, 80) for top in (3, 4, 2))
    days = np.sort(days)
    admitted = Caps(per_row, per_user).admit(users, rows, days)
    for user in range(3):
        for day in range(2):
            own = (users == user) & (days == day)
            within = [np.flatnonzero(own & (rows == row)) for row in range(4)]
            taken = [admitted[events].sum() for events in within]
            assert max(taken) <= per_row
            assert sum(taken) == min(per_user, sum(min(per_row, len(events)) for events in within))
    by_user = np.zeros(80, dtype=bool)
    for user in range(3):
        own = users == user
        by_user[own] = Caps(per_row, per_user).admit(users[own], rows[own], days[own])
    np.testing.assert_array_equal(by_user, admitted)


def test_what_is_counted_outlives_the_call_and_ends_with_its_window():
    caps = Caps(1, 5)
    event = [np.array([value]) for value in (7, 3, 0)]
    assert [caps.admit(*event).item() for _ in range(2)] == [True, False]
    caps.close(0)
    assert not caps.admit(*event).item()
    caps.close(1)
    assert caps.admit(np.array([7]), np.array([3]), np.array([1])).item()
    assert Caps(4, 3).most(users=10) == (30, 30)
    assert Caps(2, 30).most(users=10, windows=7) == (140, 2100)
