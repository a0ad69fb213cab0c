"""Persona with a single prototype: the host itself plus the editor's edit, in the three modes of training."""

from __future__ import annotations

from recsys.baselines.base import Positions, Problem, Trained, adaptive_bytes
from recsys.hosts import Host
from recsys.personalised import Personalised


def train_held_back(problem: Problem) -> Trained:
    """The editor learns from later rows that its fixed host has not seen, so there is an error left to learn from."""
    return _edit_fixed(problem, "persona_held_back", problem.early_host(), problem.held_back.adapt)


def train_frozen(problem: Problem) -> Trained:
    """The published reading: the editor learns from the very rows that its fixed host was trained on."""
    return _edit_fixed(problem, "persona_frozen", problem.base_host(), problem.split.train)


def train_joint(problem: Problem) -> Trained:
    """Host and editor learn together; a share of rows is trained without an edit, so that the host alone stays good."""
    host = problem.new_host()
    model = Personalised(host, problem.new_editor(host), edit_dropout=problem.config.edit_dropout)
    result = problem.train("persona_joint", model, model.parameters(), problem.everything)
    return Trained(model, adaptive_bytes(host), result)


def _edit_fixed(problem: Problem, name: str, host: Host, rows: Positions) -> Trained:
    editor = problem.new_editor(host)
    editor.host = host.digest()
    model = Personalised(host, editor, fixed_host=True)
    result = problem.train(
        name,
        model,
        editor.parameters(),
        rows,
        keep_start=True,
        learning_rate=problem.config.editor_learning_rate,
    )
    return Trained(model, adaptive_bytes(host), result)
