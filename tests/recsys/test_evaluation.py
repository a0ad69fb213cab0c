from dataclasses import replace

import numpy as np
import pytest
import torch

from persona.errors import DataError
from recsys import metrics
from recsys.data.protocols import PROTOCOLS, make_split
from recsys.evaluation import REPORTED, ROWS, Evaluation, reported
from recsys.methods import Problem
from tests.recsys.toy import ITEMS, SMALL, personalised, sequences, walks

T = 5
DATA = walks(users=20, events=10)
TEST = np.concatenate([DATA.offsets[1:] - 1, DATA.offsets[1:] - 3])  # two events a user, not in the order of positions
TEST.sort()


class ByItem:
    """Scores that depend on the item and the last one known, with many ties."""

    def score(self, context, candidates):
        last = context.items.gather(1, (context.lengths - 1).clamp(min=0).unsqueeze(1))
        return ((candidates * 7 + last * 3) % 5).float()

    def score_catalogue(self, context):
        everything = torch.arange(ITEMS + 1).expand(len(context), -1)
        scores = self.score(context, everything)
        scores[:, 0] = -torch.inf
        return scores


def test_sampled_evaluation_equals_one_event_after_the_other():
    evaluation = Evaluation(DATA, TEST, max_length=T, seed=2, negatives=7)
    model = personalised(learned=True)
    evaluated = evaluation.run(model)
    by_user = {}
    for position, row in zip(TEST, evaluation.candidates.tolist(), strict=True):
        user = int(DATA.user_of(np.array([position]))[0])
        past = DATA.items[DATA.offsets[user] : position][-T:].tolist()
        context = type(evaluation.contexts).from_lists([past], T)
        scores = model.score(context, torch.tensor([row]))[0]
        assert row[0] == DATA.items[position]
        by_user.setdefault(user, []).append(scores.detach().numpy())
    assert evaluated.users.tolist() == sorted(by_user)
    for index, user in enumerate(evaluated.users):
        scores = np.stack(by_user[user])
        rank = 1 + (scores[:, 1:] > scores[:, :1]).sum(1)
        hit = (rank <= 5).mean()
        gain = np.where(rank <= 5, 1 / np.log2(1 + rank), 0).mean()
        above = scores[:, :1].ravel()[:, None] > scores[:, 1:].ravel()[None]
        assert evaluated.per_user["hr_5"][index] == pytest.approx(hit)
        assert evaluated.per_user["ndcg_5"][index] == pytest.approx(gain)
        assert evaluated.per_user["uauc"][index] == pytest.approx(above.mean())
    assert evaluated.summary["ndcg_5"] == pytest.approx(evaluated.per_user["ndcg_5"].mean())
    assert set(evaluated.per_user) == set(evaluated.summary) - {"auc"}


def test_negatives_are_distinct_and_never_touched_by_the_user():
    candidates = Evaluation(DATA, TEST, max_length=T, negatives=12).candidates
    for position, row in zip(TEST, candidates.tolist(), strict=True):
        user = int(DATA.user_of(np.array([position]))[0])
        touched = set(DATA.items[DATA.offsets[user] : DATA.offsets[user + 1]].tolist())
        assert len(set(row[1:])) == 12
        assert not touched & set(row[1:])


def test_a_small_catalogue_gives_as_many_negatives_as_it_has():
    data = sequences([[1, 2, 1], [3, 1, 2]], n_items=4)
    assert Evaluation(data, np.array([2, 5]), max_length=T).candidates.shape == (2, 4)


def full_ranks_one_by_one(data, positions, scorer):
    ranks = []
    for position in positions:
        user = int(data.user_of(np.array([position]))[0])
        past = data.items[data.offsets[user] : position].tolist()
        context = Evaluation(data, np.array([position]), max_length=T).contexts
        scores = scorer.score_catalogue(context)[0].tolist()
        target = data.items[position]
        others = [scores[i] for i in range(1, data.n_items + 1) if i != target and i not in past]
        greater, equal = sum(s > scores[target] for s in others), sum(s == scores[target] for s in others)
        ranks.append((1 + greater + equal / 2, equal))
    return np.array(ranks)


