"""The folder that the vision pipeline works in: what each step leaves there, and what the next one finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona.errors import DataError
from persona.storage import read_json, write_json
from pipelines.workspace import SETTINGS, read_toml
from vision.config import VisionConfig
from vision.images import DeviceImages


@dataclass(frozen=True)
class VisionWorkspace:
    """Places under ``root``.

    ::

        prepared/                   the images by device
        settings.json               the settings of the last step, taken up by the next one
        cells/<host>-seed<s>-*/     trained hosts, editors and results of one host and seed; features-* computed once
        comparison.json             the comparison of methods
        prototypes/                 all versions of the prototype bank
        replay/                     what the released bundle answered in the streams of the test devices
        bundle/                     what is registered and served
    """

    root: Path

    @property
    def prepared(self) -> Path:
        """Where ``prepare`` leaves the images."""
        return self.root / "prepared"

    @property
    def cells(self) -> Path:
        """Where trainings leave checkpoints and results."""
        return self.root / "cells"

    @property
    def comparison(self) -> Path:
        """Where ``evaluate`` leaves the comparison."""
        return self.root / "comparison.json"

    @property
    def prototypes(self) -> Path:
        """Where the versions of the prototype bank are."""
        return self.root / "prototypes"

    @property
    def replay(self) -> Path:
        """Where ``replay`` leaves the answers, and what refinement reads of them."""
        return self.root / "replay"

    @property
    def bundle(self) -> Path:
        """Where ``release`` leaves the servable bundle."""
        return self.root / "bundle"

    def data(self) -> DeviceImages:
        """What ``prepare`` left.

        Raises:
            DataError: nothing was prepared here yet.
        """
        if not self.prepared.exists():
            raise DataError(
                f"nothing was prepared in {self.root}: run `persona vision prepare --work {self.root}` first"
            )
        return DeviceImages.load(self.prepared)

    def settings(self, given: Mapping[str, Any], file: Path | None = None) -> VisionConfig:
        """The settings of a step: those of the step before, changed by a file, changed by the options given.

        Args:
            given: options of the command line; ``None`` means not given.
            file: TOML with any of the settings.

        Raises:
            ConfigError: a setting is unknown or out of range, or the file cannot be read.
        """
        remembered = read_json(self.root / SETTINGS) if (self.root / SETTINGS).exists() else {}
        chosen = {name: value for name, value in given.items() if value is not None}
        return VisionConfig.from_dict({**remembered, **read_toml(file), **chosen})

    def remember(self, config: VisionConfig) -> None:
        """Keep the settings for the next step."""
        write_json(self.root / SETTINGS, config.as_dict())

    def suggest(self, **settings: str) -> None:
        """Let the next steps start from these settings, which the prepared data asks for."""
        write_json(self.root / SETTINGS, settings)
