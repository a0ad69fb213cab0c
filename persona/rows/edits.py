"""From sums to rows: an edited row is what its events say, as far as there are more of them than training had.

With the sums of ``sums.py``, the base table E0 and c_i, how often training saw row i:

    x_i    = S_i / (n_i + 3)                               the mean message, less sure the fewer there are
    r_i    = log(10^4 (counts_i + .5) / N)                 the rate of the row
    phi_i  = [x_i ; r_i ; 1 ; r_i x_i]                     2 d + 2 features
    W      = argmin sum |phi_i W - E0_i|^2 + ridge |W|^2   the row generator, over samples of training events
    a_i    = n_i / (n_i + k0 c_i), 1 where c_i < 5         the share of the edit
    E_i    = (1 - a_i) E0_i + a_i phi_i W
    bias_i = beta log(counts_i + .03 c_i + .3)

A row without events is E0_i, bit for bit. Nothing here has a gradient.

Shapes: R rows, d width, n rows of a message.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from persona.rows.sums import Read
from persona.wire import dequantise, quantise

SURE = 3.0  # messages at which the mean message counts half
KNOWN = 5  # times that training has to have seen a row to have learned it
PER = 1e4  # a rate is so many times its share of the events
PRIOR, LEAST = 0.03, 0.3  # of the bias: what an event of training counts for, and every row
RIDGE = 1.0

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]


def features(read: Read, rows: NDArray[np.integer]) -> Floats:
    """Phi of some rows, (n,) -> (n, 2 d + 2)."""
    x = read.sums[rows] / (read.read[rows] + SURE)[:, None]
    rate = np.log(PER * (read.counts[rows] + 0.5) / max(read.total, 1.0))[:, None]
    return np.concatenate([x, rate, np.ones_like(rate), rate * x], axis=1)


def fit_generator(samples: Iterable[Read], table: Singles, known: NDArray[np.integer]) -> tuple[Floats, float]:
    """The row generator: ridge regression from phi to the rows that training has learned.

    Args:
        samples: sums of random samples of training events; a row is learned from wherever it has a message.
        table: (R, d) E0.
        known: (R,) c.

    Returns:
        W (2 d + 2, d), and the share of the rows' variance that it explains on the samples (R^2).
    """
    width = table.shape[1]
    gram: Floats = RIDGE * np.eye(2 * width + 2)
    target: Floats = np.zeros((2 * width + 2, width))
    sums: Floats = np.zeros(width)
    squares, count = 0.0, 0
    for read in samples:
        rows = np.flatnonzero((read.read > 0) & (known >= KNOWN))
        x, y = features(read, rows), table[rows].astype(np.float64)
        gram += x.T @ x
        target += x.T @ y
        sums += y.sum(0)
        squares, count = squares + float((y**2).sum()), count + len(rows)
    generator: Floats = np.linalg.solve(gram, target).astype(np.float64)
    plain = gram - RIDGE * np.eye(len(gram))
    missed = squares - 2 * float((generator * target).sum()) + float((generator * (plain @ generator)).sum())
    spread = squares - float((sums**2).sum()) / max(count, 1)
    return generator, 1 - missed / spread if spread > 0 else 0.0


@dataclass(frozen=True)
class RowEdits:
    """How the rows of a table follow a stream.

    Attributes:
        base: (R, d) E0.
        known: (R,) c.
        generator: (2 d + 2, d) W; without one rows stay as they are.
        k0: events that one of training counts for; infinite: only rows that training has not learned move.
        beta: weight of the bias.
    """

    base: Singles
    known: NDArray[np.integer]
    generator: Floats | None
    k0: float = 0.1
    beta: float = 0.0

    def moved(self, read: Read) -> NDArray[np.int64]:
        """The rows that have an edit, ascending."""
        if self.generator is None:
            return np.zeros(0, dtype=np.int64)
        with_message = read.read > 0
        return np.flatnonzero(with_message & (self.known < KNOWN) if np.isinf(self.k0) else with_message)

    def rows(self, read: Read, rows: NDArray[np.integer]) -> Singles:
        """Some rows that ``moved`` names, as they are now: (n,) -> (n, d)."""
        assert self.generator is not None
        share = self._share(read.read[rows], rows)[:, None]
        made: Floats = (1 - share) * self.base[rows] + share * (features(read, rows) @ self.generator)
        return made.astype(np.float32)

    def table(self, read: Read) -> Singles:
        """(R, d) the whole table as it is now, a copy."""
        table, moved = self.base.copy(), self.moved(read)
        if len(moved):
            table[moved] = self.rows(read, moved)
        return table

    def bias(self, read: Read) -> Singles | None:
        """(R,) what is added to the score of every row; ``None`` where beta is 0."""
        if not self.beta:
            return None
        bias: Floats = self.beta * np.log(read.counts + PRIOR * self.known + LEAST)
        return bias.astype(np.float32)

    def bound(self, read: Read, at_row: int, in_all: int) -> tuple[Floats, Floats]:
        """How far added events can move each row and its bias: (R,) Euclidean lengths, and (R,).

        With j = ``at_row`` more events at a row and at most ``in_all`` more altogether, whatever their messages, whose length is
        at most M, that of the longest base row; a' is the share with them, and r' the rate, which lies between
        log N / (N + in_all) below r and log (counts + j + .5) / (counts + .5) above it:

            |E' - E| <= (a' - a) |phi W - E0| + a' (j (M + |x|) / (n + j + 3) max |A + r' B| + max |r' - r| |b + x B|)

        with W = [A; b; c; B] and the spectral norm, which is largest at an end of the range of r'.

        Args:
            read: sums without the added events.
            at_row: events at one row, as ``Caps.most`` says of colluding users.
            in_all: likewise.
        """
        shift = self.beta * np.log1p(at_row / (read.counts + PRIOR * self.known + LEAST))
        if self.generator is None:
            return np.zeros(len(self.base)), shift
        every, width = np.arange(len(self.base)), self.base.shape[1]
        phi = features(read, every)
        x, rate = phi[:, :width], phi[:, width]
        a, b, across = self.generator[:width], self.generator[width], self.generator[width + 2 :]
        up = np.log1p(at_row / (read.counts + 0.5))
        down = np.log(max(read.total + in_all, 1.0) / max(read.total, 1.0))
        ends = (np.linalg.norm(a + r * across, 2) for r in (float((rate - down).min()), float((rate + up).max())))
        before, after = (self._share(read.read + j, every) for j in (0, at_row))
        longest = float(np.linalg.norm(self.base, axis=1).max())
        turned = at_row * (longest + np.linalg.norm(x, axis=1)) / (read.read + at_row + SURE) * max(ends)
        scaled = np.maximum(up, down) * np.linalg.norm(b + x @ across, axis=1)
        gap = np.linalg.norm(phi @ self.generator - self.base, axis=1)
        return (after - before) * gap + after * (turned + scaled), shift

    def _share(self, events: Floats, rows: NDArray[np.integer]) -> Floats:
        """a, (n,); 0 where a row has no event."""
        prior = np.where(self.known[rows] < KNOWN, 0.0, np.maximum(self.known[rows], 1) * self.k0)
        share: Floats = events / np.where(events > 0, events + prior, 1.0)
        return share


def row_bytes(width: int) -> int:
    """Bytes of an edited row on the wire: int8 numbers, a float32 scale, a float16 bias; its index not counted."""
    return width + 4 + 2


def encode_rows(rows: Singles, bias: Singles) -> bytes:
    """Rows (n, d) and biases (n,) as ``row_bytes`` each: steps, then scale, then bias."""
    steps, scales = quantise(rows.astype(np.float64))
    parts = (steps.view(np.uint8), scales[:, None].view(np.uint8), bias.astype("<f2")[:, None].view(np.uint8))
    return np.concatenate(parts, axis=1).tobytes()


def decode_rows(message: bytes, width: int) -> tuple[Singles, Singles]:
    """Inverse of ``encode_rows``, as near as int8 allows: rows (n, d) and biases (n,)."""
    raw = np.frombuffer(message, dtype=np.uint8).reshape(-1, row_bytes(width))
    scales = np.ascontiguousarray(raw[:, width : width + 4]).view("<f4")[:, 0]
    bias = np.ascontiguousarray(raw[:, width + 4 :]).view("<f2")[:, 0].astype(np.float32)
    return dequantise(np.ascontiguousarray(raw[:, :width]).view(np.int8), scales), bias