@pytest.mark.parametrize("scorer", [ByItem(), personalised(learned=True)], ids=["ties", "model"])
def test_full_ranking_equals_one_event_after_the_other_without_what_was_seen(scorer):
    evaluated = Evaluation(DATA, TEST, max_length=T, full=True).run(scorer)
    with torch.no_grad():
        ranks, ties = full_ranks_one_by_one(DATA, TEST, scorer).T
    expected = metrics.ranking_metrics(ranks, DATA.user_of(TEST), ties=ties.astype(np.int64))
    for name, values in expected.items():
        np.testing.assert_allclose(evaluated.per_user[name], values, atol=1e-12)
        assert evaluated.summary[name] == pytest.approx(values.mean())


def test_full_ranking_keeps_a_target_that_was_seen_before():
    """A repeated item is ranked by its own score, once, among the items that were not seen."""
    data = sequences([[3, 4, 3, 5, 3], [1, 2, 1, 2, 9]])
    positions = np.array([2, 4, 7, 8])
    evaluated = Evaluation(data, positions, max_length=T, full=True).run(ByItem())
    ranks, ties = full_ranks_one_by_one(data, positions, ByItem()).T
    expected = metrics.ranking_metrics(ranks, data.user_of(positions), ties=ties.astype(np.int64))
    np.testing.assert_allclose(evaluated.per_user["mrr"], expected["mrr"], atol=1e-12)


def test_what_users_have_had_is_ranked_where_it_is_offered_but_not_the_rest_of_a_basket():
    """Item 1 leads, and was seen: it stands above the target only where seen items are offered, and not from its own basket."""

    class First:
        def score_catalogue(self, context):
            scores = -torch.arange(ITEMS + 1).float().expand(len(context), -1).clone()
            scores[:, 0] = -torch.inf
            return scores

    apart = sequences([[1, 2], [1, 3]])
    basket = sequences([[1, 2], [1, 3]], [[5, 5], [5, 5]])
    ranks = {
        (name, seen): Evaluation(data, np.array([1, 3]), max_length=T, full=True, seen=seen).run(First()).summary["mrr"]
        for name, data in (("apart", apart), ("basket", basket))
        for seen in (True, False)
    }
    assert ranks["apart", True] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert ranks["apart", False] == ranks["basket", True] == ranks["basket", False] == pytest.approx((1 + 1 / 2) / 2)


REPEATING = sequences([[u % 5 + 1, u % 5 + 2, u % 5 + 1, u % 5 + 2, u % 5 + 1, u % 5 + 3] for u in range(12)])


@pytest.mark.parametrize(("asked", "offered"), [("auto", True), ("no", False), ("yes", True)])
def test_the_share_of_repeats_decides_what_is_ranked(asked, offered):
    assert REPEATING.repeats_share == pytest.approx(3 / 5)
    problem = Problem(REPEATING, replace(SMALL, protocol="full", monitor="ndcg_10", seen=asked))
    assert problem.seen is problem.validation.seen is offered
    assert problem.config.resolved(REPEATING) == ({"seen": "yes"} if offered else {})


