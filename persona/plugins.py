"""Methods of others: declared by an installed package, or named as ``my_package.module:train``.

A package declares them in its ``pyproject.toml``::

    [project.entry-points."persona.recsys.methods"]
    mine = "my_package.module:train"

Either is a function ``train(problem) -> Trained``, as those of ``recsys.methods`` and ``vision.methods`` are.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Callable, Collection
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from persona.errors import ConfigError
from persona.task import found_at

Function = Callable[[Any], Any]


def declared(group: str, taken: Collection[str]) -> dict[str, Function]:
    """The methods that installed packages declare in ``group``, by name, imported when they are called; none that is ``taken``."""
    return {entry.name: partial(_call, entry) for entry in entry_points(group=group) if entry.name not in taken}


def _call(entry: EntryPoint, problem: Any) -> Any:
    return function(entry.value, f"entry point {entry.name!r} of the group {entry.group}")(problem)


def is_place(name: str) -> bool:
    """Whether a method is named by where it is, ``module:function``."""
    return ":" in name


def function(place: str, said: str = "--methods") -> Function:
    """The function at ``module:function``; modules in the working directory are found as well.

    Args:
        place: of the function.
        said: where it was named, for messages.

    Raises:
        ConfigError: there is none that can be called.
    """
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        found: Any = found_at(place)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{said}: {place} cannot be loaded ({error}): name a function as my_package.module:train"
        ) from error
    if not callable(found):
        raise ConfigError(f"{said}: {place} is no function: name one as my_package.module:train")
    return found  # type: ignore[no-any-return]


def code_digest(place: str) -> str:
    """SHA-256 of the file that the function at ``place`` is in: what it gave before is measured again once that changes."""
    source = inspect.getsourcefile(inspect.unwrap(function(place)))
    return "" if source is None else hashlib.sha256(Path(source).read_bytes()).hexdigest()
