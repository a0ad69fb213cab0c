"""Forgetting a user: their contribution is taken out of every version, as if the bank had been built without them.

Every version is made again from the sums per user that were stored with it, without theirs: the mean edits of a first
version, then each refinement in turn, with weights, trimming, cohort, budget and splits worked out anew. What has to be kept
for that is ``UserStatistics`` of every version, a row for a user at a prototype; no context is kept.

What it equals: a rebuild from all contexts but theirs, in which the other users' contexts stay at the prototypes they were
assigned to, as recorded. The directions of the edit basis, which hold no edit of anybody, stay as well.

What cannot be made again from sums is dropped, and the head goes back to the nearest version that is left: versions whose
prototypes were trained (``specialise``), those stored without statistics, windows with nobody else in them, and whatever
came after a version that without the user has other prototypes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from persona.errors import ConfigError
from persona.prototypes.algebra import to_dtype
from persona.prototypes.bank import PrototypeBank
from persona.prototypes.lineage import Lineage, Replacement
from persona.prototypes.metric import HeadMetric
from persona.prototypes.partition import cluster_means
from persona.prototypes.plan import RefineConfig
from persona.prototypes.refinement import refine
from persona.prototypes.user_statistics import UserStatistics


@dataclass(frozen=True)
class Forgotten:
    """What forgetting a user did to a lineage.

    Attributes:
        replaced: old version -> the same version without the user.
        dropped: versions that could not be made again, and are gone.
        head: version that is served now.
    """

    replaced: dict[str, str]
    dropped: tuple[str, ...]
    head: str


def forget(lineage: Lineage, user: int, metric: HeadMetric) -> Forgotten:
    """Take a user out of all versions of a lineage; versions without a trace of them stay as they are.

    Args:
        lineage: of the host.
        user: as in the statistics.
        metric: of the editor that the banks were made with.

    Raises:
        ConfigError: without the user no version is left, or a first version was stored without statistics.
        MismatchError: the editor is another one.
    """
    rebuilt: dict[str, _Rebuilt] = {}
    replacements: list[Replacement] = []
    for record in lineage.history():
        bank = lineage.load(record.version)
        bank.check(metric)
        parent = rebuilt[bank.parent] if bank.parent else None
        made = _without(_Rebuilt(bank, lineage.statistics(record.version)), parent, user, metric)
        rebuilt[record.version] = made
        if made.bank is not None and made.bank.version != record.version:
            replacements.append(Replacement(made.bank, made.statistics, made.report, record.created))
    head = _nearest_kept(lineage, rebuilt)
    replaced = {v: m.bank.version for v, m in rebuilt.items() if m.bank is not None and m.bank.version != v}
    dropped = tuple(v for v, m in rebuilt.items() if m.bank is None)
    gone = (set(replaced) | set(dropped)) - set(replaced.values())
    lineage.replace([version for version in rebuilt if version in gone], replacements, head)
    return Forgotten(replaced, dropped, head)


@dataclass(frozen=True)
class _Rebuilt:
    """A version without the user: None where it is dropped, ``renumbered`` where its prototypes are other ones."""

    bank: PrototypeBank | None
    statistics: UserStatistics | None = None
    report: Mapping[str, Any] = field(default_factory=dict)
    renumbered: bool = False


_DROPPED = _Rebuilt(None)


def _without(version: _Rebuilt, parent: _Rebuilt | None, user: int, metric: HeadMetric) -> _Rebuilt:
    bank, statistics = version.bank, version.statistics
    if bank is None or (parent is not None and (parent.bank is None or parent.renumbered)):
        return _DROPPED
    if parent is None and statistics is None:
        raise ConfigError(
            f"the first version {bank.version[:12]} was stored without statistics per user, so nobody can be taken out "
            "of it: fit it again from the log without them, with users given"
        )
    above = None if parent is None else parent.bank
    same_parent = above is None or above.version == bank.parent
    if same_parent and (statistics is None or not statistics.has(user)):
        return version
    rest = None if statistics is None else statistics.without(user)
    if rest is None or not len(rest) or (above is not None and bank.metadata.get("kind") != "refine"):
        return _DROPPED
    if above is None:
        return _first_version(bank, rest, metric)
    settings = {"max_missed": 1.0} | bank.metadata["config"]  # versions older than this limit were made without
    again = refine(above, metric, rest, RefineConfig(**settings))
    return _Rebuilt(again.bank, rest, again.report(), not torch.equal(again.bank.origin, bank.origin))


def _first_version(bank: PrototypeBank, statistics: UserStatistics, metric: HeadMetric) -> _Rebuilt:
    """Mean edits of the members that are left; a prototype that had no other member is gone."""
    kept = torch.nonzero(statistics.per_prototype() > 0).squeeze(1)
    number = torch.zeros(statistics.k, dtype=torch.int64, device=kept.device)
    number[kept] = torch.arange(len(kept), device=kept.device)
    statistics = replace(statistics, prototypes=number[statistics.prototypes], k=len(kept))
    centres, members = cluster_means(statistics)
    rebuilt = replace(
        bank,
        prototypes=to_dtype(metric.edits(centres), torch.float32),
        centres=centres,
        members=members,
        origin=bank.origin[kept],
        idle=bank.idle[kept],
    )
    return _Rebuilt(rebuilt, statistics, {}, len(kept) < len(bank))


def _nearest_kept(lineage: Lineage, rebuilt: dict[str, _Rebuilt]) -> str:
    """The head, or its nearest ancestor that is left, under its new name."""
    version = lineage.head
    while version:
        bank = rebuilt[version].bank
        if bank is not None:
            return bank.version
        version = lineage.record(version).parent
    raise ConfigError("without this user no version is left to serve: fit a bank again from the log without them")
