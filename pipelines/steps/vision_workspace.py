"""The folder that the vision pipeline works in: what each step leaves there, and what the next one finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona.storage import write_json
from pipelines.steps.workfolder import SETTINGS, WorkFolder, chosen
from vision.config import VisionConfig
from vision.data.images import DeviceImages


@dataclass(frozen=True)
class VisionWorkspace(WorkFolder):
    """Places under ``root``.

    ::

        prepared/                   the images by device
        settings.json               the settings of the last step, taken up by the next one
        cells/<host>-seed<s>-*/     trained hosts, editors and results of one host and seed; features-* computed once
        comparison.json             the comparison of methods
        prototypes/<host>/          all versions of the host's prototype bank
        replay/                     what the released bundle answered in the streams of the test devices
        bundle/                     what is registered and served
    """

    @property
    def comparison(self) -> Path:
        """Where ``evaluate`` leaves the comparison."""
        return self.root / "comparison.json"

    @property
    def replay(self) -> Path:
        """Where ``replay`` leaves the answers, and what refinement reads of them."""
        return self.root / "replay"

    def data(self) -> DeviceImages:
        """What ``prepare`` left.

        Raises:
            DataError: nothing was prepared here yet.
        """
        self.has_data("vision")
        return DeviceImages.load(self.prepared)

    def settings(self, given: Mapping[str, Any], file: Path | None = None) -> VisionConfig:
        """The settings of a step: those of the step before, changed by a file, changed by the options given.

        Args:
            given: options of the command line; ``None`` means not given.
            file: TOML with any of the settings.

        Raises:
            ConfigError: a setting is unknown or out of range, or the file cannot be read.
        """
        return VisionConfig.from_dict(self.remembered() | chosen(given, file))

    def suggest(self, **settings: str) -> None:
        """Let the next steps start from these settings, which the prepared data asks for."""
        write_json(self.root / SETTINGS, settings)
