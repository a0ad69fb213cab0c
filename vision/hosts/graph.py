"""The body of a host as a compiled graph: many features of large images in a fraction of the time.

Shapes: N images, C channels, H height, W width, F features.
"""

from __future__ import annotations

import warnings
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from persona.graphs import open_graph
from vision.hosts.base import Host
from vision.hosts.norms import own_statistics


class CompiledBody:
    """The features of a host without an edit; a graph is made for every number of images that comes.

    Args:
        host: in evaluation mode, and not trained while this is used.
        prior: normalise by the images themselves, the running statistics weighing as this many; ``None`` takes the running
            statistics alone.
    """

    def __init__(self, host: Host, prior: float | None = None) -> None:
        self.host, self.prior = host, prior
        self._sessions: dict[tuple[int, ...], object] = {}

    def __call__(self, images: Tensor) -> Tensor:
        """(N, C, H, W) uint8 -> (N, F)."""
        shape = tuple(images.shape)
        if shape not in self._sessions:
            self._sessions[shape] = open_graph(_graph(_Body(self.host, self.prior).eval(), images))
        [features] = self._sessions[shape].run(None, {"images": images.numpy()})  # type: ignore[attr-defined]
        return torch.from_numpy(np.asarray(features))


class _Body(nn.Module):
    def __init__(self, host: Host, prior: float | None) -> None:
        super().__init__()
        self.host, self.prior = host, prior

    def forward(self, images: Tensor) -> Tensor:
        own = nullcontext() if self.prior is None else own_statistics(self.prior)
        with own, self.host.norms.applied(1):
            features: Tensor = self.host.body(self.host.scaled(images))
        return features


@torch.no_grad()
def _graph(body: _Body, images: Tensor) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter announces changes of its own libraries
        program = torch.onnx.export(body, (images,), dynamo=True, verbose=False, input_names=["images"])
    assert program is not None
    graph: bytes = program.model_proto.SerializeToString()
    return graph
