"""Metrics of next-item recommendation, per event, per user and pooled, with fair ties.

A method is judged by the scores of one positive and N negatives an event (column 0 is the positive), or, against the whole
catalogue, by the rank of the positive alone. Nobody gains by ties: with g candidates scored above the positive and t others
scored equal to it, the positive stands at each of the positions g+1 .. g+t+1 with equal chance. A metric f of the position
is the exact expectation over them,

    f(g, t) = 1 / (t+1) * sum_{p = g+1}^{g+t+1} f(p),        f(p) = [p <= k]                 for hr_k,
                                                                    [p <= k] / log2(1 + p)   for ndcg_k,
                                                                    1 / p                    for mrr,

and the rank is the mean position 1 + g + t/2. AUC counts a tie as half a win. Keys are ``auc``, ``uauc``, ``logloss``,
``mrr``, ``ndcg_10``, ``hr_10`` everywhere: MLflow refuses ``@`` in the name of a metric.

Letters: E events, N negatives, U distinct users; results per user are aligned with ``np.unique(users)``.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from persona.errors import ConfigError, DataError

CUTOFFS = (5, 10, 20)

Floats = NDArray[np.floating]


def tie_counts(scores: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many candidates stand above the positive, and how many others equal it.

    Args:
        scores: [E, 1+N], column 0 the positive, higher is better; infinities are allowed.

    Returns:
        greater [E] and equal [E].

    Raises:
        DataError: no events, no negatives, or NaN among the scores.
    """
    scores = _checked(scores)
    positive = scores[:, :1]
    greater = np.count_nonzero(scores > positive, axis=1)
    equal = np.count_nonzero(scores == positive, axis=1) - 1
    return greater.astype(np.int64), equal.astype(np.int64)


def ranks(scores: Floats) -> NDArray[np.float64]:
    """Rank of the positive, 1 the best, half a rank for each tie: 1 + #greater + #equal others / 2.

    Args:
        scores: [E, 1+N], column 0 the positive.

    Returns:
        [E].
    """
    greater, equal = tie_counts(scores)
    return 1.0 + greater + 0.5 * equal


def per_user(scores: Floats, users: NDArray[np.integer], ks: Sequence[int] = CUTOFFS) -> dict[str, NDArray[np.float64]]:
    """Metrics of every user, for intervals over users.

    Args:
        scores: [E, 1+N] logits, column 0 the positive.
        users: [E] the user of every event.
        ks: cut-offs.

    Returns:
        Arrays [U] aligned with ``np.unique(users)``: ``uauc`` over the pooled positives and negatives of the user's events,
        ``logloss`` the mean over the same entries, ``mrr``, ``ndcg_k`` and ``hr_k`` the means over the user's events.
    """
    scores = _checked(scores)
    inverse, events = _user_index(users, len(scores))
    values = {
        "uauc": _grouped_auc(scores, inverse),
        "logloss": np.bincount(inverse, _event_logloss(scores)) / events,
    }
    return values | _user_means(_expected(*tie_counts(scores), ks), inverse, events)


def summary(scores: Floats, users: NDArray[np.integer], ks: Sequence[int] = CUTOFFS) -> dict[str, float]:
    """The headline numbers of one method.

    ``auc`` and ``logloss`` pool all entries of all events; everything else is the mean over users of ``per_user``, so that
    it is the centre of the interval over users.

    Args:
        scores: [E, 1+N] logits, column 0 the positive.
        users: [E].
        ks: cut-offs.
    """
    scores = _checked(scores)
    means = {name: float(values.mean()) for name, values in per_user(scores, users, ks).items()}
    everyone = np.zeros(len(scores), dtype=np.int64)
    pooled = {"auc": float(_grouped_auc(scores, everyone)[0]), "logloss": float(_event_logloss(scores).mean())}
    return pooled | {name: value for name, value in means.items() if name not in pooled}


def ranking_metrics(
    ranks: Floats, users: NDArray[np.integer], ks: Sequence[int] = CUTOFFS, ties: NDArray[np.integer] | None = None
) -> dict[str, NDArray[np.float64]]:
    """Metrics of every user where only ranks are known, as against the whole catalogue.

    Args:
        ranks: [E] ranks of the positives with half ranks for ties, at least 1.
        users: [E].
        ks: cut-offs.
        ties: [E] number of others equal to the positive. Without it a whole rank is taken as untied, and a half rank as a
            tie between its two neighbours.

    Returns:
        Arrays [U] aligned with ``np.unique(users)``: ``mrr``, ``ndcg_k``, ``hr_k``.

    Raises:
        DataError: ranks that are NaN, below 1, no multiple of a half, or that contradict ``ties``.
    """
    doubled = 2.0 * np.asarray(ranks, dtype=np.float64)
    inverse, events = _user_index(users, len(doubled))
    if not np.all(np.isfinite(doubled)) or np.any(doubled != np.floor(doubled)):
        raise DataError(
            "ranks must be whole or half numbers: scores with NaN cannot be ranked, check the model for divergence"
        )
    equal = doubled.astype(np.int64) % 2 if ties is None else np.asarray(ties, dtype=np.int64)
    greater = (doubled.astype(np.int64) - 2 - equal) // 2
    if np.any(equal < 0) or np.any(greater < 0) or np.any(2 + 2 * greater + equal != doubled):
        raise DataError(
            "ranks must be 1 + (candidates above the positive) + ties / 2: ranks and ties contradict each other"
        )
    return _user_means(_expected(greater, equal, ks), inverse, events)


