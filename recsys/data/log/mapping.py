"""Which column is the user, the item, the time, the order, the title."""

from __future__ import annotations

from persona.errors import DataError, nearest
from recsys.data.columns import ColumnMapping, candidates
from recsys.data.log.tables import Table
from recsys.data.log.times import looks_like_time

REQUIRED = ("user", "item")


def map_columns(table: Table, explicit: dict[str, str | None]) -> ColumnMapping:
    """Give each role a column: the one named in ``explicit``, else by the names, else by the place in a file without names.

    Raises:
        DataError: an explicit column does not exist, a required role has no column or several, or one column two roles.
    """
    for role, name in explicit.items():
        if name is not None and name not in table.names:
            raise DataError(f"{table.label} has no column {name!r} for {role}=: {nearest(name, table.names)}")
    if table.header is False:
        found = _by_place(table, explicit)
    else:
        found = {role: explicit.get(role) or _by_name(table, role) for role in ("user", "item", "time", "title")}
    time, order = found["time"], None
    if time is None:
        order = _by_name(table, "order")
    elif candidates("order", [time]):
        time, order = None, time
    for role in REQUIRED:
        if found[role] is None:
            listing = ", ".join(table.names) or "none"
            raise DataError(f"{table.label}: no column looks like the {role}, give {role}=... (columns: {listing})")
    _check_apart(table, found)
    title = found["title"] if found["title"] != found["item"] else None
    return ColumnMapping(str(found["user"]), str(found["item"]), time, order, title)


def _by_name(table: Table, role: str) -> str | None:
    hits = candidates(role, table.names)
    if len(hits) > 1:
        listing = " and ".join(repr(hit) for hit in hits)
        parameter = "time" if role == "order" else role
        raise DataError(f"{table.label}: columns {listing} could each be the {role}: choose one with {parameter}=...")
    return hits[0] if hits else None


def _by_place(table: Table, explicit: dict[str, str | None]) -> dict[str, str | None]:
    """Without names: user first, item second, and the last column whose values look like times, if any."""
    taken = [name for name in explicit.values() if name is not None]
    free = [name for name in table.names if name not in taken]
    sample = table.scan(table.names).head(100).collect()
    time = explicit.get("time")
    if time is None:
        times = [name for name in free if looks_like_time(sample[name])]
        time = times[-1] if times else None
    rest = iter(name for name in free if name != time)
    user = explicit.get("user") or next(rest, None)
    item = explicit.get("item") or next(rest, None)
    return {"user": user, "item": item, "time": time, "title": explicit.get("title")}


def _check_apart(table: Table, found: dict[str, str | None]) -> None:
    """Refuse one column in two of the roles user, item and time."""
    for role, other in (("user", "item"), ("user", "time"), ("item", "time")):
        if found[role] is not None and found[role] == found[other]:
            raise DataError(
                f"{table.label}: column {found[role]!r} cannot be both {role} and {other}: give {other}=..."
            )
