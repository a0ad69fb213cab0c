"""Champions: which version of a model is served, how it came to be, and the way back.

The alias ``champion`` says which version is served. It is moved here only: past the gate, under a lock, and only if the
champion is still the one that the gate compared with. Every move is a tag of the registered model, named by its time, so that
the history is append-only and readable in MLflow's pages; the versions carry their latest move as tags, too.

    champion 2026-11-22T02:10:33.123456Z = {"action": "promote", "version": 3, "before": 2, "by": ..., "why": ..., "gate": ...}
"""

from __future__ import annotations

import getpass
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from persona.errors import ConfigError, DataError, MismatchError, PersonaError
from pipelines.tracking import store
from pipelines.versions import names as versions
from pipelines.versions import promotion_gate, snapshots
from pipelines.versions.names import CHAMPION, Version
from pipelines.versions.promotion_gate import Check, Limits

if TYPE_CHECKING:
    from mlflow import MlflowClient

EVENT = "champion "
PROMOTE, ROLLBACK = "promote", "rollback"
FIRST, PASSED, FORCED, FAILED = "no champion before", "passed", "overruled", "failed"


@dataclass(frozen=True)
class Event:
    """One move of the alias ``champion``.

    Attributes:
        time: UTC, ISO 8601.
        action: ``promote`` or ``rollback``.
        version: the champion from then on.
        before: the champion until then; None if there was none.
        by: user name.
        why: in the user's words.
        gate: ``passed``, ``overruled``, ``no champion before``; empty for a rollback.
    """

    time: str
    action: str
    version: int
    before: int | None
    by: str
    why: str
    gate: str = ""


@dataclass(frozen=True)
class Promotion:
    """What came of the wish to move the alias.

    Attributes:
        model: registered model.
        version: the version in question.
        before: the champion it was compared with; None if there was none.
        moved: whether it is the champion now.
        gate: see ``Event``; or ``failed``.
        checks: what the gate asked.
        event: the entry in the history, if the alias was moved.
        reason: why it was kept out, in words.
    """

    model: str
    version: int
    before: int | None
    moved: bool
    gate: str
    checks: list[Check]
    event: Event | None = None
    reason: str = ""


def promote(
    client: MlflowClient, name: str, *, why: str = "", limits: Limits | None = None, force: bool = False
) -> Promotion:
    """Make a version the champion if the gate lets it pass: that of its release, where there is no champion to compare it with.

    Args:
        client: of the store in use.
        name: of the version, for example ``persona-recsys-movielens-small@candidate``.
        why: reason, for the history.
        limits: of the gate.
        force: overrule a gate that fails or cannot be asked; needs ``why``.

    Raises:
        ConfigError: no such version, it is the champion already, or ``force`` without a reason.
        DataError: a version was released without a snapshot, so that there is nothing to compare.
        MismatchError: the two were tested on different rows, or somebody else moved the alias meanwhile.
    """
    if force and not why:
        raise ConfigError("who overrules the gate has to say why: add --why 'reason'")
    version = versions.resolve(client, name)
    before = versions.aliases_of(client, version.model).get(CHAMPION)
    if before == version.number:
        raise ConfigError(f"{version} is the champion already")
    if before is None:
        checks, outcome, reason = _first(version, force)
    else:
        checks, outcome = _asked(client, version, before, limits or Limits(), force)
        reason = _failed(checks)
    if outcome == FAILED:
        against = "none" if before is None else before
        _tag(client, version, {"gate": FAILED, "gate.at": now(), "gate.against": against, "gate.failed": reason})
        return Promotion(version.model, version.number, before, False, outcome, checks, reason=reason)
    event = move(client, version.model, version.number, before, PROMOTE, why, outcome)
    return Promotion(version.model, version.number, before, True, outcome, checks, event)


def rollback(client: MlflowClient, model: str, *, to: int | None = None, why: str = "") -> Event:
    """Serve an earlier champion again, by default the one before; the gate is not asked.

    Raises:
        ConfigError: there is no such model or version, or no earlier champion.
        MismatchError: somebody else moved the alias meanwhile.
    """
    current = versions.resolve(client, f"{model}@{CHAMPION}").number
    target = to if to is not None else _earlier(history(client, model), current)
    if target is None:
        raise ConfigError(f"{model}/{current} has no champion before it: name a version with --to")
    if versions.resolve(client, f"{model}/{target}").number == current:
        raise ConfigError(f"{model}/{current} is the champion already")
    return move(client, model, target, current, ROLLBACK, why)


def ask(client: MlflowClient, version: Version, champion: int, limits: Limits) -> list[Check]:
    """The gate's answers for a version against the champion, from the snapshots that both left."""
    other = versions.resolve(client, f"{version.model}/{champion}")
    theirs, own = (snapshots.of_run(client, each.run_id) for each in (other, version))
    for each, snapshot in ((other, theirs), (version, own)):
        if snapshot is None:
            raise DataError(f"{each} was registered without a snapshot to compare it by: release it again")
    assert theirs is not None
    assert own is not None
    return promotion_gate.check(own, theirs, limits)


