"""Refinement: prototypes follow the edits of the contexts that come to them. No labels, no gradients.

    P_j <- P_j + s_j (robust mean of E(x_i) over its members - P_j),   0 <= s_j <= eta

As edits are affine in the codes, all that is needed of a window is a robust mean code a prototype. A prototype moves only on
a cohort of users, by at most the budget of a version; one that stands for two groups is split, and one to which nobody comes
for several versions is retired. Every refinement is a new bank whose parent is the old one.

Shapes: K prototypes before, K' after, L layers, d code width, R rows of the statistics.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from persona.errors import DataError, MismatchError
from persona.prototypes.algebra import interpolate, to_dtype
from persona.prototypes.assign import Assigner
from persona.prototypes.bank import PrototypeBank
from persona.prototypes.metric import HeadMetric
from persona.prototypes.plan import Plan, RefineConfig, make_plan
from persona.prototypes.user_statistics import UserStatistics


@dataclass(frozen=True)
class Refinement:
    """A new version and what it changes.

    Attributes:
        bank: the new version.
        movement: (K', L) Frobenius norm by which each prototype left its origin, per layer.
        contexts: (K,) contexts of the window at each old prototype.
        users: (K,) users of the window at each old prototype.
        flow: (K, K') users by nearest prototype of their mean code, before and after.
        moved: users whose nearest prototype is not the continuation of the one before.
        held: old prototypes that did not move for want of a cohort.
        split: pairs (old index, new index of the part split off).
        retired: old prototypes that are no more.
    """

    bank: PrototypeBank
    movement: Tensor
    contexts: Tensor
    users: Tensor
    flow: Tensor
    moved: Tensor
    held: tuple[int, ...]
    split: tuple[tuple[int, int], ...]
    retired: tuple[int, ...]

    def report(self) -> dict[str, Any]:
        """The change as JSON values, without users' identities."""
        return {
            "k": len(self.bank),
            "movement": self.movement.tolist(),
            "contexts": self.contexts.tolist(),
            "users": self.users.tolist(),
            "flow": self.flow.tolist(),
            "moved_users": len(self.moved),
            "held": list(self.held),
            "split": [list(pair) for pair in self.split],
            "retired": list(self.retired),
        }


def refine(
    bank: PrototypeBank, metric: HeadMetric, statistics: UserStatistics, config: RefineConfig | None = None
) -> Refinement:
    """A new version of ``bank`` after a window of contexts.

    Args:
        bank: the current version.
        metric: of its editor.
        statistics: of the window, collected with this bank's assignment; shards merged.
        config: limits.

    Raises:
        DataError: the window is empty.
        MismatchError: editor or statistics do not belong to the bank.
    """
    config = config or RefineConfig()
    _check(bank, metric, statistics)
    assigner = Assigner(metric, bank.prototypes)
    plan = make_plan(assigner, bank.idle, statistics, config)
    came_from = bank.prototypes[plan.origin]
    prototypes = to_dtype(interpolate(came_from, metric.edits(plan.targets), plan.steps), torch.float32)
    share = plan.steps[:, None, None]
    new = PrototypeBank(
        prototypes=prototypes,
        centres=(1 - share) * bank.centres[plan.origin] + share * plan.targets,
        members=plan.members,
        origin=plan.origin,
        idle=plan.idle,
        basis=bank.basis,
        bound=bank.bound,
        weight_scales=bank.weight_scales,
        editor=bank.editor,
        parent=bank.version,
        metadata={"kind": "refine", "config": asdict(config)},
    )
    flow, moved = _flow(assigner, Assigner(metric, prototypes), statistics, plan)
    return Refinement(
        bank=new,
        movement=(prototypes - came_from).layer_norms(),
        contexts=statistics.per_prototype(),
        users=statistics.users_per_prototype(),
        flow=flow,
        moved=moved,
        held=plan.held,
        split=plan.split,
        retired=plan.retired,
    )


def _check(bank: PrototypeBank, metric: HeadMetric, statistics: UserStatistics) -> None:
    """Refuse statistics of another bank, or of nothing."""
    bank.check(metric)
    if statistics.k != len(bank):
        raise MismatchError(
            f"these statistics were collected with {statistics.k} prototypes, but the bank has {len(bank)}: "
            "assign the window's contexts with this bank"
        )
    if not len(statistics):
        raise DataError("there is not a single context in this window: refine when some have come")


def _flow(before: Assigner, after: Assigner, statistics: UserStatistics, plan: Plan) -> tuple[Tensor, Tensor]:
    """(K, K') users by nearest prototype before and after, and those who are not where theirs continues."""
    users, means = statistics.by_user()
    old, new = before(means).prototypes, after(means).prototypes
    k, k_new = len(before.offset), len(after.offset)
    flow = torch.bincount(old * k_new + new, minlength=k * k_new).reshape(k, k_new)
    return flow, users[new != plan.continuation(k)[old]]
