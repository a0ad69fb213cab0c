"""Persona with prototypes: a device holds the bank, and a refresh names a prototype, alone or with a remainder.

The bank is the one that the step ``prototypes`` makes of the same model. ``persona_prototypes`` and ``persona_basis`` show what
the levels keep of the held-back editor; ``persona`` is the method as a whole, as it is released.
"""

from __future__ import annotations

from persona.methods import served
from persona.prototypes import Server
from recsys.methods.persona import train_configured, train_held_back
from recsys.methods.problem import Problem, Trained
from recsys.personalised import Personalised
from recsys.prototypes import ServedAtLevel, fit_bank


def train_prototypes(problem: Problem) -> Trained:
    """The nearest prototype alone: one byte a refresh."""
    return _served(problem, train_held_back(problem), "prototype")


def train_basis(problem: Problem) -> Trained:
    """The nearest prototype and the remaining edit in the bank's shared basis, in int8: at most 64 bytes a refresh."""
    return _served(problem, train_held_back(problem), "basis")


def train_persona(problem: Problem) -> Trained:
    """Persona as it is deployed: mode of training and K chosen on validation, prototype and remainder on the wire.

    Where validation lets no edit through there is nothing to send, and no bank: it is the host of that mode.
    """
    trained = train_configured(problem)[1]
    return trained if trained.chosen.get("gate") == 0 else _served(problem, trained, "basis")


def _served(problem: Problem, trained: Trained, level: str) -> Trained:
    model = trained.scorer
    assert isinstance(model, Personalised)
    assert model.editor is not None
    bank = fit_bank(problem, model, problem.bank_config).bank
    return served(trained, ServedAtLevel(model, Server(model.editor, bank), level))
