"""From a log of any form and size to sequences on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl

from recsys.data import catalogue
from recsys.data.log.mapping import map_columns
from recsys.data.log.reading import names_parquet, open_table, read_log
from recsys.data.log.streaming import NotStreamable, PreparedLog, stream_log
from recsys.data.log.tables import ParquetTable
from recsys.data.sequences import build_sequences

# Parquet logs of more rows are prepared block by block: below, reading at once is faster and takes less than a gigabyte.
AT_ONCE = 10_000_000


def prepare_log(
    source: str | Path,
    folder: Path,
    *,
    columns: Mapping[str, str | None] | None = None,
    min_user_events: int = 1,
    min_item_events: int = 1,
    baskets: bool | None = None,
    at_once: int = AT_ONCE,
) -> PreparedLog:
    """Read a log and keep it as ``SequenceData``; the folder appears at once or not at all.

    Args:
        source: a data set of the catalogue, or a path as in ``recsys.log.read_log``.
        folder: where to.
        columns: explicit names of the columns ``user``, ``item``, ``time``, ``title``, and the ``separator``.
        min_user_events: as in ``build_sequences``, like the rest.
        min_item_events: likewise.
        baskets: likewise.
        at_once: rows up to which a Parquet log is read at once. What is written does not depend on it.

    Raises:
        DataError: the log is broken, or the filter leaves too little.
        FormatError: the folder holds something else.
    """
    named = {role: column for role, column in (columns or {}).items() if column is not None}
    limits = {"min_user_events": min_user_events, "min_item_events": min_item_events}
    if named or str(source) not in catalogue.CATALOGUE:
        found = _streamed(source, folder, named, limits, baskets, at_once)
        if found is not None:
            return found
    log = read_log(source, **named) if named else catalogue.resolve(source)
    data = build_sequences(log, **limits, baskets=baskets)
    data.save(folder)
    counts = np.diff(data.offsets)
    return PreparedLog(log.report, data.user_ids, counts, data.n_items, data.baskets, data.digest, data.meta)


def _streamed(
    source: str | Path,
    folder: Path,
    named: Mapping[str, str],
    limits: Mapping[str, int],
    baskets: bool | None,
    at_once: int,
) -> PreparedLog | None:
    """The log prepared block by block; ``None`` if it is small, no Parquet, or can only be understood as a whole."""
    explicit = {role: named.get(role) for role in ("user", "item", "time", "title")}
    if not names_parquet(Path(source)):
        return None
    table = open_table(
        source, named=[column for column in explicit.values() if column], separator=named.get("separator")
    )
    if not isinstance(table, ParquetTable) or table.rows <= at_once:
        return None
    try:
        return stream_log(table, map_columns(table, explicit), folder, **limits, baskets=baskets)
    except NotStreamable:
        return None
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise table.broken(error) from error
