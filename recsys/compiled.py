"""What a service runs of a bundle, made once at release: two ONNX graphs and the edit tables.

    edit.onnx           items, lengths -> codes, unbounded edits
    rank.onnx           items, lengths, bounded edits, k -> the k best items, all scores
    tables.safetensors  levels, bounds and prototypes (see ``persona.cloud``)

Between the two stands the choice of the level, so that an edit is judged before it is used, and so that a graph need not know
the prototypes. ``recsys.serving`` runs them, without torch. Eager torch answers a single history several times more slowly, for
its cost at batch 1 is the launching of some two hundred small operations.

Shapes: B histories, T context length, V items, P entries of a flat edit.
"""

from __future__ import annotations

import warnings
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from persona.edits import Edit
from persona.errors import MismatchError
from persona.prototypes import PrototypeBank
from persona.prototypes.tables import edit_tables
from recsys.batches import Context
from recsys.graphs import EDIT, RANK, TABLES
from recsys.personalised import Personalised

_EXAMPLE_ROWS = 2  # more than one, so that the batch stays free
_OPSET = 18


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


def compile_model(model: Personalised, bank: PrototypeBank | None = None) -> dict[str, bytes]:
    """The compiled files by name; those of the editor only where there is one. Takes some seconds.

    Raises:
        MismatchError: the bank was made with another host or editor.
    """
    model = model.eval()
    length, specs = model.host.config.max_length, model.host.adaptive.specs
    items, lengths = torch.ones(_EXAMPLE_ROWS, length, dtype=torch.int64), torch.full((_EXAMPLE_ROWS,), length)
    edits = torch.zeros(_EXAMPLE_ROWS, sum(spec.parameters for spec in specs))
    rank = _export(_Ranking(model), {"items": items, "lengths": lengths, "edit": edits}, ["scores"])
    _add_top_k(rank)
    files = {RANK: rank.SerializeToString()}
    if model.editor is not None:
        editing = _export(_Editing(model), {"items": items, "lengths": lengths}, ["codes", "unbounded"])
        files |= {EDIT: editing.SerializeToString(), TABLES: edit_tables(model.editor, bank)}
    return files


def _export(module: nn.Module, example: dict[str, Tensor], outputs: list[str]) -> Any:
    """The graph of ``module``, with the batch left free."""
    rows = torch.export.Dim("rows", min=1, max=1 << 16)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter announces changes of its own libraries
        program = torch.onnx.export(
            module.eval(),
            tuple(example.values()),
            dynamo=True,
            verbose=False,
            opset_version=_OPSET,
            input_names=list(example),
            output_names=outputs,
            dynamic_shapes={name: {0: rows} for name in example},
        )
    assert program is not None
    graph = program.model_proto
    for entry in graph.graph.input:
        if entry.type.tensor_type.shape.dim[0].HasField("dim_value"):
            raise MismatchError(
                f"the compiled graph of {type(module).__name__} reads a fixed number of rows only, where any is "
                "needed: this host or editor uses the batch size as a constant"
            )
    return graph


def _add_top_k(model: onnx.ModelProto) -> None:
    """Rank in the graph: a number k in, the best k scores (B, k) and their positions out."""
    graph = model.graph
    graph.input.append(helper.make_tensor_value_info("k", TensorProto.INT64, [1]))
    graph.node.append(helper.make_node("TopK", ["scores", "k"], ["best", "positions"], axis=1, largest=1, sorted=1))
    rows = graph.output[0].type.tensor_type.shape.dim[0].dim_param or "rows"
    graph.output.append(helper.make_tensor_value_info("best", TensorProto.FLOAT, [rows, "k"]))
    graph.output.append(helper.make_tensor_value_info("positions", TensorProto.INT64, [rows, "k"]))
