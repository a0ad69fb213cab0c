"""The folder the recommendation pipeline works in: what each step leaves there, and what the next one finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any

from pipelines.steps.workfolder import WorkFolder, chosen
from recsys.config import RecsysConfig
from recsys.data.sequences import SequenceData

# What selects epochs where targets are ranked against the whole catalogue, unless something else is asked for; the metrics of
# sampled negatives (None: not chosen, so the default, which is one of them) are not measured there.
RANKING_MONITOR = "ndcg_10"
SAMPLED_MONITORS = (None, "auc", "uauc")


@dataclass(frozen=True)
class Workspace(WorkFolder):
    """Places under ``root``.

    ::

        prepared/                   the log as sequences
        settings.json               the settings of the last step, taken up by the next one
        cells/<host>-seed<s>-*/     trained hosts, editors and results of one protocol, host and seed
        comparison-<protocol>.json  the comparison of methods
        prototypes/<host>/          all versions of the host's prototype bank
        bundle/                     what is registered and served
    """

    def comparison(self, protocol: str) -> Path:
        """Where ``evaluate`` leaves the comparison."""
        return self.root / f"comparison-{protocol}.json"

    def data(self) -> SequenceData:
        """What ``prepare`` left.

        Raises:
            DataError: nothing was prepared here yet.
        """
        self.has_data("recsys")
        return SequenceData.load(self.prepared)

    def settings(self, given: Mapping[str, Any], file: Path | None = None) -> RecsysConfig:
        """The settings of a step: those of the step before, changed by a file, changed by the options given.

        Args:
            given: options of the command line; ``None`` means not given.
            file: TOML with any of the settings.

        Raises:
            ConfigError: a setting is unknown or out of range, or the file cannot be read.
        """
        new = chosen(given, file)
        settings = RecsysConfig.own(self.remembered()) | new
        if settings.get("protocol") == "full" and "monitor" not in new and settings.get("monitor") in SAMPLED_MONITORS:
            settings["monitor"] = RANKING_MONITOR
        return RecsysConfig.from_dict(settings)

    def taken_over(self, given: Mapping[str, Any], file: Path | None = None) -> dict[str, Any]:
        """The settings other than the defaults that ``settings`` takes from the step before."""
        new = chosen(given, file)
        defaults = {f.name: f.default for f in fields(RecsysConfig) if f.default is not MISSING}
        own = RecsysConfig.own(self.remembered())
        return {k: v for k, v in own.items() if k not in new and v != defaults.get(k)}


def under_protocol(config: RecsysConfig, protocol: str) -> RecsysConfig:
    """The same settings under another protocol, with a monitor that it measures."""
    ranks = protocol == "full" and config.monitor in SAMPLED_MONITORS
    return replace(config, protocol=protocol, monitor=RANKING_MONITOR if ranks else config.monitor)
