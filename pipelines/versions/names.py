"""Versions of registered models by the names that people use: ``persona-recsys-shop@champion``, ``persona-recsys-shop/3``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from persona.errors import ConfigError, nearest

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION, CANDIDATE = "champion", "candidate"
BANKS = "-prototypes"  # how the names of banks end
_NAME = re.compile(r"(?:models:/)?(?P<model>[^@/]+)(?:@(?P<alias>[^@/]+)|/(?P<version>\d+))?")


@dataclass(frozen=True)
class Version:
    """A version in the registry.

    Attributes:
        model: name of the registered model.
        number: of the version.
        run_id: the run that made it; empty if unknown.
        source: where its files are.
        created: UTC.
        tags: of the version.
        aliases: that point to it.
        description: written for people.
    """

    model: str
    number: int
    run_id: str
    source: str
    created: datetime
    tags: Mapping[str, str] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    description: str = ""

    @property
    def uri(self) -> str:
        """As MLflow names it."""
        return f"models:/{self.model}/{self.number}"

    def __str__(self) -> str:
        return f"{self.model}/{self.number}"


def models(client: MlflowClient) -> list[str]:
    """Names of all registered models, without the locks that ``store.exclusive`` makes on servers."""
    return sorted(model.name for model in client.search_registered_models() if not model.name.endswith(".lock"))


def usual(client: MlflowClient, *, banks: bool = False) -> str:
    """The model that is meant where none is named: the only one of a store, bundles or ``banks``.

    Raises:
        ConfigError: there is none, or there are several.
    """
    found = [name for name in models(client) if name.endswith(BANKS) == banks]
    if len(found) == 1:
        return found[0]
    kind = "prototype bank" if banks else "model"
    if not found:
        raise ConfigError(f"the store has no registered {kind}: release one first, or set MLFLOW_TRACKING_URI")
    raise ConfigError(f"the store has several registered {kind}s: name one of {', '.join(found)}")


def resolve(client: MlflowClient, name: str) -> Version:
    """The version that ``name`` means; a bare model means its champion, or its newest version where there is none.

    Raises:
        ConfigError: there is no such model, version or alias.
    """
    match = _NAME.fullmatch(name.strip())
    if match is None:
        raise ConfigError(f"{name!r} names no version: write persona-recsys-shop@champion, or persona-recsys-shop/3")
    model = match["model"]
    known = models(client)
    if model not in known:
        raise ConfigError(f"there is no registered model {model!r}: {nearest(model, known)}")
    versions = {version.number: version for version in all_of(client, model)}
    if match["version"]:
        if int(match["version"]) not in versions:
            raise ConfigError(f"{model} has no version {match['version']}. Known: {', '.join(map(str, versions))}")
        return versions[int(match["version"])]
    aliases = aliases_of(client, model)
    if match["alias"] and match["alias"] not in aliases:
        raise ConfigError(f"{model} has no alias {match['alias']!r}: {nearest(match['alias'], aliases)}")
    if not versions:
        raise ConfigError(f"{model} has no versions: release one first")
    return versions[aliases.get(match["alias"] or CHAMPION, max(versions))]


def aliases_of(client: MlflowClient, model: str) -> dict[str, int]:
    """Aliases of a model, with the number of the version that each points to."""
    return {alias: int(number) for alias, number in client.get_registered_model(model).aliases.items()}


def all_of(client: MlflowClient, model: str) -> list[Version]:
    """Every version of a model, oldest first."""
    aliases = aliases_of(client, model)
    found = [_version(entry, aliases) for entry in client.search_model_versions(f"name = '{model}'")]
    return sorted(found, key=lambda version: version.number)


def _version(entry: Any, aliases: Mapping[str, int]) -> Version:
    number = int(entry.version)
    return Version(
        model=entry.name,
        number=number,
        run_id=entry.run_id or "",
        source=entry.source or "",
        created=datetime.fromtimestamp(entry.creation_timestamp / 1000, UTC),
        tags=dict(entry.tags),
        aliases=tuple(sorted(alias for alias, target in aliases.items() if target == number)),
        description=entry.description or "",
    )


def metrics_of(client: MlflowClient, version: Version) -> dict[str, float]:
    """What was measured of a version: the metrics of its logged model, or else those of its run."""
    match = re.fullmatch(r"models:/(m-[0-9a-f]+)", version.source)
    logged = client.get_logged_model(match[1]).metrics if match else None
    if logged:
        return {metric.key: float(metric.value) for metric in logged}
    return dict(client.get_run(version.run_id).data.metrics) if version.run_id else {}
