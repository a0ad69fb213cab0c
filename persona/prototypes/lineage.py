"""The versions of a bank on disk: every one with its parent, any one restored, damaged or foreign ones refused.

    <root>/<version>/bank/                      the bank (see ``bank_format``): what devices get
    <root>/<version>/statistics.safetensors     sums per user, for ``forget``: personal data, stays here
    <root>/<version>/record.json                parent, time, report
    <root>/head.json                            which version is served

A version's folder appears at once or not at all, and its name is the digest of its bank. Going back to an older version moves
the head and deletes nothing; what is refined from there is another branch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from persona.errors import ConfigError, FormatError, MismatchError, nearest
from persona.prototypes.bank import PrototypeBank
from persona.prototypes.bank_format import load_bank, save_bank
from persona.prototypes.user_statistics import UserStatistics
from persona.storage import atomic_folder, load_tensors, read_json, remove_folders, save_tensors, write_json

_VERSION = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class VersionRecord:
    """One line of the history.

    Attributes:
        version: of the bank.
        parent: version that it was made from; empty for a first one.
        kind: ``fit``, ``refine`` or ``specialise``.
        created: time in UTC, ISO 8601.
        prototypes: K.
        report: what the step that made it had to say.
    """

    version: str
    parent: str
    kind: str
    created: str
    prototypes: int
    report: Mapping[str, Any]


@dataclass(frozen=True)
class Replacement:
    """A version that takes the place of another: what ``Lineage.save`` takes, and the other's time."""

    bank: PrototypeBank
    statistics: UserStatistics | None
    report: Mapping[str, Any]
    created: str


