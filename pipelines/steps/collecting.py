"""What a refinement rests on: a window of new events, or the statistics that workers collected of their shares of one.

    collect (every worker: events in, a file of sums by user out) -> refine (merges the files) -> release

A worker needs the released bundle and its share of the events; no event leaves it. Its file holds personal data.

Shapes: N contexts, n examples, L layers, d code width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from persona.errors import ConfigError, DataError
from persona.prototypes import (
    CodeSample,
    PrototypeBank,
    Server,
    StatisticsFold,
    UserStatistics,
    merge_statistics,
    save_statistics,
)
from persona.storage import digest_tensors
from pipelines.steps.answers import bundle_folder
from pipelines.steps.bank import Seen
from pipelines.steps.workspace import Workspace
from recsys.data import catalogue
from recsys.data.log import read_log
from recsys.data.windows import Window, last_days, log_window, moment, prepared_window
from recsys.prototypes import user_numbers
from recsys.serving.release import Release
from recsys.task import RECSYS

# Contexts that go through the editor at once, and that figures and tables show examples of.
BLOCK, EXAMPLES = 1 << 16, 5_000


@dataclass(frozen=True)
class Shard:
    """A share of the users: those whose number leaves ``index`` - 1 when divided by ``count``; of 1 to ``count``."""

    index: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """``3/16`` is the third of sixteen shares; empty text is all users.

        Raises:
            ConfigError: it reads otherwise.
        """
        if not text:
            return cls()
        index, _, count = text.partition("/")
        if not (index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
            raise ConfigError(f"{text!r} is no share of the users: write 3/16 for the third of sixteen")
        return cls(int(index), int(count))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


@dataclass(frozen=True)
class Collected:
    """What ``collect`` left: the file, the version of the bank that it is for, and what is in it."""

    path: Path
    bank: str
    contexts: int
    users: int
    window: dict[str, Any]
    digest: str


def new_events(
    work: Workspace,
    item_ids: Sequence[str],
    *,
    source: str = "",
    columns: Mapping[str, str | None] | None = None,
    window: tuple[str, str] | None = None,
    days: float = 0.0,
) -> Window:
    """The events that are new.

    Args:
        work: with the prepared log, if there is one.
        item_ids: vocabulary of the bundle.
        source: log of new events, or
        columns: of this log; those of the prepared log by default.
        window: start and end of a window of the prepared log, or
        days: the last days of the prepared log.

    Raises:
        ConfigError: not exactly one of source, window and days is given.
    """
    if [bool(source), window is not None, days > 0].count(True) != 1:
        raise ConfigError("say which events are new: a log (--events), a window of the prepared log, or its last days")
    if not source:
        data = work.data(RECSYS)
        start, end = last_days(data, days) if window is None else (moment(window[0]), moment(window[1]))
        return prepared_window(data, item_ids, start, end)
    before = work.data(RECSYS) if work.prepared.exists() else None
    named = {role: column for role, column in (columns or {}).items() if column}
    if source in catalogue.CATALOGUE:
        return log_window(catalogue.load(source), item_ids, before)
    if before is not None and not named:
        known = before.meta.get("log", {}).get("columns", {})
        named = {role: known[role] for role in ("user", "item", "time") if known.get(role)}
    return log_window(read_log(Path(source), **named), item_ids, before)


def of_window(recommender: Release, bank: PrototypeBank, window: Window, shard: Shard | None = None) -> Seen:
    """The contexts after the new events of a share of the users, assigned by ``bank``, block by block.

    Raises:
        DataError: no user of the share has a new event.
    """
    shard = shard or Shard()
    assert recommender.model.editor is not None
    server = Server(recommender.model.editor, bank)
    context, owners = window.contexts(recommender.model.host.config.max_length)
    users = torch.from_numpy(owners)
    numbers = user_numbers(window.data.user_ids.to_list())[users]
    rows = torch.nonzero(numbers % shard.count == shard.index - 1).squeeze(1)
    if not len(rows):
        raise DataError(f"no user of the share {shard} has a new event: cut the users into fewer shares")
    fold, samples = StatisticsFold(len(bank), server.assigner.metric.shape), []
    for block in torch.split(rows, BLOCK):
        codes = recommender.model.codes(context.index_select(block))
        fold.add(UserStatistics.collect(codes, numbers[block], server.assign(codes), len(bank)))
        samples.append(CodeSample.collect(codes, users[block], block, EXAMPLES))
    sample = sum(samples[1:], samples[0])
    names = window.data.user_ids.gather(sample.users.numpy()).to_list()
    about: dict[str, Any] = window.describe()
    if shard.count > 1:
        about |= _of_share(window, torch.unique(users[rows]), shard)
    return Seen(fold.result(), about, sample.codes, names, window.data.digest)


def _of_share(window: Window, users: Tensor, shard: Shard) -> dict[str, Any]:
    """What differs in the description of a share; events of unknown items, whose users are unknown, count to the first."""
    owners = torch.from_numpy(window.data.user_of(window.positions))
    events = int(torch.isin(owners, users).sum())
    unknown = window.unknown if shard.index == 1 else 0
    return {"shard": str(shard), "users": len(users), "events": events, "unknown_items": unknown}


def of_files(paths: Sequence[Path], bank: PrototypeBank) -> Seen:
    """What workers collected, merged.

    Args:
        paths: of files, or of folders with files.
        bank: that is to be refined.

    Raises:
        DataError: there is no file, one is given twice, or they hold no context.
        FormatError: a file is damaged.
        MismatchError: a file was collected with another host, editor or version of the bank.
    """
    found = [file for path in paths for file in (sorted(path.glob("*.safetensors")) if path.is_dir() else [path])]
    if not found:
        raise DataError(f"there is no file of statistics in {', '.join(map(str, paths))}: run `persona recsys collect`")
    statistics, windows = merge_statistics(found, bank)
    users = torch.unique(statistics.users)
    about = {
        "events": sum(w["events"] for w in windows),
        "users": len(users),
        "unknown_items": sum(w["unknown_items"] for w in windows),
        "from": min(w["from"] for w in windows),
        "to": max(w["to"] for w in windows),
        "shards": len(windows),
    }
    rows = torch.randperm(len(statistics), generator=torch.Generator().manual_seed(0))[:EXAMPLES]
    names = [str(user) for user in statistics.users[rows].tolist()]
    codes = statistics.means(rows).float()
    counted = {name: getattr(statistics, name) for name in ("users", "prototypes", "counts")}
    return Seen(statistics, about, codes, names, digest_tensors(counted))


def collect(
    work: Workspace,
    out: Path,
    *,
    model: str = "",
    shard: Shard | None = None,
    source: str = "",
    columns: Mapping[str, str | None] | None = None,
    window: tuple[str, str] | None = None,
    days: float = 0.0,
) -> Collected:
    """Sum up the contexts of new events by user and prototype, for ``refine`` to merge with what other workers collected.

    Args:
        work: with the released bundle, and with the prepared log, if there is one.
        out: file to write.
        model: bundle folder or registered model; the workspace's bundle by default.
        shard: the users to look at; all by default.
        source: as in ``new_events``, like the rest.
        columns: likewise.
        window: likewise.
        days: likewise.

    Raises:
        ConfigError: the bundle has no prototypes, or not exactly one of source, window and days is given.
    """
    recommender = Release.load(bundle_folder(model or work.bundle))
    bank = recommender.bank
    if bank is None:
        raise ConfigError(
            f"{model or work.bundle} has no prototypes: run `persona recsys prototypes` and `release` first"
        )
    found = new_events(work, recommender.item_ids, source=source, columns=columns, window=window, days=days)
    seen = of_window(recommender, bank, found, shard)
    digest = save_statistics(out, seen.statistics, bank, seen.window)
    contexts = int(seen.statistics.counts.sum())
    return Collected(out, bank.version, contexts, int(torch.unique(seen.statistics.users).numel()), seen.window, digest)