def coverage(lists: NDArray[np.integer], n_items: int) -> float:
    """Share of the catalogue that is in anybody's list.

    Args:
        lists: [E, k] items, 0 where a list is shorter.
        n_items: V.
    """
    return float(np.count_nonzero(np.unique(lists)) / n_items)


def beyond_accuracy(
    lists: NDArray[np.integer], users: NDArray[np.integer], known: NDArray[np.integer]
) -> dict[str, NDArray[np.float64]]:
    """What users are shown, besides whether it is right.

    ``novelty`` is the mean self-information -log2 p of the items of a list, in bits, with p the item's share of the training
    events, each item counted once more (Zhou et al., PNAS'10); ``cold_share`` the share of items that training never saw.

    Args:
        lists: [E, k] items, 0 where a list is shorter.
        users: [E].
        known: [V+1] training events of each item.

    Returns:
        Arrays [U] aligned with ``np.unique(users)``.
    """
    inverse, events = _user_index(users, len(lists))
    shown = lists > 0
    length = np.maximum(shown.sum(axis=1), 1)
    information = np.log2(known[1:].sum() + len(known) - 1) - np.log2(known + 1.0)
    values = {
        "novelty": np.where(shown, information[lists], 0.0).sum(axis=1) / length,
        "cold_share": (shown & (known[lists] == 0)).sum(axis=1) / length,
    }
    return _user_means(values, inverse, events)


def _checked(scores: Floats) -> Floats:
    scores = np.asarray(scores)
    if scores.ndim != 2 or scores.shape[0] == 0 or scores.shape[1] < 2:
        raise DataError(
            f"scores must be [events, 1 + negatives] with at least one event and one negative, got shape {scores.shape}"
        )
    broken = np.isnan(scores).any(axis=1)
    if broken.any():
        raise DataError(
            f"{broken.sum()} of {len(scores)} events have NaN scores, the first is event {broken.argmax()}: "
            "the model has diverged, lower the learning rate or clip gradients"
        )
    return scores


def _user_index(users: NDArray[np.integer], n_events: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Index [E] of each event's user among the distinct users, and number [U] of events of each."""
    users = np.asarray(users)
    if users.shape != (n_events,) or n_events == 0:
        raise DataError(
            f"metrics need one user for each of the events: got {n_events} events and users of shape {users.shape}"
        )
    _, inverse, events = np.unique(users, return_inverse=True, return_counts=True)
    return inverse, events


def _expected(
    greater: NDArray[np.int64], equal: NDArray[np.int64], ks: Sequence[int]
) -> dict[str, NDArray[np.float64]]:
    """Expected metrics [E] over the tied positions, by differences of cumulated gains."""
    if not ks or min(ks) < 1:
        raise ConfigError(f"cut-offs of ranking metrics must be at least 1, got {tuple(ks)}")
    last = greater + equal + 1
    positions = np.arange(1, last.max() + 1)

    def mean_gain(gains: NDArray[np.floating]) -> NDArray[np.float64]:
        total = np.concatenate(([0.0], np.cumsum(gains)))
        return np.asarray((total[last] - total[greater]) / (equal + 1))

    values = {"mrr": mean_gain(1.0 / positions)}
    for k in ks:
        hit = (positions <= k).astype(np.float64)
        values[f"ndcg_{k}"] = mean_gain(hit / np.log2(1.0 + positions))
        values[f"hr_{k}"] = mean_gain(hit)
    return values


def _user_means(
    values: dict[str, NDArray[np.float64]], inverse: NDArray[np.int64], events: NDArray[np.int64]
) -> dict[str, NDArray[np.float64]]:
    return {name: np.bincount(inverse, value) / events for name, value in values.items()}


def _event_logloss(scores: Floats) -> NDArray[np.float64]:
    """Binary cross-entropy [E] of the logits, the mean over the 1+N entries of each event."""
    signed = scores.astype(np.float64)
    signed[:, 0] *= -1
    return np.asarray(np.logaddexp(0.0, signed).mean(axis=1))


def _grouped_auc(scores: Floats, groups: NDArray[np.int64]) -> NDArray[np.float64]:
    """AUC of each group's pooled entries: the share of (positive, negative) pairs in the right order, a tie half a pair.

    Args:
        scores: [E, 1+N].
        groups: [E], 0..G-1, each of them present.

    Returns:
        [G].
    """
    n_negatives = scores.shape[1] - 1
    entry_groups = np.repeat(groups.astype(np.min_scalar_type(groups.max())), n_negatives + 1)
    order = np.argsort(scores, axis=None)
    # Small unsigned integers are sorted by radix: four times as fast as a sort by both keys at once.
    order = order[np.argsort(entry_groups[order], kind="stable")]
    sorted_scores, sorted_groups = scores.ravel()[order], entry_groups[order]
    positive = order % (n_negatives + 1) == 0

    # A run holds the equal scores of one group; runs of a group stand in ascending order of score.
    changes = (sorted_scores[1:] != sorted_scores[:-1]) | (sorted_groups[1:] != sorted_groups[:-1])
    starts = np.concatenate(([0], np.flatnonzero(changes) + 1))
    run_group = sorted_groups[starts]
    run_positives = np.add.reduceat(positive, starts, dtype=np.int64)
    run_negatives = np.diff(starts, append=len(order)) - run_positives

    events = np.bincount(groups)
    negatives_before_group = (np.cumsum(events) - events) * n_negatives
    below = np.cumsum(run_negatives) - run_negatives - negatives_before_group[run_group]
    wins = np.bincount(run_group, run_positives * (below + 0.5 * run_negatives))
    return np.asarray(wins / (events * (events * n_negatives)))
