import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import roc_auc_score
from torchmetrics.functional.classification import binary_auroc
from torchmetrics.functional.retrieval import retrieval_hit_rate, retrieval_normalized_dcg, retrieval_reciprocal_rank

from persona.errors import ConfigError, DataError
from recsys.metrics import per_user, ranking_metrics, ranks, summary, tie_counts

KS = (1, 3, 5)


def random_case(seed, *, ties, n_events=60, n_negatives=9, n_users=7):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(n_events, 1 + n_negatives))
    if ties:
        scores = np.round(scores)
    return scores, rng.integers(100, 100 + n_users, n_events)


# Few distinct values, so that ties are common.
tied_scores = hnp.arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(2, 7)), elements=st.integers(-2, 2))


def enumerated(scores, k):
    """Expectation of HR, NDCG and reciprocal rank over all places of the positive among its ties, by brute force."""
    rows = []
    for row in scores:
        greater, equal = int((row > row[0]).sum()), int((row == row[0]).sum() - 1)
        places = range(greater + 1, greater + equal + 2)
        rows.append(
            [
                np.mean([place <= k for place in places]),
                np.mean([(place <= k) / np.log2(1 + place) for place in places]),
                np.mean([1 / place for place in places]),
            ]
        )
    return np.array(rows)


def labels(scores):
    target = np.zeros(scores.shape, dtype=np.int64)
    target[:, 0] = 1
    return target


@pytest.mark.parametrize("ties", [False, True])
def test_auc_and_uauc_agree_with_sklearn_and_torchmetrics(ties):
    scores, users = random_case(1, ties=ties)
    values = per_user(scores, users, KS)
    for index, user in enumerate(np.unique(users)):
        own = scores[users == user]
        assert values["uauc"][index] == pytest.approx(roc_auc_score(labels(own).ravel(), own.ravel()), abs=1e-12)
    pooled = summary(scores, users, KS)
    assert pooled["auc"] == pytest.approx(roc_auc_score(labels(scores).ravel(), scores.ravel()), abs=1e-12)
    oracle = binary_auroc(torch.from_numpy(scores.ravel()).sigmoid(), torch.from_numpy(labels(scores).ravel()))
    assert pooled["auc"] == pytest.approx(oracle.item(), abs=1e-6)
    assert pooled["uauc"] == pytest.approx(values["uauc"].mean())


def test_ranking_metrics_agree_with_torchmetrics_without_ties():
    scores, users = random_case(2, ties=False)
    values = per_user(scores, users, KS)
    target = torch.from_numpy(labels(scores)).bool()
    for index, user in enumerate(np.unique(users)):
        events = np.flatnonzero(users == user)
        for k in KS:
            for name, oracle in (("ndcg", retrieval_normalized_dcg), ("hr", retrieval_hit_rate)):
                expected = np.mean([oracle(torch.from_numpy(scores[e]), target[e], k).item() for e in events])
                assert values[f"{name}_{k}"][index] == pytest.approx(expected, abs=1e-6)
        expected = np.mean([retrieval_reciprocal_rank(torch.from_numpy(scores[e]), target[e]).item() for e in events])
        assert values["mrr"][index] == pytest.approx(expected, abs=1e-6)


def test_logloss_agrees_with_torch_and_survives_huge_logits():
    scores, users = random_case(3, ties=False)
    scores[0] *= 1e4
    entries = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.from_numpy(scores), torch.from_numpy(labels(scores)).double(), reduction="none"
    ).numpy()
    assert summary(scores, users)["logloss"] == pytest.approx(entries.mean())
    own = users == np.unique(users)[2]
    assert per_user(scores, users)["logloss"][2] == pytest.approx(entries[own].mean())


@given(tied_scores)
def test_tied_metrics_are_the_expectation_over_the_tied_places(scores):
    users = np.arange(len(scores))
    values = per_user(scores, users, (2,))
    expected = enumerated(scores, 2)
    np.testing.assert_allclose(values["hr_2"], expected[:, 0], atol=1e-12)
    np.testing.assert_allclose(values["ndcg_2"], expected[:, 1], atol=1e-12)
    np.testing.assert_allclose(values["mrr"], expected[:, 2], atol=1e-12)


