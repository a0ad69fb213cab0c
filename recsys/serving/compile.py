"""What answers are made with, compiled once at release: two ONNX graphs and the edit tables.

    edit.onnx           items, lengths -> codes, unbounded edits
    rank.onnx           items, lengths, bounded edits, k -> the k best items, all scores
    tables.safetensors  levels, bounds and prototypes (see ``persona.cloud``)
    items.safetensors   only of large catalogues, or if quantised: item tables that the graphs do without (``recsys.serving.item_tables``);
                        the graphs read the history's rows then, and rank.onnx gives user vectors (B, d)

Between the two stands the choice of the level, so that an edit is judged before it is used, and so that a graph need not know
the prototypes. ``recsys.serving.recommender`` runs them, without torch. Eager torch answers a single history several times more slowly, for
its cost at batch 1 is the launching of some two hundred small operations.

Shapes: B histories, T context length, V items, P entries of a flat edit.
"""

from __future__ import annotations

from typing import Any

import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from persona.compiling import compile_graph
from persona.editor import ParameterEditor
from persona.edits import Edit
from persona.errors import ConfigError
from persona.prototypes import PrototypeBank
from persona.prototypes.tables import edit_tables
from recsys.data.batches import Context
from recsys.hosts.sequential import SequentialHost, UserState
from recsys.personalised import Personalised
from recsys.serving.graphs import EDIT, EMBEDDINGS, ITEM_TABLES, RANK, TABLES, VECTORS
from recsys.serving.item_tables import as_table, to_bytes

# Items that are ranked within the graph; of more, all scores of a batch would take too much memory.
IN_GRAPH = 100_000
_EXAMPLE_ROWS = 2  # more than one, so that the batch stays free


