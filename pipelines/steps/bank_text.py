"""What the steps around a bank say of its versions, to people and in reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from persona.bootstrap import SeedsInterval
from persona.prototypes import FittedBank, PrototypeBank, Refinement
from persona.task import Task


def fit_report(task: Task, fitted: FittedBank) -> dict[str, Any]:
    """How a first bank came about, as JSON values."""
    return {
        "k": len(fitted.bank),
        "chosen": "given" if fitted.choice is None else "validation and stability",
        "choice": None if fitted.choice is None else fitted.choice.as_dict(),
        "levels": fitted.levels,
        f"{task.context}s": len(fitted.codes),
        f"{task.unit}s": len(set(fitted.users)),
        "converged": fitted.partition.converged,
        "specialised": None if fitted.specialised is None else fitted.specialised.report(),
        "specialised_kept": fitted.bank.version != fitted.partition.bank.version,
    }


def fitted(
    task: Task, bank: PrototypeBank, made: FittedBank, changes: Mapping[str, SeedsInterval], protocol: str
) -> str:
    """The description of a fitted version."""
    if bank.parent:
        trained = ", ".join(map(str, bank.metadata.get("trained", ())))
        start = f"Prototypes {trained} of {bank.parent[:12]} were trained on their members, as validation favoured it."
    else:
        start = (
            f"{len(bank)} prototypes, fitted on {len(made.codes):,} training {task.context}s of "
            f"{len(set(made.users)):,} {task.unit}s."
        )
    return "\n\n".join([start, *_change_lines(changes, f"under protocol {protocol}")])


def refined(
    task: Task,
    refinement: Refinement,
    window: Mapping[str, Any],
    changes: Mapping[str, SeedsInterval],
    where: str,
    served: bool,
) -> str:
    """The description of a refined version."""
    period = f", {window['from']} to {window['to']}" if "from" in window else ""
    lines = [
        f"Refined from {refinement.bank.parent[:12]} with {int(refinement.contexts.sum()):,} {task.context}s of "
        f"{window[f'{task.unit}s']:,} {task.unit}s{period}: no labels, no gradients.",
        f"{len(refinement.bank)} prototypes; {len(refinement.moved):,} {task.unit}s changed prototype; the largest movement of "
        f"a layer is {float(refinement.movement.max()):.4g}; {len(refinement.split)} split, {len(refinement.retired)} retired, "
        f"{len(refinement.held)} held for want of {task.unit}s.",
        *_change_lines(changes, f"on {where}"),
    ]
    if not served:
        lines.append(f"Behind its parent on {where}, so the parent goes on being served.")
    return "\n\n".join(lines)


def _change_lines(changes: Mapping[str, SeedsInterval], where: str) -> list[str]:
    """One line a difference, in words."""
    lines = []
    for name, change in changes.items():
        metric, _, other = name.rpartition("/")[2].partition("_vs_")
        lines.append(f"Prototypes alone against the {other} {where}, {metric}: {change.interval}")
    return lines
