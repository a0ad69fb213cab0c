"""Edits for devices, whatever the task: what is made at a level, its message, and devices that hold another version."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from persona.answering import HOST, Contexts
from persona.cloud import EditTables
from pipelines.serving.errors import Refusal
from pipelines.serving.servable import Versions

# What HTTP calls the level of whole edits.
FULL = "full"


@dataclass(frozen=True)
class Made:
    """What one device applies.

    Attributes:
        level: ``host``, ``prototype``, ``basis`` or ``full``.
        fallback: why it is lower than was asked for, empty if it is not.
        prototype: nearest one, ``None`` without a bank.
        distances: (K,) norm of the remaining edit from every prototype; empty without a bank, or if one is no number.
        norm: of the bounded edit.
        message: what the device reads.
        coefficients: at level ``basis``, the remaining edit along the bank's directions.
        unbounded: at level ``full``, the whole edit (P,).
    """

    level: str
    fallback: str = ""
    prototype: int | None = None
    distances: list[float] = field(default_factory=list)
    norm: float = 0.0
    message: bytes = b""
    coefficients: list[float] = field(default_factory=list)
    unbounded: NDArray[np.float32] | None = None


def serving_level(level: str) -> str:
    """The level of ``persona.cloud`` that a request of HTTP names."""
    return "edit" if level == FULL else level


def make_edits(
    tables: EditTables, contexts: Contexts, levels: Sequence[str], whole: Callable[[NDArray[np.float32]], bytes]
) -> list[Made]:
    """What B devices apply at the levels they asked for, or at the next that can be trusted.

    Args:
        tables: of the bundle.
        contexts: of the devices.
        levels: (B,) of HTTP; those that need a bank, only where there is one.
        whole: the message of a whole edit (P,).
    """
    chosen = tables.choose(contexts.codes, contexts.unbounded, [serving_level(level) for level in levels])
    made = []
    for row, level in enumerate(chosen.levels):
        nearest = None if chosen.prototypes is None else int(chosen.prototypes[row])
        distances = [] if chosen.distances is None else _finite(chosen.distances[row].tolist())
        told = (chosen.reasons[row], nearest, distances, float(chosen.norms[row]))
        if level == "prototype" and nearest is not None:
            made.append(Made(level, *told, bytes([nearest])))
        elif level == "basis" and chosen.prototypes is not None and nearest is not None:
            own = slice(row, row + 1)
            coefficients = tables.coefficients(contexts.codes[own], chosen.prototypes[own])[0]
            made.append(Made(level, *told, tables.remainder_message(nearest, coefficients), coefficients.tolist()))
        elif level == "edit":
            edit = contexts.unbounded[row]
            made.append(Made(FULL, *told, whole(edit), unbounded=edit))
        else:
            made.append(Made(HOST, *told))
    return made


def conflict(versions: Versions, host: str | None, bank: str | None) -> Refusal | None:
    """The refusal of a device that holds another version than the service, if it tells its own."""
    for name, own, held in (("host", versions.host, host), ("prototype bank", versions.bank, bank)):
        if held is not None and held != own:
            return Refusal(
                409,
                "other_version",
                f"the device holds another {name} than {own[:12] or '(none)'}, which the service answers with: "
                "update the device",
            )
    return None


def _finite(values: list[float]) -> list[float]:
    """Values for JSON: none, if one of them is no number."""
    return values if np.isfinite(values).all() else []
