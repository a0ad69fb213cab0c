"""What reading a log gives: the clean events, and a report of how the source was understood."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import polars as pl

from recsys.data.columns import ColumnMapping
from recsys.data.log.arranging import Events
from recsys.data.log.tables import Table


@dataclass(frozen=True)
class LogReport:
    """How a source was understood, and what was found in it.

    Attributes:
        source: path or name of the source.
        format: "CSV", "RecBole .inter", "Parquet", "pandas DataFrame", ...
        separator: of a text file.
        header: whether a text file's first line names its columns; None for other formats.
        columns: which column plays which role.
        time_kind: for example "epoch seconds", "ISO date and time", "order within a user", "row order".
        ordered_only: whether events have an order within each user, but no time common to all users.
        rows: rows read, blank lines not counted.
        events: rows kept.
        users: distinct users.
        items: distinct items.
        duplicates_dropped: rows equal to an earlier one in user, item and time.
        ties_share: share of the events that have user and time (in whole seconds) in common with another one.
        repeats_share: share of the next events (all but each user's first) that are an item which the user has had before.
        first_time: the earliest time, in ISO form (UTC) where it is a date.
        last_time: the latest time.
        notes: what else a person should know.
    """

    source: str
    format: str
    separator: str | None
    header: bool | None
    columns: ColumnMapping
    time_kind: str
    ordered_only: bool
    rows: int
    events: int
    users: int
    items: int
    duplicates_dropped: int
    ties_share: float
    repeats_share: float
    first_time: str
    last_time: str
    notes: tuple[str, ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {**asdict(self), "columns": self.columns.as_dict(), "notes": list(self.notes)}

    def lines(self) -> list[str]:
        """The report for a person to read."""
        form = self.format
        if self.separator is not None:
            form += f" separated by {SEPARATOR_NAMES.get(self.separator, repr(self.separator))}"
        if self.header is not None:
            form += ", the first line names the columns" if self.header else ", no line names the columns"
        columns = self.columns
        roles = [f"user = {columns.user}", f"item = {columns.item}"]
        roles.append(f"time = {columns.time or columns.order or 'none'} ({self.time_kind})")
        if columns.title is not None:
            roles.append(f"title = {columns.title}")
        return [
            f"{self.source}: {form}",
            ", ".join(roles),
            f"{self.rows:,} rows: {self.events:,} events of {self.users:,} users on {self.items:,} items",
            f"{self.duplicates_dropped:,} exact duplicates dropped, {self.ties_share:.1%} of the events tie in time",
            f"{self.repeats_share:.1%} of the next events are items that the user has had",
            f"from {self.first_time} to {self.last_time}",
            *self.notes,
        ]


SEPARATOR_NAMES = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars", " ": "blanks", "::": "'::'"}


@dataclass(frozen=True, eq=False)
class InteractionLog:
    """A clean interaction log.

    Attributes:
        frame: columns ``user_id`` and ``item_id`` (``pl.Enum`` over the ids as text, whose order is the order of the
            vocabulary) and ``timestamp`` (Int64: whole seconds since 1970 UTC, or an order). Sorted by user, then time at
            the source's full resolution, then row. No nulls, no exact duplicates.
        titles: ``item_id`` (String) and ``title`` (String) of the items that have one, or None.
        report: how the source was understood.
    """

    frame: pl.DataFrame
    titles: pl.DataFrame | None
    report: LogReport


@dataclass(frozen=True)
class Found:
    """Counts and limits of a log; those of parts with users of their own add up.

    Attributes:
        rows: read.
        events: kept.
        users: distinct.
        items: distinct.
        duplicates: dropped.
        ties: events that have user and second in common with another one.
        repeats: events whose item the user has had before.
        first: the earliest second, or step.
        last: the latest.
    """

    rows: int
    events: int
    users: int
    items: int
    duplicates: int
    ties: int
    repeats: int
    first: int
    last: int

    @classmethod
    def of(cls, events: Events, rows: int, users: int, items: int) -> Found:
        """What arranging ``rows`` rows found."""
        first, last = int(events.times.min()), int(events.times.max())
        counts = (rows, len(events.users), users, items, events.duplicates, events.ties, events.repeats)
        return cls(*counts, first, last)


def log_report(
    table: Table, mapping: ColumnMapping, time_kind: str, is_date: bool, found: Found, notes: list[str]
) -> LogReport:
    """The report; ``notes`` are those on ids, ``time_kind`` and ``is_date`` as in ``Times``."""
    if found.first == found.last:
        notes = [*notes, "mind: all events have one and the same time, so only the row order orders them"]
    if mapping.time is None and mapping.order is None:
        notes = [*notes, "mind: no column of time or order was found, so the row order counts"]
    return LogReport(
        source=table.label,
        format=table.format,
        separator=table.separator,
        header=table.header,
        columns=mapping,
        time_kind=time_kind,
        ordered_only=mapping.time is None,
        rows=found.rows,
        events=found.events,
        users=found.users,
        items=found.items,
        duplicates_dropped=found.duplicates,
        ties_share=found.ties / found.events,
        repeats_share=found.repeats / max(1, found.events - found.users),
        first_time=utc(found.first) if is_date else str(found.first),
        last_time=utc(found.last) if is_date else str(found.last),
        notes=tuple(notes),
    )


def utc(seconds: int) -> str:
    """Seconds since 1970 as text."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
