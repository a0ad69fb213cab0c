"""Problems, of any task, whose test part cannot be touched while something is trained or chosen."""

from dataclasses import replace
from typing import Any


class Sealed:
    """Stands for the test part of a split, and explodes however it is read."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"a decision read the test part ({name})")

    def _explode(self, *_: Any) -> Any:
        raise AssertionError("a decision read the test part")

    __len__ = __iter__ = __getitem__ = __array__ = __eq__ = __bool__ = _explode
    __hash__ = None  # type: ignore[assignment]


def sealed(problem):
    """The problem with its test part sealed; its reports read the whole one."""
    whole = problem.split
    problem.split = replace(whole, test=Sealed())
    problem._make_test = lambda: problem.evaluation(whole.test)
    return problem
