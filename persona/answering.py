"""How every answer begins, whatever the task: which level answers, and why it is a lower one than was asked for.

    level       what a device applies                                            falls back to
    host        nothing, the same model for everybody
    prototype   the nearest prototype                                            host
    basis       the prototype, and the remaining edit in the bank's basis        prototype, host
    edit        the whole edit                                                   prototype, host

Do no harm: an edit that is not finite, or outside its trust region, is never used (see ``persona.cloud``).

Shapes: B devices, L layers, d code width, P entries of a flat edit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from persona.cloud import Chosen, EditTables
from persona.errors import check_known
from persona.wire import LEVELS, NOT_FINITE

HOST = "host"
# What follows the name of an adaptive layer in tables that hold its core and its bias as layers of their own.
CORE, BIAS = ".core", ".bias"
NO_EDITOR = "the bundle has no editor"
NO_BANK = "the bundle has no prototypes"


@dataclass(frozen=True)
class Contexts:
    """What the editor says of B devices.

    Attributes:
        codes: (B, L, d).
        unbounded: (B, P) whole edits before their bound.
    """

    codes: NDArray[np.float32]
    unbounded: NDArray[np.float32]


@dataclass(frozen=True)
class Plan:
    """What answers B devices.

    Attributes:
        levels: (B,) what answers.
        reasons: (B,) why it is a lower level than the one asked for; empty where it is not.
        personal: (B,) whether there is anything to personalise by.
        chosen: what the devices apply; ``None`` where all of them apply nothing.
    """

    levels: list[str]
    reasons: list[str]
    personal: Sequence[bool]
    chosen: Chosen | None

    @property
    def edits(self) -> NDArray[np.float32] | None:
        """(B, P) bounded edits; ``None`` for the host as it is."""
        return None if self.chosen is None else self.chosen.edits

    def refuse(self, row: int) -> None:
        """Answer a row by the host: what the host makes of its edit is not finite."""
        self.levels[row], self.reasons[row] = HOST, NOT_FINITE

    def of(self, row: int) -> tuple[str, str, int | None, float | None, float]:
        """Level, fallback, nearest prototype, distance from it and norm of the edit of one row."""
        level, reason, chosen = self.levels[row], self.reasons[row], self.chosen
        if chosen is None or not self.personal[row]:
            return level, reason, None, None, 0.0
        norm = 0.0 if level == HOST else float(chosen.norms[row])
        if chosen.prototypes is None or chosen.distances is None:
            return level, reason, None, None, norm
        nearest_one = int(chosen.prototypes[row])
        distance = float(chosen.distances[row, nearest_one])
        if not np.isfinite(distance):
            return level, reason, None, None, norm
        return level, reason, nearest_one, distance, norm


class Answering:
    """What every task answers with: a compiled ``model`` and the tables that it holds."""

    model: Any

    @property
    def tables(self) -> EditTables | None:
        """Prototypes and levels; ``None`` for a host alone."""
        tables: EditTables | None = self.model.tables
        return tables

    @property
    def bank(self) -> str:
        """Version of the prototype bank, empty without one."""
        return "" if self.tables is None else self.tables.bank


def check_level(level: str) -> None:
    """Refuse what is no level.

    Raises:
        ConfigError: unknown level.
    """
    check_known("level", level, LEVELS)


def lacking(tables: EditTables | None, level: str) -> str:
    """What a bundle lacks for a level; empty if nothing."""
    if level == HOST:
        return ""
    if tables is None:
        return NO_EDITOR
    return "" if level in tables.levels else NO_BANK


def plan(
    tables: EditTables | None, levels: Sequence[str], nothing: Sequence[str], contexts: Callable[[], Contexts]
) -> Plan:
    """What answers every device: the level that it asked for, or the next that can be trusted.

    Args:
        tables: of the bundle, ``None`` for a host alone.
        levels: (B,) that are asked for, each of ``LEVELS``.
        nothing: (B,) why there is nothing to personalise by, empty where there is.
        contexts: runs the editor on all devices; called only where it is needed.
    """
    asked = zip(levels, nothing, strict=True)
    reasons = ["" if level == HOST else reason or lacking(tables, level) for level, reason in asked]
    wanted = [HOST if reason else level for level, reason in zip(levels, reasons, strict=True)]
    personal = [not reason for reason in nothing]
    # The nearest prototype is told of at every level, the host's own included.
    if tables is None or not any(personal):
        return Plan(wanted, reasons, personal, None)
    found = contexts()
    chosen = tables.choose(found.codes, found.unbounded, wanted)
    reasons = [mine or theirs for mine, theirs in zip(reasons, chosen.reasons, strict=True)]
    return Plan(list(chosen.levels), reasons, personal, chosen)
