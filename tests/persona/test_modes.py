"""Which way to train an editor is chosen, and nothing is trained twice for it."""

from collections import Counter

import torch
from torch import nn

from persona.methods import Trained
from persona.modes import Bracket, Modes
from persona.training.objective import FitConfig
from tests.persona.guesses import Guess, Numbers, Target

MODES = Modes(
    {"low": lambda problem: Trained(1.0), "near": lambda problem: Trained(2.5)},
    lambda problem: [Bracket(("low",)), Bracket(("near",))],
)


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
