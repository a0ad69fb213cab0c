"""Statistics on disk: what one worker saw of a window, to be merged with what others saw.

One safetensors file a shard. Its header names host, editor and bank version that the contexts were assigned by, and a digest of
its sums, so that a shard of another version is refused, and one that is given twice does not count twice. The file holds personal
data: sums of codes by user.

Shapes: R rows, L layers, d code width.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from persona.errors import DataError, FormatError, MismatchError
from persona.prototypes.bank import PrototypeBank
from persona.prototypes.user_statistics import StatisticsFold, UserStatistics
from persona.storage import digest_json, digest_tensors, load_tensors, save_tensors

FORMAT, FORMAT_VERSION = "persona-statistics", 1
_LONGEST_HEADER = 1 << 24
_PARTS = ("users", "prototypes", "counts", "sums")


@dataclass(frozen=True)
class StoredStatistics:
    """One shard and where it comes from.

    Attributes:
        statistics: sums by user and prototype.
        host: digest of the host.
        editor: digest of the editor.
        bank: version of the bank that assigned the contexts.
        window: what the worker says of its events, as JSON values.
        digest: of everything above.
    """

    statistics: UserStatistics
    host: str
    editor: str
    bank: str
    window: Mapping[str, Any]
    digest: str


def save_statistics(path: Path, statistics: UserStatistics, bank: PrototypeBank, window: Mapping[str, Any]) -> str:
    """Write one shard, atomically, and return its digest.

    Args:
        path: of the file.
        statistics: collected with the assignment of
        bank: this version.
        window: what is to be known of the events, as JSON values.
    """
    return _write(path, StoredStatistics(statistics, bank.host, bank.editor, bank.version, window, ""))


def load_statistics(path: Path) -> StoredStatistics:
    """Read what ``save_statistics`` wrote.

    Raises:
        FormatError: the file is missing, damaged, something else, or of another release.
    """
    tensors, header = load_tensors(path)
    found = header if isinstance(header, dict) else {}
    if found.get("format") != FORMAT or found.get("version") != FORMAT_VERSION:
        raise FormatError(
            f"{path} has format {found.get('format')!r} version {found.get('version')!r}, but {FORMAT!r} version "
            f"{FORMAT_VERSION} is needed: collect the statistics again with this release"
        )
    digest = found.pop("digest", None)
    if set(tensors) != set(_PARTS) or _digest(tensors, found) != digest:
        raise FormatError(f"{path} is damaged (its digest differs): fetch it again, or collect it again")
    statistics = UserStatistics(**tensors, k=found["k"])
    return StoredStatistics(statistics, found["host"], found["editor"], found["bank"], found["window"], str(digest))


def is_shard(path: Path) -> bool:
    """Whether a file says that it is a shard; its sums are not read."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(json.loads(file.read(min(size, _LONGEST_HEADER)))["__metadata__"]["persona"])
        except (KeyError, TypeError, ValueError):
            return False
    return isinstance(header, dict) and header.get("format") == FORMAT


def forget_user(path: Path, user: int) -> bool:
    """Take a user out of a shard, which goes if nobody else is in it, and tell whether they were in there.

    Raises:
        FormatError: as ``load_statistics``.
    """
    stored = load_statistics(path)
    if not stored.statistics.has(user):
        return False
    rest = stored.statistics.without(user)
    if len(rest):
        _write(path, replace(stored, statistics=rest))
    else:
        path.unlink()
    return True


def merge_statistics(paths: Sequence[Path], bank: PrototypeBank) -> tuple[UserStatistics, list[Mapping[str, Any]]]:
    """The statistics of all shards of a window, in any order, and what their workers said of their events.

    Args:
        paths: of the files; read one at a time.
        bank: that is to be refined.

    Raises:
        DataError: there is no file, or one is given twice.
        FormatError: a file is damaged.
        MismatchError: a shard was collected with another host, editor or version of the bank.
    """
    if not paths:
        raise DataError("there are no statistics to merge: give the files that the workers wrote")
    fold = StatisticsFold(len(bank), bank.centres.shape[1:])
    seen: dict[str, Path] = {}
    windows = []
    for path in paths:
        stored = load_statistics(path)
        _check_owner(path, stored, bank)
        if stored.digest in seen:
            raise DataError(f"{path} and {seen[stored.digest]} are the same statistics: give each shard once")
        seen[stored.digest] = path
        windows.append(stored.window)
        fold.add(stored.statistics)
    return fold.result(), windows


def _check_owner(path: Path, stored: StoredStatistics, bank: PrototypeBank) -> None:
    pairs = (
        ("host", stored.host, bank.host),
        ("editor", stored.editor, bank.editor),
        ("bank version", stored.bank, bank.version),
    )
    for name, theirs, ours in pairs:
        if theirs != ours:
            raise MismatchError(
                f"{path} was collected with the {name} {theirs[:12]}, but {ours[:12]} is to be refined: collect it again "
                "with the bundle that is served now"
            )


def _write(path: Path, stored: StoredStatistics) -> str:
    """Write a shard, atomically, and return its digest."""
    tensors = {name: getattr(stored.statistics, name) for name in _PARTS}
    header = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "host": stored.host,
        "editor": stored.editor,
        "bank": stored.bank,
        "k": stored.statistics.k,
        "window": dict(stored.window),
    }
    header["digest"] = _digest(tensors, header)
    save_tensors(path, tensors, header)
    return str(header["digest"])


def _digest(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> str:
    return digest_json([digest_tensors(tensors), dict(header)])
