"""Persona with a single prototype: the host itself plus the editor's edit, in its modes of training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from persona.gates import supported_share
from persona.methods import adaptive_bytes, all_bytes
from persona.modes import Bracket, Modes
from persona.training.objective import FitResult
from recsys.data.batches import Context
from recsys.hosts import Host
from recsys.methods.problem import Positions, Problem, Trained
from recsys.objectives import CrossFitted, RowObjective
from recsys.personalised import Personalised

PARTS = 4
# Rows whose mean edit a generating editor is centred on.
CENTRED = 100_000
# Epochs of an editor before it is compared with others.
FIRST_ROUND = 3
# Shares of an edit that a gate may let through.
GATES = (1.0, 0.5, 0.25, 0.0)


def train_held_back(problem: Problem) -> Trained:
    """The editor learns from later rows that its fixed host has not seen, so there is an error left to learn from."""
    return _edit_fixed(problem, "persona_held_back", problem.early_host(), problem.held_back.adapt)


def train_cross_fitted(problem: Problem) -> Trained:
    """An editor for a host that knows the later rows, too, and that still learns from unseen errors only.

    The later rows come in ``PARTS`` parts. The host is fine-tuned on one after another, which leaves a host for each part that
    has not seen it; the editor learns from all parts, each over that host. The last host, which has seen them all, is the one
    that is deployed, and the one that validation judges the editor on. It may have learned itself what the edits would change:
    validation also decides how much of an edit is applied, and without any the model is that host.
    """
    parts = problem.parts(PARTS)
    *before, host = problem.refreshed_hosts(parts)
    return _edit_refreshed(problem, "persona_cross_fitted", host, list(zip(before, parts, strict=True)), _names(parts))


def train_refreshed(problem: Problem) -> Trained:
    """As ``train_cross_fitted``, with a host that is refreshed in one piece: the whole host fine-tuned on all later rows at once.

    The editor learns from the errors of the host before, which has seen none of them.
    """
    rows = problem.held_back.adapt
    return _edit_refreshed(
        problem, "persona_refreshed", problem.finetuned_host(), [(problem.early_host(), rows)], ["finetune_all"]
    )


def refresh_host(problem: Problem) -> Trained:
    """The host that ``train_cross_fitted`` edits, without its edits: the whole host fine-tuned part by part."""
    parts = problem.parts(PARTS)
    model = Personalised(problem.refreshed_hosts(parts)[-1])
    results = [problem.trainings.results[name] for name in _names(parts)]
    return Trained(model, all_bytes(model.host), _one_after_another(results))


def brackets(problem: Problem) -> list[Bracket]:
    """The modes that ``auto`` tries: all but ``frozen``.

    Over a trained host an editor shows within a few epochs what it is worth. What learns together with its host starts where that
    did, maybe on a plateau: it gets half of the epochs that the host needed before it is judged.
    """
    problem.early_host()
    host = problem.trainings.results["host" if len(problem.split.adapt) else "host_early"]
    return [
        Bracket(("held_back", "cross_fitted", "refreshed"), FIRST_ROUND),
        Bracket(("generated", "joint"), max(FIRST_ROUND, (host.best_epoch + 2) // 2)),
    ]


def train_frozen(problem: Problem) -> Trained:
    """The published reading: the editor learns from the very rows that its fixed host was trained on."""
    return _edit_fixed(problem, "persona_frozen", problem.base_host(), problem.split.train)


def train_joint(problem: Problem) -> Trained:
    """Host and editor learn together; a share of rows is trained without an edit, so that the host alone stays good."""
    host = problem.new_host()
    model = Personalised(host, problem.new_editor(host), edit_dropout=problem.config.edit_dropout)
    result = problem.train("persona_joint", model, model.parameters(), problem.everything)
    return Trained(model, adaptive_bytes(host), result, body_bytes=all_bytes(host))


def train_generated(problem: Problem) -> Trained:
    """As ``train_joint``, with edits that may be as large as the layers themselves.

    The editor's heads start as layers do, not at zero, and have no bound and no transfer, as DUET's generator. Beside a zero
    start the host's own layers have learned what there is to learn before edits matter; here both learn from the first step.
    Then the host takes in the mean edit, so that by itself it is the best that one edit for everybody makes of it.
    """
    host = problem.new_host()
    editor = problem.new_editor(host, generate=True)
    model = Personalised(host, editor)
    result = problem.train("persona_generated", model, model.parameters(), problem.everything)
    rows = np.random.default_rng([problem.config.seed, 61]).permutation(problem.everything)[:CENTRED]
    items, lengths = problem.data.contexts(rows, host.config.max_length)
    host.adaptive.add(editor.centre(model.codes(Context(torch.from_numpy(items), torch.from_numpy(lengths)))))
    return Trained(model, adaptive_bytes(host), result, body_bytes=all_bytes(host))


TRAINERS: dict[str, Callable[[Problem], Trained]] = {
    "held_back": train_held_back,
    "cross_fitted": train_cross_fitted,
    "refreshed": train_refreshed,
    "joint": train_joint,
    "generated": train_generated,
    "frozen": train_frozen,
}
MODES = Modes(TRAINERS, brackets)
train_configured = MODES.configured


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


def _edit_refreshed(
    problem: Problem, name: str, host: Host, unseen: list[tuple[Host, Positions]], needed: list[str]
) -> Trained:
    """An editor for a refreshed ``host``, which learns from rows over hosts that have not seen them, behind a gate.

    It starts as the held-back editor. ``needed`` names the trainings behind the host, whose time counts, too.
    """
    learned = train_held_back(problem)
    assert isinstance(learned.scorer, Personalised)
    assert learned.scorer.editor is not None
    editor = problem.new_editor(host)
    editor.load_state_dict(learned.scorer.editor.state_dict())
    editor.host = host.digest()
    deployed = Personalised(host, editor, fixed_host=True)
    result = problem.fit(
        name,
        deployed,
        editor.parameters(),
        CrossFitted(
            [_rows(problem, Personalised(h, editor, fixed_host=True), rows) for h, rows in unseen],
            _rows(problem, deployed, unseen[-1][1]),
        ),
        keep_start=True,
        learning_rate=problem.config.editor_learning_rate,
    )
    gated, gate = _gated(problem, deployed)
    before = [learned.result, *(problem.trainings.results[needed_name] for needed_name in needed)]
    whole = replace(result, seconds=result.seconds + sum(r.seconds for r in before))
    return Trained(gated, adaptive_bytes(host) if gate else 0, whole, {"gate": gate}, all_bytes(host))


def _names(parts: Sequence[Positions]) -> list[str]:
    """The trainings of ``problem.refreshed_hosts``."""
    return [f"host_refreshed_{i + 1}_of_{len(parts)}" for i in range(len(parts))]


def _one_after_another(results: Sequence[FitResult]) -> FitResult:
    """The results of trainings that go on from each other as one; its best epoch is the last that any of them kept."""
    total = FitResult()
    for result in results:
        if result.best_epoch >= 0:
            total.best_epoch, total.best_value = total.epochs + result.best_epoch, result.best_value
        total.history += result.history
        total.seconds += result.seconds
    return total


def _gated(problem: Problem, model: Personalised) -> tuple[Personalised, float]:
    """``model`` with as much of its edits as validation supports by its intervals, and their share (see ``supported_share``)."""
    models = {gate: model if gate == 1 else model.scaled(gate) for gate in GATES}
    share = supported_share({gate: problem.selecting(gated)[1] for gate, gated in models.items()})
    return models[share], share


def _rows(problem: Problem, model: Personalised, rows: Positions) -> RowObjective:
    for p in model.host.parameters():
        if p.is_leaf:  # a table that lies in pieces is none, and is kept from learning where it is looked up
            p.requires_grad_(False)
    objective = problem.objective(model, rows)
    assert isinstance(objective, RowObjective)  # an editor always learns from rows
    return objective
