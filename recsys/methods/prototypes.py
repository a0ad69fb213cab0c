"""Persona with prototypes: a device holds the bank, and a refresh names a prototype, alone or with a remainder.

The bank is fitted on the codes of the training contexts; no test row is seen. ``persona_prototypes`` and ``persona_basis``
show what the levels keep of the held-back editor; ``persona`` is the method as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from persona.edits import Edit
from persona.errors import DataError
from persona.prototypes import HeadMetric, PrototypeBank, Server, fit_bank, fit_distinct
from persona.torch_device import moved
from recsys.data.batches import Context
from recsys.methods.persona import train_held_back, train_selected
from recsys.methods.problem import Problem, Trained
from recsys.personalised import Personalised

# Sizes of the bank that validation chooses from.
SIZES = (1, 2, 4, 8, 16)


class ServedAtLevel(Personalised):
    """A personalised host whose device applies what a serving level sends, rounding included.

    Args:
        model: host and editor.
        server: of the editor's bank.
        level: ``prototype``, ``basis`` or another level of ``persona.prototypes``.
    """

    def __init__(self, model: Personalised, server: Server, level: str) -> None:
        super().__init__(model.host, model.editor, fixed_host=True)
        self.server, self.level = server, level
        self.eval()

    def edit(self, context: Context) -> Edit | None:
        """What every row's device applies."""
        return moved(self.server.edit(self.codes(context), self.level), self.host.device)


def train_prototypes(problem: Problem) -> Trained:
    """The nearest prototype alone: one byte a refresh."""
    return _serve(problem, train_held_back(problem), "prototype")


def train_basis(problem: Problem) -> Trained:
    """The nearest prototype and the remaining edit in the bank's shared basis, in int8: at most 64 bytes a refresh."""
    return _serve(problem, train_held_back(problem), "basis")


def train_persona(problem: Problem) -> Trained:
    """Persona as it is deployed: mode of training and K chosen on validation, prototype and remainder on the wire."""
    return _serve(problem, train_selected(problem)[1], "basis")


def training_contexts(problem: Problem, model: Personalised) -> Context:
    """The distinct contexts (N, T) of all rows before validation."""
    items, lengths = problem.data.contexts(problem.everything, model.host.config.max_length)
    distinct = np.unique(np.column_stack([items, lengths]), axis=0)
    return Context(torch.from_numpy(distinct[:, :-1].copy()), torch.from_numpy(distinct[:, -1].copy()))


def best_bank(problem: Problem, model: Personalised, sizes: Sequence[int] = SIZES) -> PrototypeBank:
    """Banks of several sizes on the codes of the training contexts; the one whose prototypes alone validate best.

    Of equally good sizes the smallest; one for which there are too few distinct edits is not tried, and the first one made smaller.
    """
    assert model.editor is not None
    codes, metric = model.codes(training_contexts(problem, model)), HeadMetric(model.editor)
    banks = [fit_distinct(metric, codes, sizes[0], seed=problem.config.seed).bank]
    for k in sizes[1:]:
        try:
            banks.append(fit_bank(metric, codes, k, seed=problem.config.seed).bank)
        except DataError:
            break  # an editor that learned little makes fewer distinct edits than that
    return banks[0] if len(banks) == 1 else max(banks, key=lambda bank: score_alone(problem, model, bank))


def score_alone(problem: Problem, model: Personalised, bank: PrototypeBank) -> float:
    """Validation score of prototypes alone."""
    assert model.editor is not None
    return problem.score(ServedAtLevel(model, Server(model.editor, bank), "prototype"))


def _serve(problem: Problem, trained: Trained, level: str) -> Trained:
    model = trained.scorer
    assert isinstance(model, Personalised)
    assert model.editor is not None
    bank = best_bank(problem, model)
    server = Server(model.editor, bank)
    chosen = {**trained.chosen, "prototypes": float(len(bank))}
    return Trained(ServedAtLevel(model, server, level), server.payload_bytes(level), trained.result, chosen=chosen)
