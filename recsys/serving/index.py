"""The best items of a large catalogue by inner product: exact, in blocks, or by a faiss index.

Exact retrieval needs memory for one block of scores, whatever the size of the catalogue. faiss is an option, for catalogues of
which a block-wise pass takes too long; it is not installed with the project.

Shapes: B queries, V items, d width, k best.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from persona.errors import ConfigError, MismatchError
from recsys.serving.item_tables import FloatArray, Vectors

# Numbers of a block of scores, or of vectors where these are more: 4 MiB, which stay in the cache between product and choice.
BLOCK_NUMBERS = 1 << 20
SMALLEST_BLOCK = 1 << 12


class Index(Protocol):
    """Finds the best items."""

    def search(self, queries: FloatArray, k: int) -> tuple[FloatArray, NDArray[np.int64]]:
        """Scores (B, k), falling, and rows 0..V-1 of the best items (B, k), for queries (B, d)."""


class ExactIndex:
    """All items, block by block; ties go to the lower row.

    Args:
        vectors: (V, d) of the items, quantised or not.
    """

    def __init__(self, vectors: Vectors) -> None:
        self.vectors = vectors

    def search(self, queries: FloatArray, k: int) -> tuple[FloatArray, NDArray[np.int64]]:
        """Scores (B, k), falling, and rows of the best items (B, k); -inf where a query is not finite.

        Raises:
            ConfigError: k is below 1 or beyond V.
            MismatchError: queries of another width.
        """
        count, queries = len(self.vectors), _checked(queries, self.vectors.width, k, len(self.vectors))
        best = np.full((len(queries), k), -np.inf, dtype=np.float32)
        rows = np.full((len(queries), k), count, dtype=np.int64)
        size = self._block(len(queries))
        for start in range(0, count, size):
            scores = queries @ self.vectors.rows(slice(start, start + size)).T
            best, rows = _merged(best, rows, scores, start)
        return best, np.where(rows == count, 0, rows)

    def scores(self, queries: FloatArray) -> FloatArray:
        """(B, d) -> (B, V), for those who want all of them."""
        queries = _checked(queries, self.vectors.width, 1, len(self.vectors))
        size = self._block(len(queries))
        starts = range(0, len(self.vectors), size)
        return np.concatenate([queries @ self.vectors.rows(slice(s, s + size)).T for s in starts], axis=1)

    def _block(self, queries: int) -> int:
        """Rows of a block."""
        return max(SMALLEST_BLOCK, BLOCK_NUMBERS // max(queries, self.vectors.width))


@dataclass(frozen=True)
class IndexConfig:
    """How the best items are found.

    Attributes:
        factory: what faiss is to build (see ``FaissIndex``); empty for all items, block by block.
        probes: lists that an ``IVF`` index looks into.

    Raises:
        ConfigError: probes below 1.
    """

    factory: str = ""
    probes: int = 32

    def __post_init__(self) -> None:
        if self.probes < 1:
            raise ConfigError(f"probes is {self.probes}, but an index has to look into at least one list")

    def index(self, vectors: Vectors) -> Index:
        """The index of ``vectors`` (V, d)."""
        return FaissIndex(vectors, self.factory, self.probes) if self.factory else ExactIndex(vectors)


EXACT = IndexConfig()


class FaissIndex:
    """An approximate index, built in memory.

    Args:
        vectors: (V, d) of the items.
        factory: what to build, in the words of ``faiss.index_factory``: ``IVF1024,Flat``, ``HNSW32``, ...
        probes: lists that an ``IVF`` index looks into.

    Raises:
        ConfigError: faiss is not installed, or knows no such index.

    Example::

        scores, rows = FaissIndex(FloatTable(item_vectors), "IVF1024,Flat", probes=32).search(queries, k=10)
    """

    def __init__(self, vectors: Vectors, factory: str, probes: int = 1) -> None:
        faiss = _faiss()
        faiss.omp_set_num_threads(1)
        self.width, self.count = vectors.width, len(vectors)
        try:
            self._index = faiss.index_factory(self.width, factory, faiss.METRIC_INNER_PRODUCT)
        except RuntimeError as error:
            raise ConfigError(
                f"faiss cannot build {factory!r}: give an index such as 'IVF1024,Flat' or 'HNSW32'"
            ) from error
        values = np.ascontiguousarray(vectors.rows(slice(None)))
        self._index.train(values)
        self._index.add(values)
        if hasattr(self._index, "nprobe"):
            self._index.nprobe = probes

    def search(self, queries: FloatArray, k: int) -> tuple[FloatArray, NDArray[np.int64]]:
        """Scores (B, k), falling, and rows of the items found (B, k); row 0 at -inf where fewer than k were found.

        Raises:
            ConfigError: k is below 1 or beyond V.
            MismatchError: queries of another width.
        """
        queries = _checked(queries, self.width, k, self.count)
        scores, rows = self._index.search(np.ascontiguousarray(queries), k)
        missing = rows < 0
        return np.where(missing, -np.inf, scores).astype(np.float32), np.where(missing, 0, rows)


def recall(found: NDArray[np.int64], exact: NDArray[np.int64]) -> float:
    """Mean share of the best rows (B, k) that were found (B, k)."""
    pairs = zip(found.tolist(), exact.tolist(), strict=True)
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in pairs]))


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ConfigError(
            "faiss is not installed: run `pip install faiss-cpu`, or retrieve exactly, which needs nothing else"
        ) from error
    return faiss


def _checked(queries: FloatArray, width: int, k: int, count: int) -> FloatArray:
    if queries.ndim != 2 or queries.shape[1] != width:
        raise MismatchError(f"these items have vectors of width {width}, but queries have the shape {queries.shape}")
    if not 1 <= k <= count:
        raise ConfigError(f"{k} items were asked for, but there are {count}: ask for 1 to {count}")
    return queries.astype(np.float32, copy=False)


def _merged(
    best: FloatArray, rows: NDArray[np.int64], scores: FloatArray, start: int
) -> tuple[FloatArray, NDArray[np.int64]]:
    """The best k of what was found so far, (B, k), and a further block of scores (B, n) whose first row is ``start``."""
    k, n = best.shape[1], scores.shape[1]
    # Later rows lose ties, so only what is strictly better than the worst one so far can enter.
    better = scores > best[:, -1:]
    if better.sum(axis=1).max(initial=0) > 4 * k < n:
        better &= scores >= np.partition(scores, n - k, axis=1)[:, n - k, None]
    query, column = np.nonzero(better)
    whose = np.concatenate([np.repeat(np.arange(len(best)), k), query])
    values = np.concatenate([best.ravel(), scores[query, column]])
    places = np.concatenate([rows.ravel(), column + start])
    order = np.lexsort((places, -values, whose))
    first = np.searchsorted(whose[order], np.arange(len(best)))
    kept = order[first[:, None] + np.arange(k)]
    return values[kept], places[kept]
