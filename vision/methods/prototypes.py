"""Persona with prototypes: a device holds the bank, and a refresh names a prototype, alone or with a remainder.

The bank is the one that the step ``prototypes`` makes of the same model; refined, it has also moved with the unlabelled windows of
the devices that validate, as after deployment. ``persona_prototypes``, ``persona_basis`` and ``persona_refined`` show what the
levels keep of the held-back editor; ``persona`` is the method as a whole, as it is released.
"""

from __future__ import annotations

from persona.methods import served
from persona.prototypes import RefineConfig, Server, refine
from vision.methods.persona import personalised, train_configured, train_held_back
from vision.methods.problem import Problem, Trained
from vision.personalised import Personalised
from vision.prototypes import ServedAtLevel, fit_bank, window_codes, window_statistics


def train_prototypes(problem: Problem) -> Trained:
    """The nearest prototype alone: one byte a refresh."""
    return _served(problem, train_held_back(problem), "prototype")


def train_basis(problem: Problem) -> Trained:
    """The nearest prototype and the remaining edit in the bank's shared basis, in int8: at most 64 bytes a refresh."""
    return _served(problem, train_held_back(problem), "basis")


def train_refined(problem: Problem) -> Trained:
    """The nearest prototype alone, after one refinement without labels and gradients."""
    trained = train_held_back(problem)
    model = personalised(trained)
    server = _server(problem, model)
    codes, owners = window_codes(model, problem.evaluation(problem.split.validation), problem.features_of(model.host))
    statistics = window_statistics(server, codes, owners)
    bank = refine(server.bank, server.assigner.metric, statistics, RefineConfig(seed=problem.config.seed)).bank
    return served(trained, ServedAtLevel(model, Server(server.editor, bank), "prototype"))


def train_persona(problem: Problem) -> Trained:
    """Persona as it is deployed: mode of training and K chosen on validation, prototype and remainder on the wire.

    Where validation lets no edit through there is nothing to send, and no bank: it is the host of that mode.
    """
    trained = train_configured(problem)[1]
    return trained if trained.chosen.get("gate") == 0 else _served(problem, trained, "basis")


def _served(problem: Problem, trained: Trained, level: str) -> Trained:
    model = personalised(trained)
    return served(trained, ServedAtLevel(model, _server(problem, model), level))


def _server(problem: Problem, model: Personalised) -> Server:
    assert model.editor is not None
    return Server(model.editor, fit_bank(problem, model, problem.bank_config).bank)
