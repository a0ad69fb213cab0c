"""The host as it is, and the control that was trained longer."""

from __future__ import annotations

from persona.methods import all_bytes
from recsys.methods.problem import Problem, Trained
from recsys.personalised import Personalised


def train_host(problem: Problem) -> Trained:
    """The converged, early-stopped host, the same for every device and never refreshed."""
    model = Personalised(problem.base_host())
    return Trained(model, 0, problem.trainings.results["host"])


def train_longer(problem: Problem) -> Trained:
    """The control: the host trained on, on its own rows, until validation no longer improves for another round."""
    model = Personalised(problem.base_host())
    result = problem.train("trained_longer", model, model.parameters(), problem.split.train, keep_start=True)
    return Trained(model, all_bytes(model.host), result)
