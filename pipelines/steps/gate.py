"""What a release is held to before it is called the candidate: its own host, the host, and the task's simple rivals.

All of it is judged on validation units, by the metrics of ``Problem.judged``, with intervals over units. The test part is not read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from persona.bootstrap import Interval
from persona.comparison import REFERENCE
from persona.gates import Floats, below
from pipelines.versions.promotion_gate import REFUSED, TAG

if TYPE_CHECKING:
    from persona.task import Task

__all__ = ["TAG", "Verdict", "ask"]

# What can be released; the first is what was asked for.
WHOLE, UNEDITED = "edits", "its host without edits"
PASSED = "passed"

Judged = Mapping[str, Floats]


@dataclass(frozen=True)
class Verdict:
    """What the gate found.

    Attributes:
        model: the best of what there is: what is released.
        released: what that is, ``edits``, ``its host without edits`` or ``host``.
        passed: whether it may be called the candidate.
        reason: what was found below what, in words; empty where nothing was.
    """

    model: Any
    released: str = WHOLE
    passed: bool = True
    reason: str = ""

    @property
    def tag(self) -> str:
        """The verdict in one line; what was kept out begins with ``refused``."""
        outcome = PASSED if self.passed else REFUSED
        instead = "" if self.released == WHOLE else f", released is {self.released}"
        return f"{outcome}{instead}{f': {self.reason}' if self.reason else ''}"


def ask(task: Task, problem: Any, model: Any) -> Verdict:
    """Hold a model to its host, with and without edits, and to the task's rivals.

    Where it is below one of them by a metric whose whole interval is below zero, the best of what there is takes its place: the
    model, its host without edits, or the host; the best by ``problem.preference`` of those that are below none of the others. If
    that one is below a rival, it may not be called the candidate.
    """
    models = dict(_releasable(problem, model))
    judged = {name: problem.judged(each) for name, each in models.items()}
    rivals = {name: problem.judged(task.train(problem, name).model) for name in task.rivals}
    beaten = _beaten(judged[WHOLE], {**_others(judged, WHOLE), **rivals})
    if not beaten:
        return Verdict(model)
    standing = [name for name in models if not _beaten(judged[name], _others(judged, name))] or list(models)
    best = max(standing, key=lambda name: problem.preference(models[name]))
    lost = _beaten(judged[best], rivals)
    return Verdict(models[best], best, not lost, _said(lost or beaten))


def _releasable(problem: Any, model: Any) -> Iterator[tuple[str, Any]]:
    yield WHOLE, model
    yield UNEDITED, problem.without_edits(model)
    host = problem.base_host()
    if host.digest() != model.host.digest():
        yield REFERENCE, problem.without_edits(model, host)


def _others(judged: Mapping[str, Judged], name: str) -> dict[str, Judged]:
    return {other: values for other, values in judged.items() if other != name}


def _beaten(own: Judged, others: Mapping[str, Judged]) -> dict[str, dict[str, Interval]]:
    """By metric, where ``own`` is below some of the others, by name."""
    found = {name: below(own, values) for name, values in others.items()}
    return {name: worse for name, worse in found.items() if worse}


def _said(beaten: Mapping[str, Mapping[str, Interval]]) -> str:
    parts = [
        f"below {name} ({', '.join(f'{metric} {interval}' for metric, interval in worse.items())})"
        for name, worse in beaten.items()
    ]
    return f"on validation it is {', '.join(parts)}"
