"""What the results pages of all tasks share: experiments as they are declared, Markdown tables, differences in words."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from persona.errors import ConfigError, nearest

Declared = TypeVar("Declared")


def declared(path: Path) -> dict[str, Any]:
    """The tables of a file of experiments."""
    return tomllib.loads(path.read_text(encoding="utf-8"))


def built(kind: type[Declared], entries: Iterable[Mapping[str, Any]], path: Path) -> dict[str, Declared]:
    """Experiments by name.

    Args:
        kind: a dataclass with a ``name``.
        entries: its fields, one mapping an experiment.
        path: where they stand, for errors.

    Raises:
        ConfigError: an experiment has an unknown key.
    """
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    found = {}
    for entry in entries:
        for key in entry:
            if key not in known:
                raise ConfigError(f"{path}: unknown key {key!r} in {entry.get('name')}: {nearest(key, known)}")
        found[entry["name"]] = kind(**entry)
    return found


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def interval(value: Mapping[str, float] | None) -> str:
    """A difference with its interval and the spread of its seeds; a dash where there is none."""
    if value is None:
        return "-"
    seeds = f" (seeds {value['seed_min']:+.4f} .. {value['seed_max']:+.4f})" if value["seeds"] > 1 else ""
    return f"{value['mean']:+.4f} [{value['low']:+.4f}, {value['high']:+.4f}]{seeds}"
