"""ONNX graphs, ready to run: on a device, in a service, and wherever torch would be slower."""

from __future__ import annotations

from collections.abc import Mapping

import onnxruntime

from persona.errors import FormatError


def open_graph(
    graph: bytes,
    source: str = "this graph",
    threads: int = 1,
    constants: Mapping[str, onnxruntime.OrtValue] | None = None,
) -> onnxruntime.InferenceSession:
    """A graph, ready to run on the CPU.

    Args:
        graph: as bytes.
        source: where it comes from.
        threads: compute threads.
        constants: its weights that lie outside of it, by name.

    Raises:
        FormatError: it is no graph that this onnxruntime runs.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # its warnings are about how graphs could be smaller
    try:
        if constants:
            options.add_external_initializers(list(constants), list(constants.values()))
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises classes of its own making
        raise FormatError(
            f"{source} is no graph that this onnxruntime runs ({error}): export the bundle again"
        ) from error
