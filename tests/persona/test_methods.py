"""What methods of all tasks share, on a problem of numbers: the model that is nearest to the target is the best."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from persona.comparison import Measured
from persona.errors import ConfigError
from persona.methods import Bracket, Modes, Problem, ReadBeforeReport, Trained, measure, train_method
from persona.settings import Settings
from persona.training.objective import FitConfig, FitResult
from tests.persona.sealed import Sealed


@dataclass(frozen=True)
class Numbers(Settings):
    host: str = "plain"
    seed: int = 0
    mode: str = "auto"
    monitor: str = "nearness"


class Target:
    digest = "numbers"


class Guess(Problem):
    edited = ("persona",)
    banked = ("persona",)
    validation = 3.0

    def score(self, model):
        return -abs(model - self.validation)

    def judged(self, model):
        return {"nearness": np.full(2, self.score(model))}

    def without_edits(self, model, host=None):
        return 0.0

    def tested(self, trained):
        return Measured("", {"error": abs(trained.model - self.test)}, {"error": np.zeros(2)}, np.arange(2))

    def _make_test(self):
        return 4.0


def cheat(problem):
    return Trained(problem.test)


MODES = Modes(
    {"low": lambda problem: Trained(1.0), "near": lambda problem: Trained(2.5)},
    lambda problem: [Bracket(("low",)), Bracket(("near",))],
)
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


def test_validation_chooses_the_mode_that_is_not_given():
    mode, trained = MODES.configured(Guess(Target(), Numbers()))
    assert (mode, trained.model, trained.chosen) == ("near", 2.5, {"near": 1.0})
    mode, trained = MODES.configured(Guess(Target(), Numbers(mode="low")))
    assert (mode, trained.model, trained.chosen) == ("low", 1.0, {})


class Race(nn.Module):
    """A number that moves to its goal, a quarter of the way each epoch; the more it has moved, the better it is."""

    monitor, reference = "nearness", None

    def __init__(self, problem, name, goal):
        super().__init__()
        self.value = nn.Parameter(torch.zeros(1))
        self.problem, self.name, self.goal = problem, name, goal

    def batches(self, epoch):
        self.problem.trained[self.name] += 1
        return [None]

    def loss(self, batch):
        return (self.value - self.goal).square().sum()

    def validate(self):
        return {"nearness": float(self.value)}


class Racing(Guess):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.trained = Counter()

    def score(self, model):
        return float(model.value)


def racer(name, goal):
    """The training of a mode: it runs 16 epochs."""

    def train(problem):
        race = Race(problem, name, goal)
        config = FitConfig(epochs=16, patience=16, learning_rate=0.1)
        result = problem.trainings.fit(f"persona_{name}", race, race.parameters(), race, config)
        return Trained(race, result=result)

    return train


GOALS = {"one": 0.3, "two": 0.4, "three": 5.0, "four": 6.0, "alone": 0.5}
RACES = Modes(
    {name: racer(name, goal) for name, goal in GOALS.items()},
    lambda problem: [Bracket(("one", "two", "three", "four"), 6), Bracket(("alone",))],
)


def test_the_better_half_goes_on_and_nothing_is_trained_twice(tmp_path):
    problem = Racing(Target(), Numbers(), folder=tmp_path)
    mode, trained = RACES.selected(problem)
    assert (mode, trained.chosen) == (mode, {mode: 1.0})
    assert mode in ("three", "four")
    assert trained.result.epochs == 16
    left_first = {"one": 6, "two": 6}
    counts = dict(problem.trained)
    assert {name: counts[name] for name in left_first} == left_first, "they were left after the first round"
    assert sorted(counts[name] for name in ("three", "four")) == [12, 16], "one was left after the second"
    assert counts["alone"] == 16
    again = Racing(Target(), Numbers(), folder=tmp_path)
    assert RACES.selected(again)[0] == mode
    assert not again.trained, "all that it needs is there"


def test_the_choice_does_not_depend_on_what_was_trained_before(tmp_path):
    fresh = Racing(Target(), Numbers(), folder=tmp_path / "fresh")
    used = Racing(Target(), Numbers(), folder=tmp_path / "used")
    for name in GOALS:
        RACES.trainers[name](used)
    kept_nowhere = Racing(Target(), Numbers())
    chosen = {RACES.selected(problem)[0] for problem in (fresh, used, kept_nowhere)}
    assert len(chosen) == 1
    assert set(kept_nowhere.trained.values()) == {16}, "without a folder each is trained once, to its end"
