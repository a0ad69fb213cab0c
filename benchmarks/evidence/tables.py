"""What the results pages of all tasks share: experiments as they are declared, Markdown tables, differences in words."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from persona.errors import ConfigError, DataError, nearest
from persona.storage import read_json

Declared = TypeVar("Declared")

FOLDER = Path("docs/evidence")


@dataclass(frozen=True, kw_only=True)
class BaseExperiment:
    """What the experiments of all tasks say of themselves.

    Attributes:
        name: of its result file.
        title: heading on the results page.
        goal: what it is to show, in words.
        data: a data set of the catalogue, or what is found under the data folder.
        seeds: how many.
        methods: compared; the host is always among them.
        rivals: methods that the last method is also compared with directly.
        settings: of the task.
        note: what a reader should know.
    """

    name: str
    title: str
    goal: str
    data: str
    seeds: int = 3
    methods: Sequence[str] = ("host",)
    rivals: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    def source(self, catalogue: Collection[str], file: str, data_folder: Path | None) -> str:
        """What ``prepare`` reads: a name of the catalogue, or ``file`` under the data folder.

        Raises:
            DataError: the data is in no package, and the data folder was not given or does not hold it.
        """
        if self.data in catalogue:
            return self.data
        path = (data_folder or Path()) / file
        if data_folder is None or not path.exists():
            raise DataError(f"{self.name} needs {file}: name the folder it is in by --data-folder")
        return str(path)

    def is_done(self, path: Path, key: str) -> bool:
        """Whether the result at ``path`` was made of what ``key`` says."""
        return path.exists() and bool(read_json(path)["key"] == key)


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
