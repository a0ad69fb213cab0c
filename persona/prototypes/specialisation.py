"""Specialisation in the cloud, before release: prototypes, and then editors, are trained on their own members.

Training and validation belong to the task and are given as functions; here it is decided, prototype by prototype, what is
kept: a candidate that does not beat what it started from on validation is dropped.

A trained prototype may be an edit that no code makes; ``fit_basis`` then finds directions that reach it.

Shapes: K prototypes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from persona.bounds import Bound
from persona.edits import Edit
from persona.errors import DataError, MismatchError
from persona.prototypes.algebra import cat, linear, to_dtype
from persona.prototypes.bank import PrototypeBank

Editor = TypeVar("Editor")
Scored_contra = TypeVar("Scored_contra", contravariant=True)


class TrainablePrototype(nn.Module):
    """One unbounded edit with gradients.

    Args:
        prototype: unbounded, batch 1.
        bound: how it is bounded before it is applied.
        weight_scales: (L,) root-mean-square weights of the host's layers, the bound's unit.

    Example::

        prototype = TrainablePrototype(bank.prototypes[0], bank.bound, bank.weight_scales)
        loss = ...  # of a host under prototype()
        trained = prototype.unbounded().detach()
    """

    weight_scales: Tensor

    def __init__(self, prototype: Edit, bound: Bound, weight_scales: Tensor) -> None:
        super().__init__()
        self.specs, self.host, self.bound = prototype.specs, prototype.host, bound
        self.flat = nn.Parameter(prototype.flat().detach().float().clone())
        self.register_buffer("weight_scales", weight_scales.clone())

    def unbounded(self) -> Edit:
        """The edit before its bound, dense, batch 1."""
        return Edit.from_flat(self.flat, self.specs, self.host)

    def forward(self) -> Edit:
        """The bounded edit, batch 1, that every member applies."""
        return self.bound.apply(self.unbounded(), self.weight_scales)


class Score(Protocol[Scored_contra]):
    """Validation score on the members of prototype ``index``; larger is better. ``editor`` None is the shared one."""

    def __call__(self, index: int, prototype: Edit, editor: Scored_contra | None) -> float:
        """Score of an unbounded ``prototype`` (batch 1) with an editor."""


@dataclass(frozen=True)
class Chosen:
    """What was kept for one prototype, and the validation scores that decided it.

    Attributes:
        prototype: whether the trained prototype was kept.
        editor: whether the trained editor was kept.
        scores: of ``start``, ``prototype`` and, if it was trained, ``editor``.
    """

    prototype: bool
    editor: bool
    scores: dict[str, float]


@dataclass(frozen=True)
class Specialised(Generic[Editor]):
    """A bank with trained prototypes.

    Attributes:
        bank: a new version.
        editors: by prototype, where an editor of its own was better than the shared one.
        chosen: one a prototype.
    """

    bank: PrototypeBank
    editors: dict[int, Editor]
    chosen: tuple[Chosen, ...]

    def report(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "k": len(self.bank),
            "prototypes_kept": [j for j, c in enumerate(self.chosen) if c.prototype],
            "editors_kept": sorted(self.editors),
            "scores": [c.scores for c in self.chosen],
        }


def specialise(
    bank: PrototypeBank,
    tune_prototype: Callable[[int, Edit], Edit],
    score: Score[Editor],
    tune_editor: Callable[[int, Edit], Editor] | None = None,
) -> Specialised[Editor]:
    """Train every prototype, then a copy of the editor for it, and keep what validation says is better.

    Args:
        bank: where to start.
        tune_prototype: index and unbounded prototype (batch 1) -> the trained prototype, unbounded.
        score: on validation rows of the prototype's members.
        tune_editor: index and the prototype kept -> an editor of its own; without it only prototypes are trained.

    Raises:
        DataError: a score or a trained prototype is not finite.
        MismatchError: a trained prototype is for other layers.
    """
    chosen, edits, editors = [], [], {}
    for j in range(len(bank)):
        start = bank.prototypes[j]
        trained = _checked(bank, j, tune_prototype(j, start))
        scores = {"start": _finite(j, score(j, start, None)), "prototype": _finite(j, score(j, trained, None))}
        better = scores["prototype"] > scores["start"]
        kept = trained if better else start
        own = False
        if tune_editor is not None:
            editor = tune_editor(j, kept)
            scores["editor"] = _finite(j, score(j, kept, editor))
            own = scores["editor"] > max(scores["start"], scores["prototype"])
            if own:
                editors[j] = editor
        edits.append(kept)
        chosen.append(Chosen(better, own, scores))
    any_kept = any(c.prototype for c in chosen)
    new = replace(
        bank,
        prototypes=to_dtype(cat(edits), torch.float32) if any_kept else bank.prototypes,
        origin=torch.arange(len(bank)),
        parent=bank.version,
        metadata={"kind": "specialise", "trained": [j for j, c in enumerate(chosen) if c.prototype]},
    )
    return Specialised(new, editors, tuple(chosen))


def _checked(bank: PrototypeBank, index: int, trained: Edit) -> Edit:
    if trained.specs != bank.prototypes.specs or trained.host != bank.host or len(trained) != 1:
        raise MismatchError(
            f"the trained prototype {index} is not one edit of the bank's host: return an edit of batch 1"
        )
    trained = linear(trained.detach())
    if not bool(trained.is_finite().all()):
        raise DataError(f"the trained prototype {index} is not finite: train with a lower learning rate")
    return trained


def _finite(index: int, value: float) -> float:
    if not abs(value) < float("inf"):
        raise DataError(f"the validation score of prototype {index} is {value}: look at its validation rows")
    return value
