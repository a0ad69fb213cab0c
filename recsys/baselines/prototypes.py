"""Persona with prototypes: a device holds the bank, and a refresh names a prototype, alone or with a remainder.

Both levels stand on the held-back editor. The bank is fitted on the codes of the training contexts; no test row is seen.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from persona.edits import Edit
from persona.prototypes import Server, fit_bank
from recsys.baselines.base import Problem, Trained
from recsys.baselines.persona import train_held_back
from recsys.batches import Context
from recsys.evaluation import ROWS
from recsys.personalised import Personalised

PROTOTYPES = 16


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
        return self.server.edit(_codes(self, context), self.level)


def train_prototypes(problem: Problem) -> Trained:
    """The nearest prototype alone: one byte a refresh."""
    return _serve(problem, "prototype")


def train_basis(problem: Problem) -> Trained:
    """The nearest prototype and the remaining edit in the bank's shared basis, in int8: at most 64 bytes a refresh."""
    return _serve(problem, "basis")


@torch.no_grad()
def training_codes(problem: Problem, model: Personalised) -> Tensor:
    """(N, L, d) codes of the distinct contexts of all rows before validation."""
    items, lengths = problem.data.contexts(problem.everything, model.host.config.max_length)
    distinct = np.unique(np.column_stack([items, lengths]), axis=0)
    context = Context(torch.from_numpy(distinct[:, :-1].copy()), torch.from_numpy(distinct[:, -1].copy()))
    blocks = torch.split(torch.arange(len(context)), ROWS)
    return torch.cat([_codes(model, context.index_select(rows)) for rows in blocks])


def _serve(problem: Problem, level: str) -> Trained:
    trained = train_held_back(problem)
    model = trained.scorer
    assert isinstance(model, Personalised)
    assert model.editor is not None
    bank = fit_bank(model.editor, training_codes(problem, model), PROTOTYPES, seed=problem.config.seed).bank
    server = Server(model.editor, bank)
    scorer = ServedAtLevel(model, server, level)
    return Trained(scorer, server.payload_bytes(level), trained.result)


def _codes(model: Personalised, context: Context) -> Tensor:
    assert model.editor is not None
    return model.editor.codes(model.host.context_features(context), context.lengths)
