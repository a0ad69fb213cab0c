"""What methods of all tasks share, on a problem of numbers: the model that is nearest to the target is the best."""

import numpy as np
import pytest

from persona.errors import ConfigError
from persona.methods import ReadBeforeReport, Trained, measure, train_method
from persona.training.objective import FitResult
from tests.persona.guesses import Guess, Numbers, Target
from tests.persona.sealed import Sealed


def cheat(problem):
    return Trained(problem.test)


METHODS = {"host": lambda problem: Trained(0.0, 8, FitResult(), {"rate": 2}), "cheat": cheat, "persona": cheat}


def test_the_test_part_is_read_in_reports_alone():
    problem = Guess(Target(), Numbers())
    with pytest.raises(ReadBeforeReport, match=r"problem\.reporting"):
        problem.test  # noqa: B018
    with problem.reporting():
        with problem.reporting():
            assert problem.test == 4.0
        assert problem.test == 4.0, "the outer report goes on"
    with pytest.raises(ReadBeforeReport):
        problem.test  # noqa: B018


def test_a_method_that_looks_at_the_test_part_is_not_measured():
    problem = Guess(Target(), Numbers())
    assert measure(problem, "host", METHODS).summary == {"error": 4.0}
    with pytest.raises(ReadBeforeReport):
        measure(problem, "cheat", METHODS)
    with pytest.raises(ConfigError, match="did you mean 'cheat'"):
        train_method("chaet", problem, METHODS)


@pytest.mark.parametrize(
    "read", [len, list, np.asarray, lambda part: part[0], lambda part: part.tolist(), lambda part: part == 1]
)
def test_a_sealed_part_explodes_however_it_is_read(read):
    with pytest.raises(AssertionError, match="a decision read the test part"):
        read(Sealed())


def test_what_was_measured_tells_cost_and_choices():
    measured = measure(Guess(Target(), Numbers()), "host", METHODS)
    assert (measured.method, measured.refresh_bytes, measured.chosen) == ("host", 8, {"rate": 2.0})


def test_a_result_is_kept_until_what_it_depends_on_changes(tmp_path):
    seen = []
    methods = {name: lambda problem: seen.append(problem.config.mode) or Trained(0.0) for name in ("host", "persona")}
    for mode in ("auto", "low", "auto"):
        problem = Guess(Target(), Numbers(mode=mode), folder=tmp_path)
        for name in methods:
            measure(problem, name, methods)
    assert seen == ["auto", "auto", "low"], "the whole method depends on the mode, the host does not"
