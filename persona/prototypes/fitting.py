"""From a trained editor to its bank, by one recipe for all tasks.

    1. K: the smallest power of two whose prototypes alone give away no more than a tolerated share of the editor's gain on
       validation, and whose partition is stable
    2. the partition of all training contexts into K
    3. specialisation: every prototype is trained on its members, and kept where validation favours it among its members and
       over everybody

A task brings its contexts and what scores on its validation part; nothing here sees a test part.

Shapes: N contexts, L layers, d code width, K prototypes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from persona.editor import ParameterEditor
from persona.edits import Edit
from persona.errors import ConfigError
from persona.prototypes.bank import PrototypeBank
from persona.prototypes.basis import fit_basis
from persona.prototypes.metric import HeadMetric
from persona.prototypes.partition import BASIS_SIZE, Partition, fit_distinct
from persona.prototypes.selection import Choice, choose_k
from persona.prototypes.specialisation import Score, Specialised, specialise
from persona.prototypes.streaming import StreamedPartition
from persona.wire import LEVELS

# Of the recipe: a bank that is kept is made again by another one.
RECIPE = 1
# K is chosen on a sample of so many contexts.
CHOICE_CONTEXTS = 10_000

Notify = Callable[[str], None]
# The validation score of a level; ``host`` and ``edit`` need no bank.
LevelScore = Callable[[str, PrototypeBank | None], float]
# Of a first bank: what trains a prototype, and what judges it among its members.
Tuning = Callable[[PrototypeBank], tuple[Callable[[int, Edit], Edit], Score[None]]]


@dataclass(frozen=True)
class BankConfig:
    """How a bank is made.

    Attributes:
        k: number of prototypes; 0 chooses among the powers of two up to ``max_k``.
        max_k: largest number that is tried.
        tolerance: share of the editor's validation gain that fewer prototypes may give away.
        min_stability: adjusted Rand index between halves of the units that a chosen K should reach.
        space: where distance is measured, ``edits`` or ``codes``.
        specialise: whether prototypes are trained on their members, where the task can judge them.

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
class Contexts:
    """What the editor has read, or a sample of much.

    Attributes:
        codes: (N, L, d).
        owners: (N,) int64 index of the user or device that each belongs to.
        numbers: (N,) int64 by which statistics know the owners.
        names: (N,) ids of the owners.
    """

    codes: Tensor
    owners: Tensor
    numbers: Tensor
    names: list[str]


@dataclass(frozen=True)
class FittedBank:
    """A bank and how it came about.

    Attributes:
        bank: the last version, specialised where that helped.
        partition: the first version and its sums per unit.
        choice: the K that were tried, ``None`` where K was given.
        specialised: what was kept of training, ``None`` without.
        levels: validation score of every serving level, by the metric that selects epochs.
        contexts: of the partition, or a sample of many.
    """

    bank: PrototypeBank
    partition: Partition | StreamedPartition
    choice: Choice | None
    specialised: Specialised[None] | None
    levels: dict[str, float]
    contexts: Contexts

    @property
    def codes(self) -> Tensor:
        """(N, L, d) of the contexts."""
        return self.contexts.codes

    @property
    def users(self) -> list[str]:
        """(N,) ids of whom the contexts belong to."""
        return self.contexts.names


def fit_editor_bank(
    editor: ParameterEditor,
    contexts: Contexts,
    settings: BankConfig,
    score: LevelScore,
    *,
    seed: int = 0,
    tuning: Tuning | None = None,
    partition: Callable[[int], StreamedPartition] | None = None,
    notify: Notify = lambda note: None,
) -> FittedBank:
    """The bank of a trained editor.

    Args:
        editor: with the digest of its host.
        contexts: that it has read in training.
        settings: how.
        score: of a level on validation data, never on test data; larger is better.
        seed: of the partition and of the sample that K is chosen on.
        tuning: where the task can train and judge single prototypes.
        partition: into so many prototypes, where the contexts are only a sample of all.
        notify: called with a remark before each part of the work.

    Raises:
        DataError: there is no context, or a score is not finite.
    """
    metric, codes = HeadMetric(editor), contexts.codes
    plain = {level: score(level, None) for level in ("host", "edit")}
    notify("choosing K")
    gain = max(plain["edit"] - plain["host"], 0.0)
    choice = None if settings.k else _choose(editor, contexts, settings, score, gain, seed)
    k = settings.k if choice is None else choice.k
    notify(f"partition into {k}")
    made: Partition | StreamedPartition
    if partition is None:
        made = fit_distinct(metric, codes, k, seed=seed, space=settings.space, users=contexts.numbers)
    else:
        made = partition(k)
    bank, specialised = made.bank, None
    if settings.specialise and tuning is not None:
        specialised = specialise(bank, *tuning(bank))
        if any(chosen.prototype for chosen in specialised.chosen):
            new = specialised.bank
            new = replace(new, basis=fit_basis(metric, new.prototypes, codes, BASIS_SIZE))
            # What helps each prototype among its own members may still harm everybody together.
            before, after = score("prototype", bank), score("prototype", new)
            bank, plain["prototype"] = (new, after) if after > before else (bank, before)
    notify("levels")
    levels = {level: plain[level] if level in plain else score(level, bank) for level in LEVELS}
    return FittedBank(bank, made, choice, specialised, levels, contexts)


def sampled(count: int, limit: int, seed: int) -> Tensor:
    """(at most ``limit``,) rising rows of ``count``."""
    if count <= limit:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:limit].sort().values


def _choose(
    editor: ParameterEditor, contexts: Contexts, settings: BankConfig, score: LevelScore, gain: float, seed: int
) -> Choice:
    """K by validation and stability."""
    rows = sampled(len(contexts.codes), CHOICE_CONTEXTS, seed)
    return choose_k(
        editor,
        contexts.codes[rows],
        settings.sizes,
        lambda bank: score("prototype", bank),
        tolerance=settings.tolerance * gain,
        users=contexts.owners[rows],
        space=settings.space,
        min_stability=settings.min_stability,
    )
