"""Negatives: items that a user never touched anywhere in the log.

Items are drawn uniformly from the complement of what the user touched, without rejection. Let the user's touched items be
s_0 < s_1 < ..., then s_j - j - 1 untouched items lie below s_j, and the r-th untouched item (r = 0, 1, ...) is

    r + 1 + #{j : s_j - j - 1 <= r}.

One binary search a negative answers that, for users who touched two items as for those who touched all but two.

Pass ``numpy.random.default_rng([seed, epoch])``: negatives are then fresh each epoch, and the same after a resume.

Letters: B rows, U users, V items, S touched items.
"""

import numpy as np
from numpy.typing import NDArray

from persona.errors import DataError
from recsys.data.sequences import SequenceData

REDRAWS = 50


def sample_negatives(
    data: SequenceData, users: NDArray[np.integer], count: int, rng: np.random.Generator, *, distinct: bool = False
) -> NDArray[np.int32]:
    """``count`` negatives for every row.

    Args:
        data: the log that says what was touched.
        users: (B,) user of every row, 0..U-1, in any order and repeated at will.
        count: negatives a row, at least 1.
        rng: generator, advanced by the draw.
        distinct: no item twice in a row, as evaluation asks for. A row whose user left fewer than ``count`` items untouched
            is drawn with repetition, since its pool cannot fill it.

    Returns:
        (B, count) items, 1..V; columns are exchangeable.

    Raises:
        DataError: a user touched every item.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    asked, row_user = np.unique(users, return_inverse=True)
    indptr, touched = data.seen_items(asked)
    free = data.n_items - np.diff(indptr)
    if np.any(free == 0):
        name = data.user_ids[int(asked[free.argmin()])]
        raise DataError(
            f"user {name!r} touched all {data.n_items} items, so that no negative is left: leave out such users, or rank over "
            "the whole catalogue"
        )
    pool = free[row_user]
    drawn = rng.integers(pool[:, None], size=(len(row_user), count))
    if distinct:
        _make_distinct(drawn, pool, rng)
    return _untouched(drawn, row_user, indptr, touched, data.n_items)


def popular_negatives(
    data: SequenceData,
    users: NDArray[np.integer],
    count: int,
    rng: np.random.Generator,
    pool: NDArray[np.integer],
) -> NDArray[np.int32]:
    """``count`` negatives for every row, drawn as often as they are in ``pool``, so that popularity tells nothing of the target.

    With repetition, as popularity has it. What the user touched is drawn again; after ``REDRAWS`` times, for a user who touched
    nearly all of the pool, it is an untouched item at random.

    Args:
        data: the log that says what was touched.
        users: (B,) user of every row.
        count: negatives a row, at least 1.
        rng: generator, advanced by the draw.
        pool: (P,) items, each as often as it is popular.

    Returns:
        (B, count) items, 1..V.

    Raises:
        DataError: a user touched every item.
    """
    asked, row_user = np.unique(users, return_inverse=True)
    indptr, items = data.seen_items(asked)
    width = data.n_items + 1
    touched = np.repeat(np.arange(len(asked)), np.diff(indptr)) * width + items
    drawn = rng.choice(pool, (len(row_user), count)).astype(np.int32)
    row, place = np.nonzero(np.ones(drawn.shape, dtype=bool))
    for _ in range(REDRAWS):
        keys = row_user[row] * width + drawn[row, place]
        near = np.minimum(np.searchsorted(touched, keys), len(touched) - 1)
        again = touched[near] == keys
        row, place = row[again], place[again]
        if not len(row):
            return drawn
        drawn[row, place] = rng.choice(pool, len(row))
    drawn[row, place] = sample_negatives(data, users[row], 1, rng)[:, 0]
    return drawn


def _untouched(
    drawn: NDArray[np.int64],
    row_user: NDArray[np.int64],
    indptr: NDArray[np.int64],
    touched: NDArray[np.int32],
    n_items: int,
) -> NDArray[np.int32]:
    """The untouched item of each ordinal: (B, count) ordinals from 0 -> (B, count) items.

    Args:
        drawn: (B, count) below the number of untouched items of the row's user.
        row_user: (B,) row of ``indptr``.
        indptr: (U + 1,) of the compressed rows.
        touched: (S,) items, ascending within a user.
        n_items: V.
    """
    touched_user = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    untouched_below = touched - (np.arange(len(touched)) - indptr[touched_user]) - 1
    # One ascending key over all users: V is above every ordinal.
    keys = touched_user * n_items + untouched_below
    skipped = np.searchsorted(keys, row_user[:, None] * n_items + drawn, side="right") - indptr[row_user][:, None]
    return (drawn + 1 + skipped).astype(np.int32)


def _make_distinct(drawn: NDArray[np.int64], pool: NDArray[np.int64], rng: np.random.Generator) -> None:
    """Replace repeated ordinals, in place, so that each row is a uniform sample without replacement.

    Large pools: the later ones of equal ordinals are drawn again until none are equal. Which are drawn again depends on
    nothing but which are equal, so that no ordinal is favoured. Small pools, where that would go on for long: the first
    ``count`` of a random permutation.

    Args:
        drawn: (B, count) ordinals, row b below ``pool[b]``.
        pool: (B,) number of untouched items.
        rng: generator.
    """
    count = drawn.shape[1]
    small = np.flatnonzero((pool >= count) & (pool < 2 * count))
    if len(small):
        keys = rng.random((len(small), pool[small].max()))
        keys[np.arange(keys.shape[1]) >= pool[small][:, None]] = np.inf
        drawn[small] = np.argsort(keys, axis=1)[:, :count]
    rows = np.flatnonzero(pool >= 2 * count)
    while len(rows):
        # Most rows are done after a draw or two: a plain sort finds them faster than one that keeps the order.
        rows = rows[_equal_neighbours(np.sort(drawn[rows], axis=1)).any(axis=1)]
        order: NDArray[np.intp] = np.argsort(drawn[rows], axis=1, kind="stable")
        row, place = np.nonzero(_equal_neighbours(np.take_along_axis(drawn[rows], order, axis=1)))
        drawn[rows[row], order[row, place + 1]] = rng.integers(pool[rows[row]])


def _equal_neighbours(ascending: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(B, count) -> (B, count - 1) whether an entry equals the one before it."""
    return np.equal(ascending[:, 1:], ascending[:, :-1])
