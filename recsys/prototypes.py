"""From the training contexts of a recommender to its prototype bank, and to what a device applies of it.

Nothing here sees a test row. K and what is kept of specialisation are decided on validation rows (``persona.prototypes.fitting``);
the rows that stop a prototype's training early are those of other users than the ones that decide whether it is kept.

Shapes: N contexts, L layers, d code width, K prototypes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchrec import KeyedJaggedTensor

from persona import methods
from persona.edits import Edit
from persona.prototypes import (
    Assigner,
    BankConfig,
    CodeBlock,
    Contexts,
    FittedBank,
    HeadMetric,
    Notify,
    PrototypeBank,
    Server,
    StreamedPartition,
    fit_bank_streamed,
)
from persona.prototypes.fitting import sampled
from persona.prototypes.specialisation import Score, TrainablePrototype
from persona.torch_device import moved, on_cpu
from persona.training.loop import fit
from recsys.data.batches import Context
from recsys.data.sequences import SequenceData
from recsys.evaluation import Evaluated, Evaluation
from recsys.hosts import Host
from recsys.objectives import make_objective
from recsys.personalised import Personalised

if TYPE_CHECKING:  # methods are made of banks, and not the other way round
    from recsys.methods.problem import Problem

# The partition is made of all contexts: in memory of up to so many, of more as a stream that is read block by block.
FIT_CONTEXTS = 500_000
BLOCK_CONTEXTS = 1 << 16
# A prototype is trained only where this many users stop its training, and as many others judge it.
MIN_JUDGES = 10

Positions = NDArray[np.int64]


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


class WithPrototype(Personalised):
    """A fixed host under one prototype, the same for every row; trains it on the rows of its members."""

    def __init__(self, host: Host, prototype: TrainablePrototype) -> None:
        super().__init__(host, fixed_host=True)
        self.prototype = prototype.to(host.device)

    def forward(self, features: KeyedJaggedTensor) -> Tensor:
        """Logits (B, C) of a batch's features."""
        logits: Tensor = self.host(features, self.prototype())
        return logits

    def edit(self, context: Context) -> Edit | None:
        """The bounded prototype, batch 1."""
        edit: Edit = self.prototype()
        return edit


def user_numbers(ids: Iterable[str]) -> Tensor:
    """(U,) int64 numbers of user ids that are the same in every log, so that a user can be found again and forgotten."""
    return torch.tensor(
        [int.from_bytes(hashlib.sha256(user.encode()).digest()[:8], "big") >> 12 for user in ids], dtype=torch.int64
    )


class PersonalContexts:
    """What each user knew before each of some events, once a basket; made when asked for, as there may be many.

    Args:
        data: the events.
        positions: which events.
        length: T.

    Attributes:
        starts: (N,) the event before which each context ends, rising.
    """

    def __init__(self, data: SequenceData, positions: Positions, length: int) -> None:
        self.data, self.length = data, length
        self.starts: Positions = np.unique(data.basket_start[positions])

    def __len__(self) -> int:
        return len(self.starts)

    def at(self, rows: Tensor) -> tuple[Context, NDArray[np.int64]]:
        """Contexts (n, T) of ``rows`` (n,), and their users (n,)."""
        starts = self.starts[rows.numpy()]
        items, lengths = self.data.contexts(starts, self.length)
        return Context(torch.from_numpy(items), torch.from_numpy(lengths)), self.data.user_of(starts)

    def coded(self, model: Personalised, numbers: Tensor) -> Iterator[CodeBlock]:
        """All contexts, read by the editor, block by block; ``numbers`` (U,) stand for the users."""
        for rows in torch.split(torch.arange(len(self)), BLOCK_CONTEXTS):
            context, users = self.at(rows)
            yield CodeBlock(model.codes(context), numbers[torch.from_numpy(users)], torch.from_numpy(self.starts[rows]))


