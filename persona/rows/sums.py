"""What is remembered of a stream for row edits: for every row how many events it had, and the sum of their messages.

An event e of row i adds its message m_e, the mean embedding of what its context held:

    S_i = sum m_e,    n_i = events with a message,    counts_i = all events,    N = sum of counts

Messages are rounded to multiples of 2^-20, so that sums in float64 are exact: they are the same bits in whatever order they are
added and merged, and an event that is taken out leaves no trace. With a half-life every event weighs 2^((moment - origin) / h)
when it is added, and all are divided by what that has grown to when they are read. The origin follows the stream in steps of
whole half-lives, and each such step rounds once more: with a half-life, bits are the same within ``SPAN`` half-lives, and beyond
that numbers are the same to 2^-20 a step.

Shapes: R rows, d width, E events.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from persona.arrays import arrays_from_bytes, arrays_to_bytes, digest_arrays, read_file
from persona.errors import ConfigError, DataError, FormatError, MismatchError
from persona.storage import atomic_file, digest_json

FORMAT, FORMAT_VERSION = "persona-row-sums", 1
STEPS = 2.0**20  # a unit has so many
SPAN = 8  # half-lives that the origin may be behind

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Read:
    """Sums as they are at a moment.

    Attributes:
        sums: (R, d) S.
        read: (R,) n, events with a message.
        counts: (R,) all events.
        total: N.
    """

    sums: Floats
    read: Floats
    counts: Floats
    total: float


class RowSums:
    """Sums of a stream, by row.

    Args:
        rows: R.
        width: d.
        half_life: in the unit of the moments that events are given with, after which one counts half.

    Raises:
        ConfigError: the half-life is not positive.
    """

    def __init__(self, rows: int, width: int, half_life: float = np.inf) -> None:
        if not half_life > 0:
            raise ConfigError(f"a half-life of {half_life} forgets everything at once: give a positive one")
        self.half_life, self.origin = float(half_life), 0.0
        self.sums, self.read, self.counts = np.zeros((rows, width)), np.zeros(rows), np.zeros(rows)

    def add(
        self,
        rows: NDArray[np.integer],
        messages: NDArray[np.floating],
        has: NDArray[np.bool_] | None = None,
        moments: Floats | None = None,
        *,
        sign: int = 1,
    ) -> None:
        """Add events, or take out with ``sign`` -1 what was added before.

        Args:
            rows: (E,) of each event.
            messages: (E, d).
            has: (E,) whether an event has a message; all do by default.
            moments: (E,) when; wanted where there is a half-life.
            sign: 1 or -1.

        Raises:
            DataError: messages that are not finite, or a half-life without moments.
        """
        if not len(rows):
            return
        if not np.isfinite(messages).all():
            raise DataError("some messages are not finite: leave out the events that made them")
        weight = self._weights(len(rows), moments)
        present = weight if has is None else weight * has
        order = np.argsort(rows, kind="stable")
        first = np.flatnonzero(np.diff(rows[order], prepend=-1))
        touched = rows[order][first]
        parts = (_exact(messages * present[:, None]), _exact(present), _exact(weight))
        for kept, new in zip((self.sums, self.read, self.counts), parts, strict=True):
            kept[touched] += sign * np.add.reduceat(new[order], first)

    def merge(self, other: RowSums) -> None:
        """Add what another worker has summed up.

        Raises:
            MismatchError: its sums have another shape or half-life.
        """
        if self.sums.shape != other.sums.shape or self.half_life != other.half_life:
            raise MismatchError("these sums are of another table or half-life, so they cannot be added")
        self._rebase(max(self.origin, other.origin))
        factor = self._decay(other.origin - self.origin)
        for name, new in _arrays(other).items():
            np.add(mine := getattr(self, name), _exact(new * factor), out=mine)

    def at(self, moment: float = 0.0) -> Read:
        """The sums as they are at ``moment``, decayed until then."""
        factor = self._decay(self.origin - moment)
        counts = self.counts * factor
        return Read(self.sums * factor, self.read * factor, counts, float(counts.sum()))

    def _weights(self, events: int, moments: Floats | None) -> Floats:
        if np.isinf(self.half_life):
            return np.ones(events)
        if moments is None:
            raise DataError("sums with a half-life need the moment of every event")
        behind = (float(moments.max()) - self.origin) // self.half_life
        if behind > SPAN:
            self._rebase(self.origin + behind * self.half_life)
        return np.exp2((moments - self.origin) / self.half_life)

    def _rebase(self, origin: float) -> None:
        if origin == self.origin:
            return
        factor, self.origin = self._decay(self.origin - origin), origin
        self.sums, self.read, self.counts = (_exact(kept * factor) for kept in (self.sums, self.read, self.counts))

    def _decay(self, since: float) -> float:
        """What is left of a weight of one, the span ``since`` (negative: ago)."""
        return 1.0 if np.isinf(self.half_life) else float(np.exp2(since / self.half_life))


def save_sums(path: Path, sums: RowSums, table: str, about: Mapping[str, Any] | None = None) -> str:
    """Write sums into one file, atomically, and return their digest.

    Args:
        path: of the file.
        sums: to be kept.
        table: digest of the table that messages were read from.
        about: what else is to be known, as JSON values.
    """
    arrays = _arrays(sums)
    header = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "table": table,
        "half_life": None if np.isinf(sums.half_life) else sums.half_life,
        "origin": sums.origin,
        "about": dict(about or {}),
    }
    digest = digest_json([digest_arrays(arrays), header])
    with atomic_file(path) as temporary:
        temporary.write_bytes(arrays_to_bytes(arrays, header | {"digest": digest}))
    return digest


def load_sums(path: Path, table: str) -> tuple[RowSums, dict[str, Any]]:
    """Read what ``save_sums`` wrote, and what it says ``about`` it.

    Raises:
        FormatError: the file is missing, damaged, or something else.
        MismatchError: the sums are of another table.
    """
    arrays, header = arrays_from_bytes(read_file(path), str(path))
    if (header.get("format"), header.get("version")) != (FORMAT, FORMAT_VERSION):
        raise FormatError(f"{path} holds no sums of rows that this release reads: sum the events up again")
    digest = header.pop("digest", None)
    if digest_json([digest_arrays(arrays), header]) != digest:
        raise FormatError(f"{path} is damaged (its digest differs): sum the events up again")
    if header["table"] != table:
        raise MismatchError(
            f"{path} was summed up over the table {header['table'][:12]}, but {table[:12]} is to be edited: sum the events up "
            "again over this one"
        )
    rows, width = arrays["sums"].shape
    made = RowSums(rows, width, np.inf if header["half_life"] is None else header["half_life"])
    made.sums, made.read, made.counts, made.origin = arrays["sums"], arrays["read"], arrays["counts"], header["origin"]
    return made, header["about"]


def _arrays(sums: RowSums) -> dict[str, Floats]:
    return {"sums": sums.sums, "read": sums.read, "counts": sums.counts}


def _exact(values: Floats) -> Floats:
    return np.rint(values * STEPS) / STEPS
