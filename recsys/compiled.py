"""One device at a time, without torch's overhead: context in, edited scores of the catalogue out, as one ONNX graph.

The graph holds host, editor and item vectors. It answers a single history several times faster than eager torch, whose cost at
batch 1 is the launching of some two hundred small operations; for batches torch is the better choice.

Shapes: T context length, V items.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recsys.batches import Context
from recsys.personalised import Personalised


class _SingleDevice(nn.Module):
    """Items (1, T) and lengths (1,) -> logits (1, V + 1) and the edit's norm (1,)."""

    item_vectors: Tensor

    def __init__(self, model: Personalised) -> None:
        super().__init__()
        self.model = model
        with torch.no_grad():
            self.register_buffer("item_vectors", model.host.item_vectors())

    def forward(self, items: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        context = Context(items, lengths)
        edit = self.model.edit(context)
        assert edit is not None
        with self.model.host.adaptive.applied(edit):
            scores = self.model.host.match(self.model.host.encode(context), self.item_vectors)
        return scores, edit.norm()


def compile_model(model: Personalised) -> bytes:
    """The ONNX graph of a host with an editor. Takes some seconds: done once, at release."""
    length = model.host.config.max_length
    example = (torch.ones(1, length, dtype=torch.int64), torch.tensor([length]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter announces changes of its own libraries
        program = torch.onnx.export(
            _SingleDevice(model.eval()).eval(),
            example,
            dynamo=True,
            verbose=False,
            input_names=["items", "lengths"],
            output_names=["scores", "norm"],
        )
    assert program is not None
    graph: bytes = program.model_proto.SerializeToString()
    return graph


class CompiledModel:
    """A compiled graph, ready to run on one thread.

    Args:
        graph: what ``compile_model`` returned.
        length: T.
    """

    def __init__(self, graph: bytes, length: int) -> None:
        self.graph, self.length = graph, length
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def score(self, known: Sequence[int]) -> tuple[NDArray[np.float32], float]:
        """Item indices of one history, not empty -> logits (V + 1,), column 0 -inf, and the norm of the edit."""
        tail = known[-self.length :]
        items = np.zeros((1, self.length), dtype=np.int64)
        items[0, : len(tail)] = tail
        scores, norm = self._session.run(None, {"items": items, "lengths": np.array([len(tail)])})
        scores[0, 0] = -np.inf
        return scores[0], float(norm[0])
