"""The folder that a pipeline works in, whatever its task: what each step leaves there, and what the next one finds."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona.errors import ConfigError, DataError
from persona.settings import Settings
from persona.storage import read_json, write_json
from persona.task import Task

if TYPE_CHECKING:
    from persona.prototypes import Lineage
    from pipelines.tracking.runs import Store

SETTINGS = "settings.json"
NAME = "name.json"


@dataclass(frozen=True)
class Workspace:
    """Places under ``root``.

    ::

        prepared/                   the data
        name.json                   what the data is called, and with it experiment and registered models
        settings.json               the settings of the last step, taken up by the next one
        cells/<host>-seed<s>-*/     trained hosts, editors and results of one protocol, host and seed; features-* computed once
        comparison-<protocol>.json  the comparison of methods; comparison.json where the task has one protocol
        prototypes/<host>/          all versions of the host's prototype bank
        replay/                     what a classifier's bundle answered in the streams of the test devices
        bundle/                     what is registered and served
    """

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

    @property
    def replay(self) -> Path:
        """Where ``replay`` leaves the answers, and what refinement reads of them."""
        return self.root / "replay"

    def comparison(self, task: Task, protocol: str) -> Path:
        """Where ``evaluate`` leaves the comparison."""
        return self.root / (f"comparison-{protocol}.json" if len(task.protocols) > 1 else "comparison.json")

    def lineage(self, host: str) -> Lineage:
        """All versions of the bank of a host, given by its digest; there may be none yet."""
        from persona.prototypes import Lineage

        return Lineage(self.prototypes / host[:12], host)

    def data(self, task: Task) -> Any:
        """What ``prepare`` left.

        Raises:
            DataError: nothing was prepared here yet.
        """
        if not self.prepared.exists():
            raise DataError(
                f"nothing was prepared in {self.root}: run `persona {task.name} prepare --work {self.root}` first"
            )
        return task.load(self.prepared)

    @property
    def name(self) -> str:
        """What the data is called; empty where an earlier release prepared it."""
        path = self.root / NAME
        return str(read_json(path)["name"]) if path.exists() else ""

    def name_of(self, source: str, given: str = "") -> str:
        """What data of this source is called: as ``given``, as before if it was the same source, or like its file.

        Raises:
            ConfigError: the name given has neither letters nor digits.
        """
        if given:
            return _slug_of(given)
        path = self.root / NAME
        before = dict(read_json(path)) if path.exists() else {}
        if before.get("source") == source:
            return str(before["name"])
        # A pattern such as logs/*.parquet is called like its folder.
        parts = [re.sub(r"(\.[A-Za-z]{1,7})+$", "", part) for part in reversed(Path(source).parts)]
        return next(filter(None, map(slug, parts)), "data")

    def call(self, name: str, source: str | None = None) -> None:
        """Keep what the data is called, and where it came from; the source stays if none is given.

        Raises:
            ConfigError: as ``name_of``.
        """
        path = self.root / NAME
        before = dict(read_json(path)) if path.exists() else {}
        write_json(path, {**before, "name": _slug_of(name)} | ({} if source is None else {"source": source}))

    def connect(self, task: Task, name: str | None = None) -> Store:
        """Open the store, with the experiment of the data, which is about to be called ``name`` if that is given."""
        from pipelines import tracking

        data = self.name if name is None else name
        about = f"Runs of `persona {task.name}`" + (f" on the data set {data}." if data else ".")
        return tracking.connect(task.experiment(data), about)

    def settings(self, task: Task, given: Mapping[str, Any], file: Path | None = None) -> Any:
        """The settings of a step: those of the step before, changed by a file, changed by the options given.

        Args:
            task: whose settings they are.
            given: options of the command line; ``None`` means not given.
            file: TOML with any of the settings.

        Raises:
            ConfigError: a setting is unknown or out of range, or the file cannot be read.
        """
        return task.config.taken_up(self._remembered(), _chosen(given, file))

    def taken_over(self, task: Task, given: Mapping[str, Any], file: Path | None = None) -> dict[str, Any]:
        """The settings other than the defaults that ``settings`` takes from the step before."""
        new = _chosen(given, file)
        defaults = {f.name: f.default for f in fields(task.config) if f.default is not MISSING}
        own = task.config.own(self._remembered())
        return {k: v for k, v in own.items() if k not in new and v != defaults.get(k)}

    def remember(self, config: Settings) -> None:
        """Keep the settings for the next step."""
        self.suggest(**config.as_dict())

    def suggest(self, **settings: Any) -> None:
        """Let the next steps start from these settings."""
        write_json(self.root / SETTINGS, settings)

    def _remembered(self) -> dict[str, Any]:
        """The settings of the step before; none before the first."""
        path = self.root / SETTINGS
        return dict(read_json(path)) if path.exists() else {}


def slug(text: str) -> str:
    """``text`` as part of a name in a registry: lower case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _slug_of(name: str) -> str:
    """The slug of a name that was given."""
    if not (found := slug(name)):
        raise ConfigError(f"--name {name!r} has neither letters nor digits: give one such as films-2024")
    return found


def _chosen(given: Mapping[str, Any], file: Path | None) -> dict[str, Any]:
    """Settings of a file, changed by the options that were given."""
    return _read_toml(file) | {name: value for name, value in given.items() if value is not None}


def _read_toml(file: Path | None) -> dict[str, Any]:
    """The settings of a file, if one is given."""
    if file is None:
        return {}
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({error.strerror}): give the path of a TOML file") from error
    except ValueError as error:  # no TOML, or no UTF-8
        raise ConfigError(f"{file} is not valid TOML ({error}): write one `name = value` a line") from error
