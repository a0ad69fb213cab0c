"""The folder that sequences are kept in, and its digest; read and written whole by ``SequenceData``, piece by piece by
``recsys.log.streaming``.

    sequences.json   format, digest, counts, how time is to be read, the report of the log
    events.parquet   item and time of every event, grouped by user
    users.parquet    id and number of events of every user
    items.parquet    id, and title where there are any, of every item

Shapes: N events, U users, V items.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from persona.prepared import PreparedFormat
from persona.storage import write_json
from recsys.data.columns import ITEM, TIME, TITLE, USER

FORMAT = PreparedFormat(
    "persona-sequences", 1, "sequences.json", "sequence data", "a log", ("digest", "baskets", "ordered_only", "meta")
)
EVENTS, USERS, ITEMS = "events.parquet", "users.parquet", "items.parquet"
# The name of the column that holds items 1..V, not their ids.
INDEX = "item"
# Events, or ids, that are looked at together.
BLOCK = 1 << 22

Flags = Mapping[str, bool]


def digest(
    items: Iterable[NDArray[np.int32]],
    times: Iterable[NDArray[np.int64]],
    offsets: NDArray[np.int64],
    ids: Iterable[pl.Series],
    flags: Flags,
) -> str:
    """SHA-256, in hex, over events, users, items and how time is to be read.

    Args:
        items: int32 (N,) in pieces of any size.
        times: int64 (N,) likewise.
        offsets: (U + 1,).
        ids: of users and of items.
        flags: ``baskets`` and ``ordered_only``.
    """
    sha = hashlib.sha256(f"{FORMAT.name}|{flags['baskets']}|{flags['ordered_only']}".encode())
    parts: list[tuple[str, int, Iterable[NDArray[Any]]]] = [
        ("<i4", int(offsets[-1]), items),
        ("<i8", int(offsets[-1]), times),
        ("<i8", len(offsets), [offsets]),
    ]
    for kind, length, pieces in parts:
        sha.update(f"|{kind}|{(length,)}|".encode())
        for piece in pieces:
            sha.update(np.ascontiguousarray(piece, dtype=kind).data)
    for series in ids:
        for start in range(0, len(series), BLOCK):
            text = "\0".join(series.slice(start, BLOCK).to_list())
            sha.update((("\0" if start else "") + text).encode())
    return sha.hexdigest()


def write_tables(
    new: Path, user_ids: pl.Series, counts: NDArray[np.integer], item_ids: pl.Series, titles: pl.Series | None
) -> None:
    """Write users (U,) with how many events each has, and items (V,) with their titles."""
    pl.DataFrame({USER: user_ids, "events": counts}).write_parquet(new / USERS)
    items = pl.DataFrame({ITEM: item_ids})
    if titles is not None:
        items = items.with_columns(titles.alias(TITLE))
    items.write_parquet(new / ITEMS)


def write_header(new: Path, found: str, flags: Flags, counts: Mapping[str, int], meta: Mapping[str, Any]) -> None:
    """Write what the folder is; ``counts`` are those of ``users``, ``items`` and ``events``."""
    header = {
        "format": FORMAT.name,
        "version": FORMAT.version,
        "digest": found,
        **flags,
        "counts": dict(counts),
        "meta": dict(meta),
    }
    write_json(new / FORMAT.header, header)


def column_pieces(path: Path, column: str) -> Iterator[NDArray[Any]]:
    """A column of a Parquet file, piece by piece."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=BLOCK, columns=[column]):
            yield batch.column(0).to_numpy()


def event_schema() -> Any:
    """The columns of the file of events, for Arrow."""
    import pyarrow as pa

    return pa.schema([(INDEX, pa.int32()), (TIME, pa.int64())])
