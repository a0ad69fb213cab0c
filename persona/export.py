"""Hosts as graphs for devices: the weights of the adaptive layers become inputs, so an edit needs no new export.

The folder that is written is the one that ``persona.device`` reads; its layout stands in ``persona.device.bundle``.
"""

from __future__ import annotations

import hashlib
import importlib.util
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from persona.adaptive import AdaptiveLayers
from persona.bounds import Bound
from persona.device.bundle import (
    ADAPTIVE,
    BANK,
    EXECUTORCH_GRAPH,
    FORMAT,
    FORMAT_VERSION,
    GRAPH,
    HEADER,
    POLICY,
)
from persona.device.policy import RequestPolicy
from persona.edits import DenseEdit, Edit
from persona.errors import ConfigError, MismatchError, nearest
from persona.prototypes import PrototypeBank, save_bank
from persona.storage import atomic_folder, save_tensors, write_json

FORMATS = ("onnx", "executorch")


@dataclass(frozen=True)
class DeviceModel:
    """What is exported.

    Attributes:
        task: of the device, for example ``recommendation``.
        module: data in, a tuple of outputs out; runs the adaptive layers of ``layers``.
        layers: the adaptive layers in it.
        host: digest of the host.
        data: an example of every data input, by name; its shapes are those of the graph.
        outputs: names of the outputs.
        bound: of the edits.
        scales: (L,) unit of the bound of each layer.
        bank: prototypes of the host.
        policy: when a device asks for an edit.
        settings: what the task needs to use the graph, as JSON values.
        files: what it needs besides, by file name.
    """

    task: str
    module: nn.Module
    layers: AdaptiveLayers
    host: str
    data: Mapping[str, Tensor]
    outputs: tuple[str, ...]
    bound: Bound
    scales: Tensor
    bank: PrototypeBank | None = None
    policy: RequestPolicy | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)


class _Whole(DenseEdit):
    """A layer's weights themselves, which take the place of the host's."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(..., in) -> (..., out)."""
        y = x @ self.weight[0]
        return y if self.bias is None else y + self.bias[0]


class _WithWeights(nn.Module):
    """Data and weights of the adaptive layers in, outputs out."""

    def __init__(self, module: nn.Module, layers: AdaptiveLayers) -> None:
        super().__init__()
        self.module, self.layers = module, layers

    def forward(self, data: tuple[Tensor, ...], weights: tuple[Tensor, ...]) -> Any:
        given = iter(weights)
        whole = {}
        for spec in self.layers.specs:
            weight = next(given).unsqueeze(0)
            whole[spec.name] = _Whole(bias=next(given).unsqueeze(0) if spec.bias else None, weight=weight)
        with self.layers.applied(Edit(whole)):
            return self.module(*data)


def adaptive_weights(layers: AdaptiveLayers) -> dict[str, Tensor]:
    """``<layer>.weight`` (in, out) and ``<layer>.bias`` (out,) of every adaptive layer: the graph's last inputs, in order."""
    weights = {}
    for name, layer in layers.layers.items():
        weights[f"{name}.weight"] = layer.weight.detach().T.clone(memory_format=torch.contiguous_format)
        if layer.bias is not None:
            weights[f"{name}.bias"] = layer.bias.detach().clone()
    return weights


def write_device_bundle(model: DeviceModel, folder: Path, form: str = "onnx") -> None:
    """Export ``model`` into ``folder``, which appears at once or not at all. Takes some seconds.

    Args:
        model: what a device needs.
        folder: the device bundle.
        form: ``onnx``, or ``executorch``, which has to be installed.

    Raises:
        ConfigError: the form is unknown, or ExecuTorch is not installed.
        MismatchError: the bank is of another host.
    """
    if form not in FORMATS:
        raise ConfigError(f"unknown format {form!r}: {nearest(form, FORMATS)}")
    if model.bank is not None and model.bank.host != model.host:
        raise MismatchError("this prototype bank belongs to another host: export the bank of the host's own release")
    weights = adaptive_weights(model.layers)
    graph = onnx_graph(model) if form == "onnx" else executorch_graph(model)
    contents = {GRAPH if form == "onnx" else EXECUTORCH_GRAPH: graph, **model.files}
    if model.policy is not None:
        contents[POLICY] = model.policy.to_bytes()
    with atomic_folder(Path(folder)) as new:
        for name, data in contents.items():
            (new / name).write_bytes(data)
        save_tensors(new / ADAPTIVE, weights, {"host": model.host})
        if model.bank is not None:
            save_bank(new / BANK, model.bank)
        digests = {path.name: _sha256(path) for path in sorted(new.iterdir()) if path.is_file()}
        write_json(new / HEADER, _header(model, form) | {"files": digests})


def onnx_graph(model: DeviceModel, *, fixed: bool = False) -> bytes:
    """The ONNX graph.

    Args:
        model: what is exported.
        fixed: with the adaptive weights inside, as a host without personalisation would be exported.
    """
    weights = adaptive_weights(model.layers)
    names = [*model.data, *([] if fixed else weights)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter announces changes of its own libraries
        exported = _exported(model, fixed=fixed)
        program = torch.onnx.export(
            exported, dynamo=True, verbose=False, input_names=names, output_names=list(model.outputs)
        )
    assert program is not None
    graph: bytes = program.model_proto.SerializeToString()
    return graph


def executorch_graph(model: DeviceModel) -> bytes:
    """The ExecuTorch program, with the XNNPACK delegate: its portable kernels alone are many times slower.

    Raises:
        ConfigError: ExecuTorch is not installed.
    """
    if importlib.util.find_spec("executorch") is None:
        raise ConfigError(
            "ExecuTorch is not installed: `pip install executorch==1.5.1`, or export with --format onnx, which needs "
            "nothing more"
        )
    xnnpack = importlib.import_module("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    exir = importlib.import_module("executorch.exir")
    lowered = exir.to_edge_transform_and_lower(
        _exported(model, fixed=False), partitioner=[xnnpack.XnnpackPartitioner()]
    )
    program: bytes = lowered.to_executorch().buffer
    return program


def _exported(model: DeviceModel, *, fixed: bool) -> torch.export.ExportedProgram:
    data = tuple(model.data.values())
    if fixed:
        return torch.export.export(model.module.eval(), data, strict=False)
    whole = _WithWeights(model.module, model.layers).eval()
    return torch.export.export(whole, (data, tuple(adaptive_weights(model.layers).values())), strict=False)


def _header(model: DeviceModel, form: str) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "task": model.task,
        "graph": form,
        "host": model.host,
        "layers": [
            {"name": s.name, "in_features": s.in_features, "out_features": s.out_features, "bias": s.bias}
            for s in model.layers.specs
        ],
        "inputs": {
            name: [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)] for name, tensor in model.data.items()
        },
        "outputs": list(model.outputs),
        "bound": {"kind": model.bound.kind, "tau": model.bound.tau, "scales": model.scales.tolist()},
        "bank_version": "" if model.bank is None else model.bank.version,
        "settings": dict(model.settings),
    }


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
