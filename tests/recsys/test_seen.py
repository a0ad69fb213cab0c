import numpy as np
import torch

from recsys.data.batches import Context
from recsys.seen import ByCount, seen_counts
from tests.recsys.toy import sequences


def test_what_was_seen_is_each_users_past_and_all_before_the_first_event_learned_from():
    data = sequences([[1, 2, 3, 4], [5, 6, 7], [8, 9]])
    times = np.array([1, 4, 6, 9, 2, 5, 8, 3, 7])
    timed = type(data)(**{**vars(data), "times": times})
    learned = np.array([2, 5])  # at times 6 and 5
    assert np.flatnonzero(seen_counts(timed, learned)).tolist() == [1, 2, 3, 5, 6, 8]  # item 8 came at time 3
    ordered = type(data)(**{**vars(timed), "ordered_only": True})
    assert np.flatnonzero(seen_counts(ordered, learned)).tolist() == [1, 2, 3, 5, 6]


def test_a_ranking_by_counts_is_the_same_for_everybody():
    scorer = ByCount(np.array([0, 3, 0, 7]))
    context = Context(torch.tensor([[1], [3]]), torch.tensor([1, 1]))
    assert scorer.score(context, torch.tensor([[3, 2], [1, 3]])).tolist() == [[7, 0], [3, 7]]
    assert scorer.score_catalogue(context).tolist() == [[-np.inf, 3, 0, 7]] * 2