def test_a_log_without_repeats_ranks_as_ever(tmp_path):
    config = replace(SMALL, protocol="full", monitor="ndcg_10")
    assert not Problem(DATA, config).seen
    Problem(REPEATING, config, folder=tmp_path)
    Problem(REPEATING, replace(config, seen="no"), folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2, "hosts selected by another ranking are other hosts"
    stream = Problem(REPEATING, replace(SMALL, protocol="time"))
    assert (stream.depends("host"), Problem(DATA, replace(SMALL, protocol="time")).depends("host")) == (
        {"seen": True},
        {},
    )


def test_full_ranking_removes_everything_seen_not_only_the_context():
    data = sequences([[*range(1, 20), 25]])

    class Last:
        """Items seen long ago would stand above the target."""

        def score_catalogue(self, context):
            scores = -torch.arange(ITEMS + 1).float().expand(len(context), -1).clone()
            scores[:, 0] = -torch.inf
            return scores

    evaluated = Evaluation(data, np.array([19]), max_length=2, full=True).run(Last())
    assert evaluated.per_user["mrr"] == pytest.approx(1 / 6)  # behind 20 .. 24


def test_events_of_the_same_basket_stay_hidden():
    data = sequences([[1, 2, 3, 4]], times=[[1, 2, 2, 2]])
    evaluation = Evaluation(data, np.array([2, 3]), max_length=T)
    assert evaluation.contexts.items[:, 0].tolist() == [1, 1]
    assert evaluation.contexts.lengths.tolist() == [1, 1]


def test_every_method_meets_the_same_candidates():
    evaluation = Evaluation(DATA, TEST, max_length=T, seed=5)
    before = evaluation.candidates.clone()
    for scorer in (ByItem(), personalised(), personalised("sasrec")):
        evaluation.run(scorer)
        assert torch.equal(evaluation.candidates, before)
    assert torch.equal(Evaluation(DATA, TEST, max_length=T, seed=5).candidates, before)
    assert not torch.equal(Evaluation(DATA, TEST, max_length=T, seed=6).candidates, before)


def test_the_same_model_has_the_same_values_however_rows_are_blocked(monkeypatch):
    evaluation = Evaluation(DATA, TEST, max_length=T)
    whole = evaluation.run(personalised(learned=True))
    assert len(TEST) < ROWS
    monkeypatch.setattr("recsys.evaluation.ROWS", 7)
    parts = evaluation.run(personalised(learned=True))
    for name, values in whole.per_user.items():
        np.testing.assert_allclose(parts.per_user[name], values, rtol=1e-5)


def test_a_limit_draws_events_from_the_seed():
    def positions(seed, limit):
        return Evaluation(DATA, TEST, max_length=T, seed=seed, limit=limit).positions

    np.testing.assert_array_equal(positions(1, 9), positions(1, 9))
    assert (positions(1, 9) != positions(2, 9)).any()
    assert len(positions(1, 9)) == len(set(positions(1, 9))) == 9
    assert set(positions(1, 9)) <= set(TEST)
    assert (np.diff(positions(1, 9)) > 0).all()
    np.testing.assert_array_equal(positions(1, len(TEST)), TEST)


def counts(known):
    return np.isin(np.arange(ITEMS + 1), known).astype(np.int64) * 3


def test_a_report_holds_what_each_evaluation_alongside_gives():
    known = counts(range(1, 20))
    evaluation = Evaluation(DATA, TEST, max_length=T, negatives=7, known=known)
    plain = Evaluation(DATA, TEST, max_length=T, negatives=7).run(ByItem())
    found = reported(evaluation, attends=False).run(ByItem())
    alone = {
        "full": Evaluation(DATA, TEST, max_length=T, full=True, known=known).run(ByItem()),
        "popular": Evaluation(DATA, TEST, max_length=T, negatives=7, popular=True).run(ByItem()),
    }
    expected = dict(plain.summary)
    for prefix, other in alone.items():
        expected |= {f"{prefix}_{name}": value for name, value in other.summary.items()}
        for name, values in other.per_user.items():
            np.testing.assert_array_equal(found.per_user[f"{prefix}_{name}"], values)
    assert found.summary == expected
    assert found.summary.keys() >= set(REPORTED["time"])
    assert found.summary["full_events"] == len(TEST)


def test_popular_negatives_are_drawn_as_often_as_they_are_targets():
    evaluation = Evaluation(DATA, TEST, max_length=T, negatives=200, popular=True)
    targets = set(DATA.items[TEST].tolist())
    for position, row in zip(TEST, evaluation.candidates.tolist(), strict=True):
        user = int(DATA.user_of(np.array([position]))[0])
        assert row[0] == DATA.items[position]
        assert set(row[1:]) <= targets - set(DATA.items[DATA.offsets[user] : DATA.offsets[user + 1]].tolist())


def test_lists_are_judged_beyond_accuracy():
    """Ten items of the best scores that were not seen, the target among them; three of the catalogue are cold."""
    data = sequences([[*range(1, 20), 25], [*range(1, 18), 30, 29]])
    positions = data.offsets[1:] - 1

    class Last:
        def score_catalogue(self, context):
            scores = torch.arange(ITEMS + 1).float().expand(len(context), -1).clone()
            scores[:, 0] = -torch.inf
            return scores

    found = Evaluation(data, positions, max_length=T, full=True, known=counts(range(1, 28))).run(Last())
    lists = [set(range(21, 31)), {29, *range(19, 29), 18} - {18, 19}]
    cold = [3 / 10, 2 / 10]
    np.testing.assert_allclose(found.per_user["cold_share"], cold)
    assert found.summary["coverage"] == len(set.union(*lists)) / ITEMS
    assert found.summary["cold_targets"] == 0.5
    assert found.summary["events"] == 2
    total = 27 * 3 + ITEMS
    bits = [np.log2(total) * share + np.log2(total / 4) * (1 - share) for share in cold]
    np.testing.assert_allclose(found.per_user["novelty"], bits)
    assert not {"cold_ndcg_10", "warm_ndcg_10"} & set(found.summary), "no interval over one user"


def test_accuracy_on_cold_and_on_warm_targets_adds_up():
    known = counts(range(1, 16))
    found = Evaluation(DATA, TEST, max_length=T, full=True, known=known).run(ByItem())
    cold = known[DATA.items[TEST]] == 0
    for name, rows in (("cold", cold), ("warm", ~cold)):
        alone = Evaluation(DATA, TEST[rows], max_length=T, full=True).run(ByItem())
        np.testing.assert_allclose(found.per_user[f"{name}_ndcg_10"], alone.per_user["ndcg_10"])
    assert found.summary["cold_targets"] == cold.mean()


def test_a_sample_of_rows_is_the_same_for_all_and_spread_over_users(monkeypatch):
    monkeypatch.setattr("recsys.evaluation.ATTENDED_PAIRS", 30 * ITEMS)

    def ranked(seed, attends=True):
        evaluation = Evaluation(DATA, TEST, max_length=T, seed=seed)
        return reported(evaluation, attends=attends).alongside["full"]

    few = ranked(0)
    np.testing.assert_array_equal(few.positions, ranked(1).positions)
    assert len(few.positions) == 30
    assert np.bincount(few.users).tolist().count(0) == 0, "every user has a row"
    assert np.bincount(few.users).max() == 2
    np.testing.assert_array_equal(ranked(0, attends=False).positions, TEST)
    monkeypatch.setattr("recsys.evaluation.ATTENDED_PAIRS", 7 * ITEMS)
    assert len(set(ranked(0).users)) == 7, "where there are more users than rows, one row each"
    assert ranked(0).users.max() > 7, "of any users"


def test_what_follows_the_stream_is_told_where_it_is_asked():
    class Recorder:
        def __init__(self):
            self.asked = []

        def at(self, positions):
            self.asked.extend(positions.tolist())
            return ByItem()

    for full in (False, True):
        recorder = Recorder()
        evaluation = Evaluation(DATA, TEST, max_length=T, full=full)
        assert evaluation.run(recorder).summary == evaluation.run(ByItem()).summary
        assert sorted(recorder.asked) == TEST.tolist()
        assert (np.diff(DATA.times[recorder.asked]) >= 0).all(), "in the order of time"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_test_rows_are_reported_as_their_protocol_says(protocol):
    problem = Problem(walks(), replace(SMALL, protocol=protocol, monitor="ndcg_10"))
    with problem.reporting():
        found = problem.test.run(ByItem()).summary
    assert found.keys() >= set(REPORTED[protocol])
    assert ("full_ndcg_10" in found) == (protocol == "time")
    assert not [name for name in problem.validation.run(ByItem()).summary if "_" in name and name.startswith("full")]


def test_nothing_to_evaluate_on_is_refused():
    with pytest.raises(DataError, match="no events to evaluate on"):
        Evaluation(DATA, TEST[:0], max_length=T)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_epochs_are_selected_on_validation_rows_and_never_on_test_rows(protocol):
    config = replace(SMALL, protocol=protocol, monitor="ndcg_10")
    problem = Problem(walks(), config)
    split = make_split(walks(), protocol)
    assert set(problem.validation.positions) <= set(split.validation)
    with problem.reporting():
        test = problem.test
    np.testing.assert_array_equal(test.positions, split.test)
    learned = np.concatenate([problem.everything, problem.held_back.train, problem.held_back.adapt])
    for one, other in ((problem.validation.positions, split.test), (learned, split.test), (learned, split.validation)):
        assert not set(one) & set(other)
    assert problem.validation.full == test.full == (protocol == "full")
