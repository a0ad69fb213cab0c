"""The host as it is, and the control that was trained longer."""

from __future__ import annotations

import time

from recsys.baselines.base import Problem, Trained, all_bytes
from recsys.personalised import Personalised


def train_host(problem: Problem) -> Trained:
    """The converged, early-stopped host, the same for every device and never refreshed."""
    started = time.perf_counter()
    return problem.trained("host", Personalised(problem.base_host()), 0, started)


def train_longer(problem: Problem) -> Trained:
    """The control: the host trained on, on its own rows, until validation no longer improves for another round."""
    started = time.perf_counter()
    model = Personalised(problem.base_host())
    problem.train("trained_longer", model, model.parameters(), problem.split.train, keep_start=True)
    return problem.trained("trained_longer", model, all_bytes(model.host), started)
