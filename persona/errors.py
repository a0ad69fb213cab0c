"""Errors a user can mend.

Each carries one clear sentence that says where the fault is and how to mend it. The command line prints that sentence and
exits with ``exit_code``; a server answers 4xx with it. Anything that is not a ``PersonaError`` is a bug.
"""

from collections.abc import Collection, Iterable
from difflib import get_close_matches
from typing import Any


class PersonaError(Exception):
    """Base of all errors that a user can mend."""

    exit_code = 2


class DataError(PersonaError):
    """An input file, frame or value is broken or does not hold what was asked for."""


class ConfigError(PersonaError):
    """A setting is unknown, out of range, or contradicts another one."""


class MismatchError(PersonaError):
    """Two artifacts do not belong together, for example an edit made for another host."""


class FormatError(PersonaError):
    """A stored artifact is damaged or of a version that this release cannot read."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for an unknown ``name``: the nearest known one, or the whole list.

    Example::

        >>> nearest("sasrce", ["din", "sasrec"])
        "did you mean 'sasrec'? Known: din, sasrec"
    """
    names = sorted(known)
    close = get_close_matches(name, names, n=1, cutoff=0.5)
    listing = f"Known: {', '.join(names)}"
    return f"did you mean {close[0]!r}? {listing}" if close else listing


def check_known(what: str, name: Any, known: Collection[Any]) -> None:
    """Refuse a ``name`` that is none of the ``known`` ones; ``what`` says what it is a name of.

    Raises:
        ConfigError: it is unknown; the message holds the nearest known one.
    """
    if name not in known:
        raise ConfigError(f"unknown {what} {name!r}: {nearest(str(name), known)}")


def check_each(record: object, names: Iterable[str], least: float) -> None:
    """Refuse attributes of a ``record`` that are below ``least``.

    Raises:
        ConfigError: one of them is; the message names it.
    """
    for name in names:
        if getattr(record, name) < least:
            raise ConfigError(f"{name} is {getattr(record, name)}, but it has to be at least {least}")
