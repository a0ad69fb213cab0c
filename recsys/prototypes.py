"""From the training contexts of a recommender to its prototype bank: K, partition, specialised prototypes.

Nothing here sees a test row. K and what is kept of specialisation are decided on validation rows; the rows that stop a
prototype's training early are those of other users than the ones that decide whether it is kept.

Shapes: N contexts, L layers, d code width, K prototypes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchrec import KeyedJaggedTensor

from persona.edits import Edit
from persona.errors import ConfigError
from persona.prototypes import (
    Assigner,
    Choice,
    CodeBlock,
    HeadMetric,
    Lineage,
    Partition,
    PrototypeBank,
    Server,
    Specialised,
    StreamedPartition,
    choose_k,
    editor_digest,
    fit_bank_streamed,
    fit_basis,
    fit_distinct,
    specialise,
)
from persona.prototypes.partition import BASIS_SIZE
from persona.prototypes.trainable import TrainablePrototype
from persona.training.loop import fit
from recsys.data.batches import Context
from recsys.data.sequences import SequenceData
from recsys.evaluation import Evaluated, Evaluation
from recsys.hosts import Host
from recsys.methods.problem import Positions, Problem
from recsys.methods.prototypes import ServedAtLevel, score_alone
from recsys.objectives import RowObjective
from recsys.personalised import Personalised

# K is chosen on a sample of the contexts, and the basis fitted on one. The partition itself is made of all: in memory of up to
# so many, of more as a stream that is read block by block.
CHOICE_CONTEXTS = 10_000
FIT_CONTEXTS = 500_000
BLOCK_CONTEXTS = 1 << 16
# A prototype is trained only where this many users stop its training, and as many others judge it.
MIN_JUDGES = 10
LEVELS = ("host", "prototype", "basis", "edit")

Notify = Callable[[str], None]


@dataclass(frozen=True)
class BankConfig:
    """How a bank is made.

    Attributes:
        k: number of prototypes; 0 chooses among the powers of two up to ``max_k``.
        max_k: largest number that is tried.
        tolerance: share of the editor's validation gain that fewer prototypes may give away.
        min_stability: adjusted Rand index between halves of the users that a chosen K should reach.
        space: where distance is measured, ``edits`` or ``codes``.
        specialise: whether prototypes are trained on their members.

    Raises:
        ConfigError: a setting is out of range.
    """

    k: int = 0
    max_k: int = 16
    tolerance: float = 0.05
    min_stability: float = 0.2
    space: str = "edits"
    specialise: bool = True

    def __post_init__(self) -> None:
        if self.k < 0 or self.max_k < 1:
            raise ConfigError(f"k is {self.k} and max_k {self.max_k}: give k from 0 on, and max_k from 1 on")
        if self.tolerance < 0:
            raise ConfigError(f"tolerance is {self.tolerance}, but it is a share of the gain, 0 or more")

    @property
    def sizes(self) -> list[int]:
        """The K to choose from."""
        return [self.k] if self.k else [2**i for i in range(self.max_k.bit_length())]


@dataclass(frozen=True)
class FittedBank:
    """A bank and how it came about.

    Attributes:
        bank: the last version, specialised where that helped.
        partition: the first version and its sums per user.
        choice: the K that were tried, ``None`` where K was given.
        specialised: what was kept of training, ``None`` without.
        levels: validation score of every serving level, by the metric that selects epochs.
        codes: (N, L, d) of the contexts in the partition, or of a sample of many.
        users: (N,) ids of whom they belong to.
    """

    bank: PrototypeBank
    partition: Partition | StreamedPartition
    choice: Choice | None
    specialised: Specialised[None] | None
    levels: dict[str, float]
    codes: Tensor
    users: list[str]


class WithPrototype(Personalised):
    """A fixed host under one prototype, the same for every row; trains it on the rows of its members."""

    def __init__(self, host: Host, prototype: TrainablePrototype) -> None:
        super().__init__(host, fixed_host=True)
        self.prototype = prototype

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


def fit_prototypes(
    problem: Problem, model: Personalised, config: BankConfig, notify: Notify = lambda note: None
) -> FittedBank:
    """The bank of a trained model.

    Args:
        problem: rows and evaluations.
        model: host and trained editor.
        config: how.
        notify: called with a remark before each part of the work.

    Raises:
        ConfigError: the model has no editor.
        DataError: fewer distinct edits than the prototypes asked for, of more contexts than fit; of fewer it makes what it can.
    """
    if model.editor is None:
        raise ConfigError("prototypes are made of an editor's edits, but this model has no editor")
    model.editor.host = model.host.digest()
    metric = HeadMetric(model.editor)
    seed = problem.config.seed
    contexts = PersonalContexts(problem.data, problem.everything, model.host.config.max_length)
    context, owners = contexts.at(_sample(len(contexts), FIT_CONTEXTS, seed))
    codes = model.codes(context)
    notify("choosing K")
    choice = None if config.k else _choose(problem, model, codes, torch.from_numpy(owners), config)
    k = config.k if choice is None else choice.k
    notify(f"partition into {k}")
    numbers = user_numbers(problem.data.user_ids.to_list())
    partition: Partition | StreamedPartition
    if len(contexts) > FIT_CONTEXTS:
        partition = fit_bank_streamed(
            metric,
            partial(contexts.coded, model, numbers),
            k,
            seed=seed,
            space=config.space,
            sample_size=FIT_CONTEXTS,
            keep_statistics=True,
        )
    else:
        users = numbers[torch.from_numpy(owners)]
        partition = fit_distinct(metric, codes, k, seed=seed, space=config.space, users=users)
    bank, specialised = partition.bank, None
    if config.specialise:
        specialised = _specialise(problem, model, bank, metric, notify)
        new = specialised.bank
        new = replace(new, basis=fit_basis(metric, new.prototypes, codes, BASIS_SIZE))
        # What helps each prototype among its own members may still harm the ranking over all users.
        if any(c.prototype for c in specialised.chosen) and score_alone(problem, model, new) > score_alone(
            problem, model, bank
        ):
            bank = new
    notify("levels")
    scores = evaluate_levels(problem.validation, model, bank, LEVELS)
    levels = {level: found.summary[problem.config.monitor] for level, found in scores.items()}
    return FittedBank(bank, partition, choice, specialised, levels, codes, _names(problem.data, owners))


def at_level(model: Personalised, bank: PrototypeBank | None, level: str) -> Personalised:
    """What ranks at a level of ``persona.cloud.LEVELS``; ``prototype`` and ``basis`` need the bank."""
    if level == "host":
        return Personalised(model.host).eval()
    if level == "edit":
        return model
    assert model.editor is not None
    assert bank is not None
    return ServedAtLevel(model, Server(model.editor, bank), level)


def evaluate_levels(
    evaluation: Evaluation, model: Personalised, bank: PrototypeBank, levels: Sequence[str]
) -> dict[str, Evaluated]:
    """What each level achieves on the same rows."""
    return {level: evaluation.run(at_level(model, bank, level)) for level in levels}


def served_bank(lineage: Lineage, model: Personalised) -> PrototypeBank | None:
    """The bank at the head of the lineage of the model's host, if it was made with the model's editor."""
    if model.editor is None or not lineage.head:
        return None
    model.editor.host = lineage.host
    bank = lineage.load()
    return bank if bank.editor == editor_digest(model.editor) else None


def _sample(count: int, limit: int, seed: int) -> Tensor:
    """(at most ``limit``,) rising rows of ``count``."""
    if count <= limit:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:limit].sort().values


def _choose(problem: Problem, model: Personalised, codes: Tensor, users: Tensor, config: BankConfig) -> Choice:
    """K by validation and stability."""
    assert model.editor is not None
    rows = _sample(len(codes), CHOICE_CONTEXTS, problem.config.seed)

    gain = problem.score(model) - problem.score(at_level(model, None, "host"))
    return choose_k(
        model.editor,
        codes[rows],
        config.sizes,
        lambda bank: score_alone(problem, model, bank),
        tolerance=config.tolerance * max(gain, 0.0),
        users=users[rows],
        space=config.space,
        min_stability=config.min_stability,
    )


def _names(data: SequenceData, users: NDArray[np.int64]) -> list[str]:
    names: list[str] = data.user_ids.gather(users).to_list()
    return names


@dataclass(frozen=True)
class _Members:
    """Rows of one prototype: what it learns from, what stops it, what judges it; ``None`` where there are too few."""

    learn: Positions
    stop: Evaluation
    judge: Evaluation


def _specialise(
    problem: Problem, model: Personalised, bank: PrototypeBank, metric: HeadMetric, notify: Notify
) -> Specialised[None]:
    """Train every prototype on its members' rows that the host has not seen, and keep what other users' rows favour."""
    members = _members(problem, model, Assigner(metric, bank.prototypes), len(bank))
    config = problem.config
    fitting = config.fit_config(config.editor_learning_rate)

    def scorer(prototype: Edit) -> WithPrototype:
        return WithPrototype(model.host, TrainablePrototype(prototype, bank.bound, bank.weight_scales)).eval()

    def tune(index: int, start: Edit) -> Edit:
        rows = members[index]
        if rows is None:
            return start
        notify(f"prototype {index + 1} of {len(bank)}")
        tuned = scorer(start)
        objective = RowObjective(tuned, problem.data, rows.learn, rows.stop, config.loss_config(), config.seed)
        fit(tuned, tuned.prototype.parameters(), objective, fitting, keep_start=True)
        return tuned.prototype.unbounded().detach()

    def score(index: int, prototype: Edit, editor: None) -> float:
        rows = members[index]
        return 0.0 if rows is None else rows.judge.run(scorer(prototype)).summary[config.monitor]

    return specialise(bank, tune, score)


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
            found.append(_Members(rows, *(_evaluation(problem, half) for half in halves)))
        else:
            found.append(None)
    return found


def _nearest(problem: Problem, model: Personalised, assigner: Assigner, positions: Positions) -> NDArray[np.int64]:
    items, lengths = problem.data.contexts(positions, model.host.config.max_length)
    context = Context(torch.from_numpy(items), torch.from_numpy(lengths))
    nearest: NDArray[np.int64] = assigner(model.codes(context)).prototypes.numpy()
    return nearest


def _evaluation(problem: Problem, positions: Positions) -> Evaluation:
    config = problem.config
    return Evaluation(
        problem.data,
        positions,
        max_length=config.host_config(problem.data.n_items).max_length,
        full=config.protocol == "full",
        seed=config.seed,
    )
