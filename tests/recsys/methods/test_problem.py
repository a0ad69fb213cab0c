import logging
from dataclasses import replace

import numpy as np

from recsys.methods import Problem
from recsys.methods.persona import train_held_back
from recsys.personalised import Personalised
from recsys.seen import ByCount, seen_counts
from tests.recsys.toy import ITEMS, SMALL, sequences, walks

DATA = walks(users=30, events=8)


def test_what_training_has_to_beat_is_a_ranking_by_the_counts_of_the_training_rows():
    problem = Problem(DATA, SMALL)
    counts = seen_counts(DATA, problem.split.train)
    assert counts.sum() < DATA.n_events, "the future is not counted"
    expected = problem.validation.run(ByCount(counts)).summary["uauc"]
    assert problem.reference == expected
    assert problem.objective(Personalised(problem.new_host()), problem.split.train).reference == expected


def test_a_host_that_stays_behind_popularity_is_named_with_what_may_help(caplog):
    liked = np.minimum(np.random.default_rng(0).zipf(1.5, size=(60, 9)), ITEMS)
    problem = Problem(sequences(liked.tolist()), replace(SMALL, learning_rate=1e-9, epochs=4, patience=1))
    with caplog.at_level(logging.WARNING):
        problem.base_host()
    assert problem.trainings.results["host"].epochs == 4, "patience is not counted"
    [record] = caplog.records
    assert "a ranking by popularity has" in record.getMessage()
    assert "--epochs 8, or try another --learning-rate" in record.getMessage()


def test_a_host_that_is_ahead_of_popularity_is_not(caplog):
    problem = Problem(walks(), SMALL)
    with caplog.at_level(logging.WARNING):
        problem.base_host()
    assert problem.trainings.results["host"].best_value > problem.reference
    assert not caplog.records


def test_hosts_and_editors_learn_by_the_softmax_over_the_catalogue():
    config = replace(SMALL, loss="softmax", sequences=True, batch_size=16, epochs=1)
    problem = Problem(DATA, config)
    trained = train_held_back(problem)
    assert trained.result.epochs == 1
    assert problem.trainings.results["host_early"].epochs == 1