@given(tied_scores, st.integers(1, 4), st.randoms(use_true_random=False))
def test_order_of_rows_candidates_and_monotone_maps_change_nothing(scores, n_users, random):
    users = np.arange(len(scores)) % n_users
    rows = np.array(random.sample(range(len(scores)), len(scores)))
    columns = np.array([0, *random.sample(range(1, scores.shape[1]), scores.shape[1] - 1)])
    moved = np.exp(scores[rows][:, columns]) * 3 + 1
    before, after = per_user(scores, users, (1, 2)), per_user(moved, users[rows], (1, 2))
    for name in before.keys() - {"logloss"}:
        np.testing.assert_allclose(before[name], after[name], atol=1e-12)


def test_a_constant_scorer_is_at_chance():
    """Neither the order in the file nor that of the columns may help a method that knows nothing."""
    scores, users = np.zeros((20, 100)), np.arange(20)
    values = summary(scores, users, (10,))
    assert values["auc"] == values["uauc"] == 0.5
    assert values["hr_10"] == pytest.approx(0.1)
    np.testing.assert_array_equal(ranks(scores), 50.5)


def test_users_need_not_stand_together():
    """A user whose events are scattered is one user."""
    scores = np.array([[3.0, 1.0], [1.0, 3.0], [1.0, 3.0]])
    values = per_user(scores, np.array([5, 2, 5]), (1,))
    np.testing.assert_array_equal(values["hr_1"], [0.0, 0.5])


def test_summary_weighs_users_alike_and_pools_auc_and_logloss():
    scores = np.array([[3.0, 1.0], [3.0, 1.0], [3.0, 1.0], [1.0, 3.0]])
    values = summary(scores, np.array([1, 1, 1, 2]), (1,))
    assert values["hr_1"] == 0.5
    assert values["uauc"] == 0.5
    assert values["auc"] == pytest.approx(roc_auc_score(labels(scores).ravel(), scores.ravel()))
    assert values["logloss"] == pytest.approx(np.logaddexp(0, [-3, 1, -3, 1, -3, 1, -1, 3]).mean())


def test_ranks_count_half_a_rank_for_each_tie():
    scores = np.array([[1.0, 2.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0], [-np.inf, 0.0, -np.inf, 1.0]])
    np.testing.assert_array_equal(ranks(scores), [2.5, 2.5, 3.5])


@given(tied_scores)
def test_ranks_and_ties_give_what_the_scores_give(scores):
    users = np.arange(len(scores)) // 2
    expected = per_user(scores, users, (1, 3))
    values = ranking_metrics(ranks(scores), users, (1, 3), ties=tie_counts(scores)[1])
    assert set(values) == {"mrr", "ndcg_1", "ndcg_3", "hr_1", "hr_3"}
    for name, value in values.items():
        np.testing.assert_allclose(value, expected[name], atol=1e-12)


def test_half_ranks_without_tie_counts_lie_between_their_neighbours():
    values = ranking_metrics(np.array([1.0, 2.5]), np.array([0, 1]), (2,))
    np.testing.assert_allclose(values["hr_2"], [1.0, 0.5])
    np.testing.assert_allclose(values["mrr"], [1.0, (1 / 2 + 1 / 3) / 2])


@pytest.mark.parametrize(
    ("values", "ties"), [([np.nan], None), ([0.5], None), ([1.25], None), ([np.inf], None), ([1.0], [1]), ([2.0], [-1])]
)
def test_impossible_ranks_are_refused(values, ties):
    with pytest.raises(DataError, match="ranks must be"):
        ranking_metrics(np.array(values), np.array([0]), (1,), ties=None if ties is None else np.array(ties))


@pytest.mark.parametrize("metric", [ranks, lambda s: per_user(s, np.zeros(3)), lambda s: summary(s, np.zeros(3))])
def test_nan_scores_are_never_ranked(metric):
    scores = np.zeros((3, 4), dtype=np.float32)
    scores[1, 2] = np.nan
    with pytest.raises(DataError, match="1 of 3 events have NaN scores, the first is event 1"):
        metric(scores)


@pytest.mark.parametrize("shape", [(0, 5), (3, 1), (3,)])
def test_scores_without_events_or_negatives_are_refused(shape):
    with pytest.raises(DataError, match="at least one event and one negative"):
        ranks(np.zeros(shape))


def test_users_must_match_events():
    with pytest.raises(DataError, match="one user for each of the events"):
        per_user(np.zeros((3, 2)), np.zeros(2, dtype=np.int64))


@pytest.mark.parametrize("ks", [(), (0,), (5, -1)])
def test_cut_offs_start_at_one(ks):
    with pytest.raises(ConfigError, match="at least 1"):
        per_user(np.zeros((3, 2)), np.zeros(3, dtype=np.int64), ks)