def move(
    client: MlflowClient, model: str, version: int, before: int | None, action: str, why: str, outcome: str = ""
) -> Event:
    """Point ``champion`` to a version and write it down, if the champion still is ``before``.

    The history is written first: what was moved is always on record, even if the process ends in between.

    Raises:
        MismatchError: the champion is another one by now.
    """
    with store.exclusive(client, model):
        found = versions.aliases_of(client, model).get(CHAMPION)
        if found != before:
            raise MismatchError(
                f"the champion of {model} became version {found} while this was decided on version {before}: look at it "
                "and try again"
            )
        event = Event(now(), action, version, before, who(), why, outcome)
        values = {key: value for key, value in asdict(event).items() if key != "time"}
        client.set_registered_model_tag(model, f"{EVENT}{event.time}", json.dumps(values))
        _audit(client, model, event)
        client.set_registered_model_alias(model, CHAMPION, str(version))
    return event


def history(client: MlflowClient, model: str) -> list[Event]:
    """Every move of the alias, oldest first."""
    tags = client.get_registered_model(model).tags
    found = [
        Event(time=key.removeprefix(EVENT), **json.loads(value)) for key, value in tags.items() if key.startswith(EVENT)
    ]
    return sorted(found, key=lambda event: event.time)


def reigns(events: Sequence[Event], alias: int | None, first: str) -> list[tuple[int, str, str | None]]:
    """Who was champion when: (version, from, until), until None for the present one.

    Args:
        events: of ``history``.
        alias: the version that the alias points to now; it wins where it was moved by hand.
        first: since when a champion without an event is one, ISO 8601.
    """
    found: list[tuple[int, str, str | None]] = []
    if events and events[0].before is not None:
        found.append((events[0].before, first, events[0].time))
    for i, event in enumerate(events):
        found.append((event.version, event.time, events[i + 1].time if i + 1 < len(events) else None))
    if alias is not None and not found:
        found.append((alias, first, None))
    elif alias is not None and found[-1][0] != alias:
        version, since, _ = found[-1]
        found[-1] = (version, since, "unknown (moved by hand)")
        found.append((alias, "unknown (moved by hand)", None))
    return found


def now() -> str:
    """The time, UTC, ISO 8601 in the form that MLflow allows in names; its order is that of strings."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def who() -> str:
    """The user, as the server knows them, or as the system does."""
    try:
        return os.environ.get("MLFLOW_TRACKING_USERNAME") or getpass.getuser()
    except (KeyError, OSError):  # a container without a user database
        return "unknown"


def _asked(client: MlflowClient, version: Version, before: int, limits: Limits, force: bool) -> tuple[list[Check], str]:
    """What the gate asked and how it ended; ``force`` overrules a gate that fails, and one that cannot be asked."""
    try:
        checks = ask(client, version, before, limits)
    except PersonaError:
        if not force:
            raise
        return [], FORCED
    if all(check.passed for check in checks):
        return checks, PASSED
    return checks, FORCED if force else FAILED


def _first(version: Version, force: bool) -> tuple[list[Check], str, str]:
    """As ``_asked`` where there is no champion: what the version's release was told by its gate, and the reason."""
    said = version.tags.get(promotion_gate.TAG, "")
    if not said.startswith(promotion_gate.REFUSED):
        return [], FIRST, ""
    return [], FORCED if force else FAILED, said


def _earlier(events: Sequence[Event], current: int) -> int | None:
    """The champion before the current one; rolling back again and again goes further back, not to and fro."""
    line: list[int] = []
    for event in events:
        if event.before is not None and not line:
            line.append(event.before)
        if event.version in line:
            del line[line.index(event.version) + 1 :]
        else:
            line.append(event.version)
    if current in line:
        del line[line.index(current) :]
    return line[-1] if line else None


def _audit(client: MlflowClient, model: str, event: Event) -> None:
    """Write a move to the tags of the two versions that it is about."""
    tags: dict[str, Any] = {f"{event.action}.at": event.time, f"{event.action}.by": event.by}
    tags |= {f"{event.action}.from": event.before or "none", f"{event.action}.why": event.why or "not given"}
    if event.gate:
        tags["gate"] = event.gate
    _tag(client, versions.resolve(client, f"{model}/{event.version}"), tags)
    if event.before is not None:
        relieved = {"relieved.at": event.time, "relieved.by": event.by, "relieved.for": event.version}
        _tag(client, versions.resolve(client, f"{model}/{event.before}"), relieved)


def _tag(client: MlflowClient, version: Version, tags: Mapping[str, Any]) -> None:
    for key, value in tags.items():
        client.set_model_version_tag(version.model, str(version.number), key, str(value))


def _failed(checks: Sequence[Check]) -> str:
    """The checks that failed, as a tag."""
    return "; ".join(str(check) for check in checks if not check.passed)