class Lineage:
    """All versions of one host's prototype bank.

    Args:
        root: folder of the versions; made when the first is saved.
        host: digest of the host.

    Example::

        lineage = Lineage(work / "prototypes", host_digest)
        lineage.save(partition.bank, partition.statistics)
        lineage.save(refinement.bank, window, refinement.report(), serve=False)
        lineage.restore(refinement.bank.version)  # once it has been compared
    """

    def __init__(self, root: Path, host: str) -> None:
        self.root, self.host = Path(root), host

    @property
    def head(self) -> str:
        """Version that is served; empty before the first is saved."""
        path = self.root / "head.json"
        if not path.exists():
            return ""
        version = read_json(path).get("version")
        if not isinstance(version, str) or not _VERSION.fullmatch(version):
            raise FormatError(f"{path} names no version: restore one of {', '.join(self._versions()) or '(none)'}")
        return version

    def save(
        self,
        bank: PrototypeBank,
        statistics: UserStatistics | None = None,
        report: Mapping[str, Any] | None = None,
        *,
        serve: bool = True,
    ) -> str:
        """Store a version and make it the head.

        Args:
            bank: the version; its parent, if it has one, must be here.
            statistics: per user, of the contexts that made it.
            report: JSON values to be shown in the history.
            serve: whether it is the head; one that has yet to be compared is not, until ``restore`` serves it.

        Raises:
            MismatchError: the bank belongs to another host, or its parent is not in this lineage.
        """
        self._write(bank, statistics, report or {}, datetime.now(UTC).isoformat(timespec="microseconds"))
        if serve:
            self._point(bank.version)
        return bank.version

    def load(self, version: str | None = None) -> PrototypeBank:
        """The bank of a version, of the head by default.

        Raises:
            ConfigError: no such version.
            FormatError: its folder is damaged, or holds another version.
            MismatchError: it belongs to another host.
        """
        version = self._resolve(version)
        bank = load_bank(self.root / version / "bank", self.host)
        if bank.version != version:
            raise FormatError(f"{self.root / version} holds the version {bank.version[:12]}: put the folders back")
        return bank

    def statistics(self, version: str | None = None) -> UserStatistics | None:
        """The sums per user of a version, None if it was stored without.

        Raises:
            ConfigError: no such version.
            FormatError: the file is damaged.
        """
        path = self.root / self._resolve(version) / "statistics.safetensors"
        if not path.exists():
            return None
        tensors, header = load_tensors(path)
        try:
            return UserStatistics(**tensors, k=header["k"])
        except (KeyError, TypeError) as error:
            raise FormatError(f"{path} lacks a part ({error}): restore it from a copy") from error

    def record(self, version: str | None = None) -> VersionRecord:
        """What is known of a version without loading it.

        Raises:
            ConfigError: no such version.
            FormatError: the record is damaged.
        """
        version = self._resolve(version)
        path = self.root / version / "record.json"
        values = read_json(path)
        try:
            found = VersionRecord(**values)
        except TypeError as error:
            raise FormatError(f"{path} is no record of a version ({error}): restore it from a copy") from error
        if found.version != version:
            raise FormatError(f"{path} is the record of {found.version[:12]}: put the folders back")
        return found

    def history(self) -> list[VersionRecord]:
        """All versions, parents before children, older before newer.

        Raises:
            FormatError: a folder is damaged, or a version's parent is missing.
        """
        waiting = sorted((self.record(v) for v in self._versions()), key=lambda r: (r.created, r.version))
        done: dict[str, VersionRecord] = {}
        while waiting:
            ready = next((r for r in waiting if not r.parent or r.parent in done), None)
            if ready is None:
                known = done.keys() | {r.version for r in waiting}
                lost = next((r for r in waiting if r.parent not in known), waiting[0])
                raise FormatError(
                    f"version {lost.version[:12]} in {self.root} comes from {lost.parent[:12]}, which is missing: "
                    "restore that folder from a copy"
                )
            done[ready.version] = ready
            waiting.remove(ready)
        return list(done.values())

    def restore(self, version: str) -> PrototypeBank:
        """Serve an older (or newer) version again; its folder is read and checked first.

        Raises:
            As ``load``.
        """
        bank = self.load(version)
        self._point(bank.version)
        return bank

    def replace(self, obsolete: list[str], new: list[Replacement], head: str) -> None:
        """Exchange versions, as ``forget`` does: write the new, point the head, delete the obsolete for good.

        Killed in between, it leaves a readable lineage and can be done again: children go before their parents, each at once.

        Args:
            obsolete: versions to be deleted, parents before children.
            new: versions to be written, parents before children.
            head: version to be served.
        """
        for version in new:
            self._write(version.bank, version.statistics, version.report, version.created)
        self._point(head)
        remove_folders([self.root / name for name in reversed(obsolete)])

    def _write(
        self, bank: PrototypeBank, statistics: UserStatistics | None, report: Mapping[str, Any], created: str
    ) -> None:
        if bank.host != self.host:
            raise MismatchError(
                f"this bank was made for the host {bank.host[:12] or '(none)'}, but {self.root} keeps versions for "
                f"{self.host[:12]}: give every host a folder of its own"
            )
        if bank.parent and bank.parent not in self._versions():
            raise MismatchError(f"the parent {bank.parent[:12]} of this bank is not in {self.root}: save it first")
        kind = str(bank.metadata.get("kind", ""))
        record = VersionRecord(bank.version, bank.parent, kind, created, len(bank), dict(report))
        with atomic_folder(self.root / bank.version) as new:
            save_bank(new / "bank", bank)
            if statistics is not None:
                tensors = {f.name: getattr(statistics, f.name) for f in fields(statistics) if f.name != "k"}
                save_tensors(new / "statistics.safetensors", tensors, {"k": statistics.k})
            write_json(new / "record.json", asdict(record))

    def _point(self, version: str) -> None:
        write_json(self.root / "head.json", {"version": version})

    def _versions(self) -> list[str]:
        return sorted(p.name for p in self.root.glob("*") if p.is_dir() and _VERSION.fullmatch(p.name))

    def _resolve(self, version: str | None) -> str:
        version = self.head if version is None else version
        if version not in self._versions():
            raise ConfigError(f"{self.root} has no version {version[:12]!r}: {nearest(version, self._versions())}")
        return version
