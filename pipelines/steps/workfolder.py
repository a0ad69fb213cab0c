"""The folder that the steps of a pipeline share, whatever its task: places, and the settings that one step leaves the next."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona.errors import ConfigError, DataError
from persona.settings import Settings
from persona.storage import read_json, write_json

if TYPE_CHECKING:
    from persona.prototypes import Lineage

SETTINGS = "settings.json"


@dataclass(frozen=True)
class WorkFolder:
    """Places under ``root``; a task's own workspace says what lies there."""

    root: Path

    @property
    def prepared(self) -> Path:
        """Where ``prepare`` leaves the data."""
        return self.root / "prepared"

    @property
    def cells(self) -> Path:
        """Where trainings leave checkpoints and results."""
        return self.root / "cells"

    @property
    def bundle(self) -> Path:
        """Where ``release`` leaves the servable bundle."""
        return self.root / "bundle"

    @property
    def prototypes(self) -> Path:
        """Where ``prototypes`` and ``refine`` leave the versions of banks."""
        return self.root / "prototypes"

    def lineage(self, host: str) -> Lineage:
        """All versions of the bank of a host, given by its digest; there may be none yet."""
        from persona.prototypes import Lineage

        return Lineage(self.prototypes / host[:12], host)

    def remember(self, config: Settings) -> None:
        """Keep the settings for the next step."""
        write_json(self.root / SETTINGS, config.as_dict())

    def remembered(self) -> dict[str, Any]:
        """The settings of the step before; none before the first."""
        path = self.root / SETTINGS
        return dict(read_json(path)) if path.exists() else {}

    def has_data(self, task: str) -> None:
        """Refuse to go on without prepared data.

        Raises:
            DataError: nothing was prepared here yet.
        """
        if not self.prepared.exists():
            raise DataError(
                f"nothing was prepared in {self.root}: run `persona {task} prepare --work {self.root}` first"
            )


def chosen(given: Mapping[str, Any], file: Path | None) -> dict[str, Any]:
    """Settings of a file, changed by the options that were given.

    Args:
        given: options of the command line; ``None`` means not given.
        file: TOML with any of the settings.

    Raises:
        ConfigError: the file cannot be read, or is not TOML.
    """
    return read_toml(file) | {name: value for name, value in given.items() if value is not None}


def read_toml(file: Path | None) -> dict[str, Any]:
    """The settings of a file, if one is given.

    Raises:
        ConfigError: the file cannot be read, or is not TOML.
    """
    if file is None:
        return {}
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({error.strerror}): give the path of a TOML file") from error
    except ValueError as error:  # no TOML, or no UTF-8
        raise ConfigError(f"{file} is not valid TOML ({error}): write one `name = value` a line") from error
