"""The compiled graphs of a bundle and its tables, ready to run: what ``recsys.serving.compile`` makes, without torch.

A catalogue is ranked within the graph, or, where there are item tables, in blocks outside of it (see ``recsys.serving.index``): memory
is bounded then, and the tables can be quantised.

Shapes: B histories, T context length, V items, L layers, d code width, P entries of a flat edit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from persona.answering import Contexts
from persona.cloud import EditTables
from persona.errors import ConfigError, FormatError
from persona.graphs import open_graph
from recsys.serving.index import EXACT, ExactIndex, Index, IndexConfig
from recsys.serving.item_tables import Vectors, from_bytes

EDIT, RANK, TABLES, ITEM_TABLES = "edit.onnx", "rank.onnx", "tables.safetensors", "items.safetensors"
# Names within the file of item tables: (V + 1, d) embeddings that histories are looked up in, (V, d) vectors to be ranked.
EMBEDDINGS, VECTORS = "embeddings", "vectors"


class CompiledModel:
    """The two graphs of a bundle, each on one thread, and its tables.

    Args:
        files: what ``recsys.serving.compile.compile_model`` returned.
        length: T.
        index: how the best items are found where there are item tables.

    Attributes:
        tables: of the editor, ``None`` if the bundle is a host alone.

    Raises:
        ConfigError: an index is asked for, but items are ranked within the graph.
    """

    def __init__(self, files: Mapping[str, bytes], length: int, index: IndexConfig = EXACT) -> None:
        self.files, self.length = dict(files), length
        self._rank = open_graph(files[RANK])
        self._edit = open_graph(files[EDIT]) if EDIT in files else None
        self.tables = EditTables.from_bytes(files[TABLES]) if TABLES in files else None
        self._embeddings: Vectors | None = None
        self._exact: ExactIndex | None = None
        self._index: Index | None = None
        if ITEM_TABLES in files:
            self._embeddings, vectors = _item_tables(files[ITEM_TABLES])
            self._exact, self._index = ExactIndex(vectors), index.index(vectors)
        elif index.factory:
            raise ConfigError(
                f"this bundle ranks its items within the graph, where no {index.factory} can help: "
                "release it with --item-table float32, or serve it without --index"
            )
        self._size = {entry.name: entry.shape for entry in self._rank.get_inputs()}["edit"][1]

    def inputs(self, known: Sequence[Sequence[int]]) -> dict[str, NDArray[np.int64]]:
        """The last T items of every history, left-aligned (B, T), and how many there are (B,)."""
        items = np.zeros((len(known), self.length), dtype=np.int64)
        lengths = np.zeros(len(known), dtype=np.int64)
        for row, history in enumerate(known):
            tail = history[-self.length :]
            items[row, : len(tail)] = tail
            lengths[row] = len(tail)
        return {"items": items, "lengths": lengths}

    def contexts(self, inputs: Mapping[str, NDArray[np.int64]]) -> Contexts:
        """One pass of the editor.

        Raises:
            ConfigError: the bundle is a host without an editor.
        """
        if self._edit is None:
            raise ConfigError("this bundle is a host without an editor, so it makes no edits: release one with it")
        return Contexts(*self._edit.run(None, self._feed(inputs)))

    def _feed(self, inputs: Mapping[str, NDArray[np.int64]]) -> dict[str, NDArray[Any]]:
        """What the graphs read: items, or the rows of the table that they stand for, (B, T, d)."""
        if self._embeddings is None:
            return dict(inputs)
        items = inputs["items"]
        history = self._embeddings.rows(items.ravel()).reshape(*items.shape, -1)
        return {"history": history, "lengths": inputs["lengths"]}

    def rank(
        self, inputs: Mapping[str, NDArray[np.int64]], edits: NDArray[np.float32] | None, best: int, *, whole: bool
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32] | None]:
        """Scores (B, best) of the best items, falling, their indices, and with ``whole`` all scores (B, V).

        Args:
            inputs: of ``inputs``.
            edits: (B, P) bounded; ``None`` for the host as it is.
            best: how many, at most V; an index that finds fewer gives -inf to the rest.
            whole: whether the scores of all items are wanted; item i has column i - 1.
        """
        if edits is None:
            edits = np.zeros((len(inputs["lengths"]), self._size), dtype=np.float32)
        if self._index is not None and self._exact is not None:
            users = self._rank.run(["users"], {**self._feed(inputs), "edit": edits})[0]
            scores, rows = self._index.search(users, best)
            return scores, rows + 1, self._exact.scores(users) if whole else None
        names = ["best", "positions", "scores"] if whole else ["best", "positions"]
        found = self._rank.run(names, {**inputs, "edit": edits, "k": np.array([best], dtype=np.int64)})
        return found[0], found[1] + 1, found[2] if whole else None


def _item_tables(data: bytes) -> tuple[Vectors, Vectors]:
    tables = from_bytes(data)
    if set(tables) != {EMBEDDINGS, VECTORS} or len(tables[EMBEDDINGS]) != len(tables[VECTORS]) + 1:
        raise FormatError("the item tables do not fit together: release the bundle again")
    return tables[EMBEDDINGS], tables[VECTORS]
