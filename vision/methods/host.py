"""The host as it is, and the control that was trained longer."""

from __future__ import annotations

import time

from persona.methods import all_bytes
from vision.methods.problem import Problem, Trained
from vision.personalised import Personalised


def train_host(problem: Problem) -> Trained:
    """The converged, early-stopped host, the same for every device and never refreshed."""
    started = time.perf_counter()
    model = Personalised(problem.base_host())
    seconds = time.perf_counter() - started
    return Trained(model, result=problem.trainings.results["host"], seconds=seconds, keeps_body=True)


def train_longer(problem: Problem) -> Trained:
    """The control: the host trained on, on its own devices, until validation no longer improves for another round."""
    model = Personalised(problem.base_host(), fixed_body=problem.given_body)
    started = time.perf_counter()
    learned = model.host.head.parameters() if problem.given_body else model.parameters()
    result = problem.train("trained_longer", model, learned, problem.split.train, keep_start=True)
    seconds = time.perf_counter() - started
    return Trained(model, all_bytes(model.host), result=result, seconds=seconds, keeps_body=problem.given_body)
