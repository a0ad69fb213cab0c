"""Persona with prototypes: a device holds the bank, and a refresh names a prototype, alone or with a remainder.

All levels stand on the held-back editor. The bank is fitted on the codes of the windows of the devices that the editor learned
from; refined, it has also moved with the unlabelled windows of the devices that validate, as after deployment. No image of a
test device is seen.
"""

from __future__ import annotations

from persona.prototypes import HeadMetric, RefineConfig, Server, refine
from vision.baselines.base import Problem, Trained
from vision.baselines.persona import train_held_back
from vision.personalised import Personalised
from vision.prototypes import ServedAtLevel, fit_distinct, window_codes, window_statistics


def train_prototypes(problem: Problem) -> Trained:
    """The nearest prototype alone: one byte a refresh."""
    return _serve(problem, "prototype", refined=False)


def train_basis(problem: Problem) -> Trained:
    """The nearest prototype and the remaining edit in the bank's shared basis, in int8: at most 64 bytes a refresh."""
    return _serve(problem, "basis", refined=False)


def train_refined(problem: Problem) -> Trained:
    """The nearest prototype alone, after one refinement without labels and gradients."""
    return _serve(problem, "prototype", refined=True)


def make_server(problem: Problem, model: Personalised) -> Server:
    """The first bank of an editor, from the windows of the devices that it learned from."""
    assert model.editor is not None
    devices = problem.split.train if problem.config.mode == "frozen" else problem.split.adapt
    codes, _ = window_codes(model, problem.evaluation(devices), problem.features)
    fitted = fit_distinct(model.editor, codes, problem.config.prototypes, seed=problem.config.seed)
    return Server(model.editor, fitted.bank)


def _serve(problem: Problem, level: str, *, refined: bool) -> Trained:
    trained = train_held_back(problem)
    model = trained.classifier
    assert isinstance(model, Personalised)
    assert model.editor is not None
    server = make_server(problem, model)
    if refined:
        codes, owners = window_codes(model, problem.evaluation(problem.split.validation), problem.features)
        statistics = window_statistics(server, codes, owners)
        bank = refine(server.bank, HeadMetric(model.editor), statistics, RefineConfig(seed=problem.config.seed)).bank
        server = Server(model.editor, bank)
    return Trained(
        ServedAtLevel(model, server, level),
        server.payload_bytes(level),
        forward_passes=trained.forward_passes,
        result=trained.result,
        seconds=trained.seconds,
        keeps_body=True,
    )
