"""What the folders of prepared data of all tasks share: a JSON header that tells what they are."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona.errors import FormatError
from persona.storage import holds_other, read_json


@dataclass(frozen=True)
class PreparedFormat:
    """How a folder of prepared data is recognised.

    Attributes:
        name: the ``format`` of its header.
        version: that is written and read.
        header: name of the JSON file.
        holds: what it holds, for people.
        source: what it is prepared from.
        entries: what its header has to hold.
    """

    name: str
    version: int
    header: str
    holds: str
    source: str
    entries: Collection[str]

    def check_target(self, folder: Path) -> None:
        """Refuse a folder that holds something else.

        Raises:
            FormatError: it does; it is left alone.
        """
        if holds_other(folder, self.header):
            raise FormatError(
                f"{folder} exists and does not hold {self.holds}: choose another folder or empty this one"
            )

    def read(self, folder: Path) -> dict[str, Any]:
        """The header of ``folder``.

        Raises:
            FormatError: the folder holds something else, is of another version, or its header lacks an entry.
        """
        path = folder / self.header
        if not path.is_file():
            raise FormatError(f"{folder} holds no {self.holds} (no {self.header}): prepare {self.source} into it first")
        header = read_json(path)
        if not isinstance(header, dict) or header.get("format") != self.name:
            raise FormatError(f"{path} was not written by this project: prepare {self.source} into another folder")
        if header.get("version") != self.version:
            raise FormatError(
                f"{folder} is of format version {header.get('version')}, this release reads version {self.version}: "
                f"prepare {self.source} again"
            )
        missing = set(self.entries) - header.keys()
        if missing:
            raise FormatError(f"{path} is damaged (no {min(missing)!r}): prepare {self.source} again")
        return header
