"""Persona with prototypes: a device holds the bank, and a refresh names a prototype, alone or with a remainder.

The bank is fitted on the codes of the windows of the devices that the editor learned from; refined, it has also moved with the
unlabelled windows of the devices that validate, as after deployment. No image of a test device is seen. ``persona_prototypes``,
``persona_basis`` and ``persona_refined`` show what the levels keep of the held-back editor; ``persona`` is the method as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from persona.prototypes import (
    Choice,
    HeadMetric,
    Partition,
    PrototypeBank,
    RefineConfig,
    Server,
    choose_k,
    fit_bank,
    fit_distinct,
    refine,
)
from vision.methods.finetune import score_of
from vision.methods.persona import personalised, train_held_back, train_selected
from vision.methods.problem import Problem, Trained
from vision.personalised import Personalised
from vision.prototypes import Int64Array, ServedAtLevel, window_codes, window_statistics

# Prototypes are no more than are needed to come this near, in the metric that selects, to the best number of them.
TOLERANCE = 0.002


@dataclass(frozen=True)
class ChosenBank:
    """A first bank of the size that validation asks for.

    Attributes:
        choice: the sizes that were tried.
        fitted: the bank, and the prototype of every window.
        codes: (W, L, d) of the windows of the editor's devices, that it was fitted on.
        owners: (W,) the device of each.
    """

    choice: Choice
    fitted: Partition
    codes: Tensor
    owners: Int64Array


def train_prototypes(problem: Problem) -> Trained:
    """The nearest prototype alone: one byte a refresh."""
    return _serve(problem, train_held_back(problem), "prototype")


def train_basis(problem: Problem) -> Trained:
    """The nearest prototype and the remaining edit in the bank's shared basis, in int8: at most 64 bytes a refresh."""
    return _serve(problem, train_held_back(problem), "basis")


def train_refined(problem: Problem) -> Trained:
    """The nearest prototype alone, after one refinement without labels and gradients."""
    trained = train_held_back(problem)
    model = personalised(trained)
    server = make_server(problem, model)
    codes, owners = window_codes(model, problem.evaluation(problem.split.validation), problem.features_of(model.host))
    statistics = window_statistics(server, codes, owners)
    bank = refine(server.bank, HeadMetric(server.editor), statistics, RefineConfig(seed=problem.config.seed)).bank
    return _served(trained, Server(server.editor, bank), "prototype")


def train_persona(problem: Problem) -> Trained:
    """Persona as it is deployed: mode of training and K chosen on validation, prototype and remainder on the wire."""
    trained = train_selected(problem)[1]
    model = personalised(trained)
    bank = fit_chosen(problem, model).fitted.bank
    assert model.editor is not None
    trained.chosen = {**trained.chosen, "prototypes": float(len(bank))}
    return _served(trained, Server(model.editor, bank), "basis")


def fit_chosen(problem: Problem, model: Personalised) -> ChosenBank:
    """A bank of the smallest of 1, 4, 16 .. prototypes that validation hardly tells from the best.

    Args:
        problem: validation devices, and the most prototypes there may be.
        model: host and editor.
    """
    editor = model.editor
    assert editor is not None
    codes, owners = _adapt_codes(problem, model)
    users = torch.from_numpy(owners)
    sizes = sorted({min(4**i, problem.config.prototypes) for i in range(5)})

    def score(bank: PrototypeBank) -> float:
        return score_of(problem, ServedAtLevel(model, Server(editor, bank), "prototype"), problem.validation)

    choice = choose_k(editor, codes, sizes, score, tolerance=TOLERANCE, seeds=(0, 1), users=users)
    return ChosenBank(choice, fit_bank(editor, codes, choice.k, seed=problem.config.seed, users=users), codes, owners)


def make_server(problem: Problem, model: Personalised) -> Server:
    """The first bank of an editor, of as many prototypes as the settings allow."""
    assert model.editor is not None
    codes, _ = _adapt_codes(problem, model)
    fitted = fit_distinct(model.editor, codes, problem.config.prototypes, seed=problem.config.seed)
    return Server(model.editor, fitted.bank)


def _adapt_codes(problem: Problem, model: Personalised) -> tuple[Tensor, Int64Array]:
    return window_codes(model, problem.evaluation(problem.split.adapt), problem.features_of(model.host))


def _serve(problem: Problem, trained: Trained, level: str) -> Trained:
    return _served(trained, make_server(problem, personalised(trained)), level)


def _served(trained: Trained, server: Server, level: str) -> Trained:
    return Trained(
        ServedAtLevel(personalised(trained), server, level),
        server.payload_bytes(level),
        forward_passes=trained.forward_passes,
        chosen=trained.chosen,
        result=trained.result,
        seconds=trained.seconds,
        keeps_body=trained.keeps_body,
    )
