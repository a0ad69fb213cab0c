"""Persona with a single prototype: the host itself plus the editor's edit, in the three modes of training."""

from __future__ import annotations

import time
from collections.abc import Callable

from recsys.baselines.base import Problem, Trained, adaptive_bytes
from recsys.personalised import Personalised


def train_held_back(problem: Problem) -> Trained:
    """The editor learns from later rows that its fixed host has not seen, so there is an error left to learn from."""
    started = time.perf_counter()
    model = _fixed(problem, early=True)
    assert model.editor is not None
    rows = problem.held_back.adapt
    problem.train("persona_held_back", model, model.editor.parameters(), rows, keep_start=True, editing=True)
    return problem.trained("persona_held_back", model, adaptive_bytes(model.host), started)


def train_frozen(problem: Problem) -> Trained:
    """The published reading: the editor learns from the very rows that its fixed host was trained on."""
    started = time.perf_counter()
    model = _fixed(problem, early=False)
    assert model.editor is not None
    rows = problem.split.train
    problem.train("persona_frozen", model, model.editor.parameters(), rows, keep_start=True, editing=True)
    return problem.trained("persona_frozen", model, adaptive_bytes(model.host), started)


def train_joint(problem: Problem) -> Trained:
    """Host and editor learn together; a share of rows is trained without an edit, so that the host alone stays good."""
    started = time.perf_counter()
    host = problem.new_host()
    model = Personalised(host, problem.new_editor(host), edit_dropout=problem.config.edit_dropout)
    problem.train("persona_joint", model, model.parameters(), problem.everything)
    return problem.trained("persona_joint", model, adaptive_bytes(host), started)


MODES: dict[str, Callable[[Problem], Trained]] = {
    "held_back": train_held_back,
    "joint": train_joint,
    "frozen": train_frozen,
}


def _fixed(problem: Problem, *, early: bool) -> Personalised:
    host = problem.early_host() if early else problem.base_host()
    return Personalised(host, problem.new_editor(host), fixed_host=True)
