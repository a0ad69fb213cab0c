"""The folder a pipeline works in: what each step leaves there, and what the next one finds."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona.errors import ConfigError, DataError
from persona.storage import read_json, write_json
from recsys.config import RecsysConfig
from recsys.sequences import SequenceData

SETTINGS = "settings.json"


@dataclass(frozen=True)
class Workspace:
    """Places under ``root``.

    ::

        prepared/                   the log as sequences
        settings.json               the settings of the last step, taken up by the next one
        cells/<host>-seed<s>-*/     trained hosts, editors and results of one protocol, host and seed
        comparison-<protocol>.json  the comparison of methods
        bundle/                     what is registered and served
    """

    root: Path

    @property
    def prepared(self) -> Path:
        """Where ``prepare`` leaves the sequences."""
        return self.root / "prepared"

    @property
    def cells(self) -> Path:
        """Where trainings leave checkpoints and results."""
        return self.root / "cells"

    @property
    def bundle(self) -> Path:
        """Where ``release`` leaves the servable bundle."""
        return self.root / "bundle"

    def comparison(self, protocol: str) -> Path:
        """Where ``evaluate`` leaves the comparison."""
        return self.root / f"comparison-{protocol}.json"

    def data(self) -> SequenceData:
        """What ``prepare`` left.

        Raises:
            DataError: nothing was prepared here yet.
        """
        if not self.prepared.exists():
            raise DataError(
                f"nothing was prepared in {self.root}: run `persona recsys prepare --work {self.root}` first"
            )
        return SequenceData.load(self.prepared)

    def settings(self, given: Mapping[str, Any], file: Path | None = None) -> RecsysConfig:
        """The settings of a step: those of the step before, changed by a file, changed by the options given.

        Args:
            given: options of the command line; ``None`` means not given.
            file: TOML with any of the settings.

        Raises:
            ConfigError: a setting is unknown or out of range, or the file cannot be read.
        """
        remembered = read_json(self.root / SETTINGS) if (self.root / SETTINGS).exists() else {}
        chosen = {name: value for name, value in given.items() if value is not None}
        return RecsysConfig.from_dict({**remembered, **read_toml(file), **chosen})

    def remember(self, config: RecsysConfig) -> None:
        """Keep the settings for the next step."""
        write_json(self.root / SETTINGS, config.as_dict())


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
