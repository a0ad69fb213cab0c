"""Modules as ONNX graphs with a free number of rows: what bundles hold to be answered with, made by torch at release."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from persona.errors import MismatchError

OPSET = 18
MOST_ROWS = 1 << 16


def compile_graph(module: nn.Module, example: Mapping[str, Tensor], outputs: list[str], free: Collection[str]) -> Any:
    """The graph of ``module`` as a message of ONNX.

    Args:
        module: inputs of ``example`` in their order -> ``outputs``.
        example: of every input, by name, with more than one row where rows are free.
        outputs: their names.
        free: inputs of which any number of rows, the same in all of them, can be given.

    Raises:
        MismatchError: the module takes the number of rows for a constant.
    """
    rows = torch.export.Dim("rows", min=1, max=MOST_ROWS)
    # What earlier exports traced is not compared with: comparing runs generated code, up to a limit of tries, and crashed under coverage.
    torch.compiler.reset()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter announces changes of its own libraries
        program = torch.onnx.export(
            module.eval(),
            tuple(example.values()),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=list(example),
            output_names=outputs,
            dynamic_shapes={name: {0: rows} if name in free else None for name in example},
        )
    assert program is not None
    graph = without_traces(program.model_proto)
    for entry in graph.graph.input:
        if entry.name in free and entry.type.tensor_type.shape.dim[0].HasField("dim_value"):
            raise MismatchError(
                f"the compiled graph of {type(module).__name__} reads a fixed number of rows only, where any is "
                "needed: this host or editor uses the number of rows as a constant"
            )
    return graph


def without_traces(model: Any) -> Any:
    """``model``, a message of ONNX, without the exporter's notes: each of its nodes tells where the sources lie on this machine."""
    for holder in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        del holder.metadata_props[:]
    return model
