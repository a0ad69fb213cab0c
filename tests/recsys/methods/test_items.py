from dataclasses import replace

import numpy as np
import pytest

from persona.rows import row_bytes
from recsys.item_edits import ItemEdits
from recsys.methods import Problem, measure, train_method
from recsys.methods.items import Choice, ordered
from tests.persona.sealed import sealed
from tests.recsys.toy import SMALL, sequences

TIME = replace(SMALL, protocol="time", epochs=1, dim=4, mode="held_back")


def new_arrivals(users=60, events=14):
    """From the fifth event on everybody has items that nobody had before, more often those that their neighbours have."""
    rng = np.random.default_rng(0)
    early = rng.integers(1, 11, (users, 8))
    late = np.where(rng.random((users, events - 8)) < 0.8, 21 + early[:, -1:] % 3, rng.integers(11, 31, (users, 6)))
    times = [[100 * e + u for e in range(events)] for u in range(users)]
    return replace(sequences(np.concatenate([early, late], 1).tolist(), times), baskets=False)


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    return Problem(new_arrivals(), TIME, folder=tmp_path_factory.mktemp("cells"))


def test_item_edits_find_what_is_new_and_never_validate_below_their_host(problem):
    blind = sealed(Problem(new_arrivals(), TIME, folder=problem.trainings.root))
    trained = train_method("item_edits", blind)
    model = trained.scorer
    assert isinstance(model, ItemEdits)
    assert trained.result.best_value == pytest.approx(problem.score(model))
    host = "host_refreshed" if trained.chosen["refreshed"] else "host"
    base = train_method(host, problem)
    assert problem.score(model) >= problem.score(base.scorer)
    assert trained.refresh_bytes == base.refresh_bytes + model.moved_rows() * row_bytes(4)
    found, plain = measure(problem, "item_edits"), measure(problem, host)
    for metric in ("uauc", "full_ndcg_10"):
        assert found.summary[metric] > plain.summary[metric] + 0.02
    assert found.refresh_seconds > 0
    assert found.parameters == 0


def test_persona_with_item_edits_is_persona_over_a_table_that_follows_the_stream(problem):
    trained = train_method("persona_items", problem)
    model = trained.scorer
    assert isinstance(model, ItemEdits)
    assert {"prototypes", "held_back", "beta"} - set(trained.chosen) == {"held_back"}, "the mode of the settings"
    assert model.scorer.level == "basis"
    assert problem.score(model) >= problem.score(train_method("persona", problem).scorer)
    assert problem.depends("persona_items") == problem.depends("persona")


def test_without_a_stream_the_methods_are_what_they_edit(tmp_path):
    problem = Problem(new_arrivals(), replace(TIME, protocol="paper"), folder=tmp_path)
    for name, base in (("item_edits", ("host", "host_refreshed")), ("persona_items", ("persona",))):
        summary = measure(problem, name).summary
        assert summary in [measure(problem, other).summary for other in base]


def test_the_choice_gains_in_both_metrics_and_loses_in_none():
    values = {
        Choice(): (0.8, 0.02),
        Choice(1.0): (0.85, 0.03),
        Choice(0.1): (0.90, 0.019),
        Choice(1.0, 0.5): (0.84, 0.06),
        Choice(1.0, 1.0): (0.79, 0.09),
    }
    assert ordered(values) == [Choice(1.0, 0.5), Choice(1.0), Choice()]
    assert ordered({choice: values[choice] for choice in (Choice(), Choice(0.1))}) == [Choice()]
    assert Choice(np.inf).record() == {"rows": 1.0, "beta": 0.0, "only_new": 1.0}
    assert Choice(0.1, 0.5, 40.0).record() == {"rows": 1.0, "beta": 0.5, "k0": 0.1, "half_life": 40.0}
    assert Choice(None, 0.5).record() == {"rows": 0.0, "beta": 0.5}
