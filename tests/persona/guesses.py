"""A problem of numbers: the model that is nearest to the target is the best."""

from dataclasses import dataclass

import numpy as np

from persona.comparison import Measured
from persona.methods import Problem
from persona.settings import Settings


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