def fit_bank(
    problem: Problem, model: Personalised, settings: BankConfig, notify: Notify = lambda note: None
) -> FittedBank:
    """The bank of a trained model, from the problem's folder if it was fitted before; ``notify`` hears of each part of the work.

    Raises:
        ConfigError: the model has no editor.
        DataError: fewer distinct edits than the prototypes asked for, of more contexts than fit; of fewer it makes what it can.
    """
    editor = methods.editor_of(model)
    data, seed = problem.data, problem.config.seed
    seen = PersonalContexts(data, problem.everything, model.host.config.max_length)
    context, owners = seen.at(sampled(len(seen), FIT_CONTEXTS, seed))
    users, numbers = torch.from_numpy(owners), user_numbers(data.user_ids.to_list())
    contexts = Contexts(model.codes(context), users, numbers[users], data.user_ids.gather(owners).to_list())

    def streamed(k: int) -> StreamedPartition:
        return fit_bank_streamed(
            HeadMetric(editor),
            partial(seen.coded, model, numbers),
            k,
            seed=seed,
            space=settings.space,
            sample_size=FIT_CONTEXTS,
            keep_statistics=True,
        )

    return problem.bank_of(
        editor,
        contexts,
        settings,
        lambda level, bank: problem.score(at_level(model, bank, level)),
        tuning=lambda bank: _tuning(problem, model, bank, notify),
        partition=streamed if len(seen) > FIT_CONTEXTS else None,
        notify=notify,
    )


def at_level(model: Personalised, bank: PrototypeBank | None, level: str) -> Personalised:
    """As ``persona.methods.at_level``."""
    return methods.at_level(model, bank, level, alone=Personalised, serve=ServedAtLevel)


def evaluate_levels(
    evaluation: Evaluation, model: Personalised, bank: PrototypeBank, levels: Sequence[str]
) -> dict[str, Evaluated]:
    """What each level achieves on the same rows."""
    return {level: evaluation.run(at_level(model, bank, level)) for level in levels}


@dataclass(frozen=True)
class _Members:
    """Rows of one prototype: what it learns from, what stops it, what judges it; ``None`` where there are too few."""

    learn: Positions
    stop: Evaluation
    judge: Evaluation


def _tuning(
    problem: Problem, model: Personalised, bank: PrototypeBank, notify: Notify
) -> tuple[Callable[[int, Edit], Edit], Score[None]]:
    """What trains a prototype on its members' rows that the host has not seen, and judges it on rows of other users."""
    assert model.editor is not None
    members = _members(problem, model, Assigner(HeadMetric(model.editor), bank.prototypes), len(bank))
    config = problem.config
    limits = config.fit_config(config.editor_learning_rate)
    # A prototype learns from the rows of its members, as an editor does.
    loss = replace(config.loss_config(), sequences=False)

    def scorer(prototype: Edit) -> WithPrototype:
        return WithPrototype(model.host, TrainablePrototype(prototype, bank.bound, bank.weight_scales)).eval()

    def tune(index: int, start: Edit) -> Edit:
        rows = members[index]
        if rows is None:
            return start
        notify(f"prototype {index + 1} of {len(bank)}")
        tuned = scorer(start)
        objective = make_objective(tuned, problem.data, rows.learn, rows.stop, loss, config.seed)
        fit(tuned, tuned.prototype.parameters(), objective, limits, keep_start=True)
        return on_cpu(tuned.prototype).unbounded().detach()

    def score(index: int, prototype: Edit, editor: None) -> float:
        rows = members[index]
        return 0.0 if rows is None else rows.judge.run(scorer(prototype)).summary[config.monitor]

    return tune, score


def _members(problem: Problem, model: Personalised, assigner: Assigner, k: int) -> list[_Members | None]:
    learn = problem.split.adapt if len(problem.split.adapt) else problem.held_back.adapt
    stop_or_judge = problem.validation.positions
    of_learn, of_validation = (_nearest(problem, model, assigner, rows) for rows in (learn, stop_or_judge))
    even = problem.data.user_of(stop_or_judge) % 2 == 0
    found: list[_Members | None] = []
    for j in range(k):
        mine = of_validation == j
        rows = learn[of_learn == j]
        halves = [stop_or_judge[mine & even], stop_or_judge[mine & ~even]]
        if len(rows) and min(len(np.unique(problem.data.user_of(half))) for half in halves) >= MIN_JUDGES:
            found.append(_Members(rows, *(problem.evaluation(half) for half in halves)))
        else:
            found.append(None)
    return found


def _nearest(problem: Problem, model: Personalised, assigner: Assigner, positions: Positions) -> NDArray[np.int64]:
    items, lengths = problem.data.contexts(positions, model.host.config.max_length)
    context = Context(torch.from_numpy(items), torch.from_numpy(lengths))
    nearest: NDArray[np.int64] = assigner(model.codes(context)).prototypes.numpy()
    return nearest
