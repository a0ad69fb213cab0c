"""Persona with a single prototype: the host itself plus the editor's edit, in its modes of training."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from persona.gates import supported_share
from persona.methods import all_bytes
from persona.modes import Bracket, Modes
from vision.evaluation import Evaluation
from vision.hosts import Host
from vision.methods.duet import payload
from vision.methods.finetune import (
    finetune_adaptive,
    finetune_interpolated,
    interpolated,
    tuned_folds,
)
from vision.methods.folds import PARTS, device_folds, population_folds, populations
from vision.methods.host import train_host
from vision.methods.problem import Devices, Problem, Trained
from vision.objectives import Mixture
from vision.personalised import Personalised

# Epochs of an editor before it is compared with others.
FIRST_ROUND = 3
# Shares of an edit that a gate may let through.
GATES = (0.0, 0.25, 0.5, 1.0)


def train_held_back(problem: Problem) -> Trained:
    """The editor learns from devices that its fixed host has not seen, so there is an error left to learn from."""
    return _edit_fixed(problem, "persona_held_back", problem.split.adapt)


def train_cross_fitted(problem: Problem) -> Trained:
    """The editor learns from devices over hosts that have not seen them, and is used over the host that has seen them all.

    Where the host is deployed on unknown populations, every known one is left out in turn: the editor learns what to change
    on a population that its host has never met, and validation looks at each over the host that left it out. Elsewhere the
    editor's devices come in parts, and the host that is deployed is the one with its adaptive layers fine-tuned on all of them.
    """
    folds = population_folds(problem)
    tuned = None if folds else finetune_adaptive(problem)
    host = problem.base_host() if tuned is None else personalised(tuned).host
    deployed = problem.personalise(host, fixed_host=True)
    assert deployed.editor is not None
    started = time.perf_counter()
    parts = []
    for fold in folds or device_folds(problem):
        model = problem.personalise(fold.host, fold.known, fixed_host=True).eval()
        model.editor = deployed.editor
        parts += [
            problem.objective(model, fold.devices, fold.validation),
            *problem.shifted_objectives(model, fold.devices, fold.validation),
        ]
    validators = parts if folds else [problem.objective(deployed, problem.split.adapt)]
    result = problem.fit(
        "persona_cross_fitted",
        deployed,
        deployed.editor.parameters(),
        Mixture(parts, validators, problem.config.seed),
        keep_start=True,
        fit_config=problem.config.editor_fit(),
    )
    return Trained(
        deployed,
        payload(problem, deployed),
        body_bytes=0 if tuned is None else tuned.refresh_bytes,
        forward_passes=_passes(problem),
        result=result,
        seconds=time.perf_counter() - started + (0.0 if tuned is None else tuned.seconds),
        keeps_body=deployed.host.shared_features,
    )


def refresh_host(problem: Problem) -> Trained:
    """The host that ``train_cross_fitted`` edits, without its edits.

    Where the host is deployed on unknown populations that is the host itself.
    """
    tuned = train_host(problem) if populations(problem) else finetune_adaptive(problem)
    tuned.model = Personalised(personalised(tuned).host, fixed_host=True).eval()
    return tuned


def joint_body(problem: Problem) -> Trained:
    """The host that ``train_joint`` has trained with its editor, without the edits."""
    trained = train_joint(problem)
    host = personalised(trained).host
    return replace(
        trained, model=Personalised(host).eval(), refresh_bytes=trained.body_bytes, body_bytes=0, forward_passes=1.0
    )


def train_frozen(problem: Problem) -> Trained:
    """The published reading: the editor learns from the very devices that its fixed host was trained on."""
    return _edit_fixed(problem, "persona_frozen", problem.split.train)


def train_joint(problem: Problem) -> Trained:
    """The trained host and an editor learn on together; a share of windows is trained without an edit, so that the host
    alone stays good.
    """
    model = problem.personalise(problem.base_host(), edit_dropout=problem.config.edit_dropout)
    started = time.perf_counter()
    result = problem.train(
        "persona_joint", model, model.parameters(), problem.everything, fit_config=problem.config.editor_fit()
    )
    return Trained(
        model,
        payload(problem, model),
        body_bytes=all_bytes(model.host),
        forward_passes=_passes(problem),
        result=result,
        seconds=time.perf_counter() - started,
    )


def train_tuned(problem: Problem) -> Trained:
    """The editor of a host whose adaptive layers were fine-tuned for everybody on the editor's devices: what is left to learn
    is how devices differ. All devices receive these layers once. Where the host is deployed on unknown populations, they lie
    between the host's and the fine-tuned ones.
    """
    tuned = (finetune_interpolated if populations(problem) else finetune_adaptive)(problem)
    trained = _edit_fixed(problem, "persona_tuned", problem.split.adapt, personalised(tuned).host)
    trained.chosen = dict(tuned.chosen)
    trained.body_bytes = tuned.refresh_bytes
    return trained


def train_gated(problem: Problem) -> Trained:
    """``train_tuned`` behind a gate: how much of an edit is applied is chosen on populations that neither host nor editor has
    met, where the one at test is unknown, else on validation devices, by intervals (see ``supported_share``). Without any it is
    the layers that all devices receive.
    """
    started = time.perf_counter()
    trained = train_tuned(problem)
    judged = []
    for fold, own in tuned_folds(problem):
        host = interpolated(fold.host, own, trained.chosen["share"])
        name, devices = f"persona_tuned_without_{fold.name}", fold.rest(problem.split.adapt)
        edited = _edit_fixed(problem, name, devices, host, known=fold.known, validation=fold.others)
        judged.append((personalised(edited), problem.evaluation(fold.devices)))
    judged = judged or [(personalised(trained), problem.validation)]
    gate = _gate(problem, judged)
    trained.chosen = {**trained.chosen, "gate": gate}
    trained.model = personalised(trained).scaled(gate)
    trained.refresh_bytes *= gate > 0
    trained.seconds = time.perf_counter() - started
    return trained


TRAINERS: dict[str, Callable[[Problem], Trained]] = {
    "held_back": train_held_back,
    "cross_fitted": train_cross_fitted,
    "tuned": train_tuned,
    "gated": train_gated,
    "joint": train_joint,
    "frozen": train_frozen,
}


def brackets(problem: Problem) -> list[Bracket]:
    """The modes that ``auto`` tries. All start at the trained host, so that a few epochs tell them apart.

    Validation devices can tell them apart where the host is deployed on populations that are known. Elsewhere they say nothing of
    the unknown one, and it takes the mode whose every choice is made on populations left out.
    """
    if populations(problem):
        return [Bracket(("gated",))]
    enough = len(problem.split.adapt) >= PARTS
    return [Bracket(("held_back", *(["cross_fitted"] if enough else []), "tuned", "joint"), FIRST_ROUND)]


MODES = Modes(TRAINERS, brackets)
train_configured = MODES.configured


def personalised(trained: Trained) -> Personalised:
    """Host and editor of a mode of training."""
    assert isinstance(trained.classifier, Personalised)
    return trained.classifier


def _gate(problem: Problem, judged: Sequence[tuple[Personalised, Evaluation]]) -> float:
    """The share of edits that the devices of all evaluations support by their intervals, each over its own model."""
    values = {
        gate: np.concatenate([problem.selecting(model.scaled(gate), devices) for model, devices in judged])
        for gate in GATES
    }
    return supported_share(values)


def _edit_fixed(
    problem: Problem,
    name: str,
    devices: Devices,
    host: Host | None = None,
    *,
    known: Devices | None = None,
    validation: Evaluation | None = None,
) -> Trained:
    """Train an editor of the base host, or of another one that stands on the same settings and learned from ``known``."""
    model = problem.personalise(host or problem.base_host(), known, fixed_host=True)
    started = time.perf_counter()
    assert model.editor is not None
    result = problem.train(
        name,
        model,
        model.editor.parameters(),
        devices,
        keep_start=True,
        fit_config=problem.config.editor_fit(),
        validation=validation,
    )
    return Trained(
        model,
        payload(problem, model),
        forward_passes=_passes(problem),
        result=result,
        seconds=time.perf_counter() - started,
        keeps_body=host is None or model.host.shared_features,
    )


def _passes(problem: Problem) -> float:
    """The windows without an edit, and where features change with the edit, each image once more."""
    return problem.window_passes + (problem.config.adaptive != "classifier")
