"""The folder a pipeline works in: what each step leaves there, and what the next one finds."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona.errors import ConfigError, DataError
from persona.storage import read_json, write_json
from recsys.config import RecsysConfig
from recsys.sequences import SequenceData

if TYPE_CHECKING:
    from persona.prototypes import Lineage

SETTINGS = "settings.json"
# What selects epochs where targets are ranked against the whole catalogue, unless something else is asked for; the metrics of
# sampled negatives (None: not chosen, so the default, which is one of them) are not measured there.
RANKING_MONITOR = "ndcg_10"
SAMPLED_MONITORS = (None, "auc", "uauc")


@dataclass(frozen=True)
class Workspace:
    """Places under ``root``.

    ::

        prepared/                   the log as sequences
        settings.json               the settings of the last step, taken up by the next one
        cells/<host>-seed<s>-*/     trained hosts, editors and results of one protocol, host and seed
        comparison-<protocol>.json  the comparison of methods
        prototypes/<host>/          all versions of the host's prototype bank
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

    @property
    def prototypes(self) -> Path:
        """Where ``prototypes`` and ``refine`` leave the versions of banks."""
        return self.root / "prototypes"

    def lineage(self, host: str) -> Lineage:
        """All versions of the bank of a host, given by its digest; there may be none yet."""
        from persona.prototypes import Lineage

        return Lineage(self.prototypes / host[:12], host)

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
        chosen = _chosen(given, file)
        settings = self._remembered() | chosen
        if (
            settings.get("protocol") == "full"
            and "monitor" not in chosen
            and settings.get("monitor") in SAMPLED_MONITORS
        ):
            settings["monitor"] = RANKING_MONITOR
        return RecsysConfig.from_dict(settings)

    def taken_over(self, given: Mapping[str, Any], file: Path | None = None) -> dict[str, Any]:
        """The settings other than the defaults that ``settings`` takes from the step before."""
        chosen = _chosen(given, file)
        defaults = {f.name: f.default for f in fields(RecsysConfig) if f.default is not MISSING}
        return {k: v for k, v in self._remembered().items() if k not in chosen and v != defaults.get(k)}

    def _remembered(self) -> dict[str, Any]:
        path = self.root / SETTINGS
        return dict(read_json(path)) if path.exists() else {}

    def remember(self, config: RecsysConfig) -> None:
        """Keep the settings for the next step."""
        write_json(self.root / SETTINGS, config.as_dict())


def under_protocol(config: RecsysConfig, protocol: str) -> RecsysConfig:
    """The same settings under another protocol, with a monitor that it measures."""
    ranks = protocol == "full" and config.monitor in SAMPLED_MONITORS
    return replace(config, protocol=protocol, monitor=RANKING_MONITOR if ranks else config.monitor)


def _chosen(given: Mapping[str, Any], file: Path | None) -> dict[str, Any]:
    """Settings of a file, changed by the options that were given."""
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