class _Editing(nn.Module):
    """Items (B, T), lengths (B,) -> codes (B, L, d), unbounded edits (B, P)."""

    def __init__(self, model: Personalised) -> None:
        super().__init__()
        self.model = model

    def forward(self, items: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        editor = self.model.editor
        assert editor is not None
        codes = editor.codes(self.model.host.context_features(Context(items, lengths)), lengths)
        return codes, editor.unbounded(codes).flat()


class _Ranking(nn.Module):
    """Items (B, T), lengths (B,), bounded edits (B, P) -> scores (B, V): column i - 1 is item i."""

    item_vectors: Tensor

    def __init__(self, model: Personalised) -> None:
        super().__init__()
        self.host = model.host
        with torch.no_grad():
            self.register_buffer("item_vectors", model.host.item_vectors()[1:].clone())

    def forward(self, items: Tensor, lengths: Tensor, edit: Tensor) -> Tensor:
        host = self.host
        state = host.encode(Context(items, lengths))
        with host.adaptive.applied(Edit.from_flat(edit, host.adaptive.specs)):
            return host.match(state, self.item_vectors)


class _EditingOfHistory(nn.Module):
    """Embedded histories (B, T, d), lengths (B,) -> codes (B, L, d), unbounded edits (B, P)."""

    def __init__(self, editor: ParameterEditor) -> None:
        super().__init__()
        self.editor = editor

    def forward(self, history: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        codes = self.editor.codes(history, lengths)
        return codes, self.editor.unbounded(codes).flat()


class _Users(nn.Module):
    """Embedded histories (B, T, d), lengths (B,), bounded edits (B, P) -> user vectors (B, d)."""

    def __init__(self, host: SequentialHost) -> None:
        super().__init__()
        self.host = host

    def forward(self, history: Tensor, lengths: Tensor, edit: Tensor) -> Tensor:
        state = self.host.encode_history(history, lengths)
        assert isinstance(state, UserState)
        return self.host.user_vectors(state.users, Edit.from_flat(edit, self.host.adaptive.specs))


def compile_model(model: Personalised, bank: PrototypeBank | None = None, table: str = "") -> dict[str, bytes]:
    """The compiled files by name; those of the editor only where there is one. Takes some seconds.

    Args:
        model: host and editor.
        bank: prototypes of this host and editor.
        table: one of ``recsys.serving.item_tables.KINDS`` keeps the items in tables beside the graphs, in so many bits; by default they
            are within the graphs up to ``IN_GRAPH`` items, and beyond in float32 tables, if the host ranks by inner products.

    Raises:
        ConfigError: unknown table, or the host does not rank by inner products.
        MismatchError: the bank was made with another host or editor.
    """
    model = model.eval()
    sequential = isinstance(model.host, SequentialHost)
    if table and not sequential:
        raise ConfigError(
            f"{type(model.host).__name__} looks at the history anew for every item, so it has no item table to search: "
            "release SASRec or GRU4Rec, or leave the table out"
        )
    if table or (sequential and model.host.config.n_items > IN_GRAPH):
        return _beside_tables(model, bank, table or "float32")
    length, specs = model.host.config.max_length, model.host.adaptive.specs
    items, lengths = torch.ones(_EXAMPLE_ROWS, length, dtype=torch.int64), torch.full((_EXAMPLE_ROWS,), length)
    edits = torch.zeros(_EXAMPLE_ROWS, sum(spec.parameters for spec in specs))
    rank = _export(_Ranking(model), {"items": items, "lengths": lengths, "edit": edits}, ["scores"])
    _add_top_k(rank)
    files = {RANK: rank.SerializeToString()}
    if model.editor is not None:
        editing = _export(_Editing(model), {"items": items, "lengths": lengths}, ["codes", "unbounded"])
        files |= {EDIT: editing.SerializeToString()} | compile_tables(model.editor, bank)
    return files


def compile_tables(editor: ParameterEditor, bank: PrototypeBank | None) -> dict[str, bytes]:
    """The one compiled file that depends on the prototype bank.

    Raises:
        MismatchError: the bank was made with another host or editor.
    """
    return {TABLES: edit_tables(editor, bank)}


def _beside_tables(model: Personalised, bank: PrototypeBank | None, table: str) -> dict[str, bytes]:
    """The files of a host whose items are kept in tables."""
    host = model.host
    assert isinstance(host, SequentialHost)
    with torch.no_grad():
        embeddings = host.embed(torch.arange(host.config.n_items + 1)).numpy()
        vectors = host.item_vectors()[1:].numpy()
    history = torch.zeros(_EXAMPLE_ROWS, host.config.max_length, embeddings.shape[1])
    lengths = torch.full((_EXAMPLE_ROWS,), host.config.max_length)
    edits = torch.zeros(_EXAMPLE_ROWS, sum(spec.parameters for spec in host.adaptive.specs))
    users = _export(_Users(host), {"history": history, "lengths": lengths, "edit": edits}, ["users"])
    tables = {EMBEDDINGS: as_table(embeddings, table), VECTORS: as_table(vectors, table)}
    files = {RANK: users.SerializeToString(), ITEM_TABLES: to_bytes(tables)}
    if model.editor is not None:
        editing = _EditingOfHistory(model.editor)
        graph = _export(editing, {"history": history, "lengths": lengths}, ["codes", "unbounded"])
        files |= {EDIT: graph.SerializeToString()} | compile_tables(model.editor, bank)
    return files


def _export(module: nn.Module, example: dict[str, Tensor], outputs: list[str]) -> Any:
    """The graph of ``module``, with the batch left free."""
    return compile_graph(module, example, outputs, example)


def _add_top_k(model: onnx.ModelProto) -> None:
    """Rank in the graph: a number k in, the best k scores (B, k) and their positions out."""
    graph = model.graph
    graph.input.append(helper.make_tensor_value_info("k", TensorProto.INT64, [1]))
    graph.node.append(helper.make_node("TopK", ["scores", "k"], ["best", "positions"], axis=1, largest=1, sorted=1))
    rows = graph.output[0].type.tensor_type.shape.dim[0].dim_param or "rows"
    graph.output.append(helper.make_tensor_value_info("best", TensorProto.FLOAT, [rows, "k"]))
    graph.output.append(helper.make_tensor_value_info("positions", TensorProto.INT64, [rows, "k"]))
