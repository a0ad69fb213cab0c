"""Hosts as graphs for devices: the weights of the adaptive layers are inputs or exchangeable, so an edit needs no new export.

The folder that is written is the one that ``persona.device`` reads; its layout stands in ``persona.device.bundle``.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from persona.adaptive import AdaptiveLayers
from persona.bounds import Bound
from persona.compiling import without_traces
from persona.device.bundle import (
    ADAPTIVE,
    BANK,
    CONSTANTS,
    EXECUTORCH_GRAPH,
    FORMAT,
    FORMAT_VERSION,
    GRAPH,
    HEADER,
    INPUTS,
    POLICY,
)
from persona.device.policy import RequestPolicy
from persona.edits import DenseEdit, Edit
from persona.errors import ConfigError, MismatchError, check_known
from persona.prototypes import PrototypeBank, save_bank
from persona.storage import atomic_folder, tensors_to_bytes, write_json

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
        constant: whether the adaptive weights are constants of the graph, which is opened anew with those of an edit. For hosts
            whose graph is faster by more than that takes, as convolutions with their norms folded in are; else they are
            inputs.
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
    constant: bool = False


class _Whole(DenseEdit):
    """A layer's weights themselves, (in, out) and (out,), which take the place of the host's.

    Without the dimension of devices that edits have: to add it and to take it away again costs a graph of 50 microseconds ten.
    """

    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)."""
        return self.weight.shape[1], self.weight.shape[0]

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(..., in) -> (..., out)."""
        y = x @ self.weight
        return y if self.bias is None else y + self.bias


class _WithWeights(nn.Module):
    """Data and weights of the adaptive layers in, outputs out."""

    def __init__(self, module: nn.Module, layers: AdaptiveLayers) -> None:
        super().__init__()
        self.module, self.layers = module, layers

    def forward(self, data: tuple[Tensor, ...], weights: tuple[Tensor, ...]) -> Any:
        given = iter(weights)
        whole = {}
        for spec in self.layers.specs:
            weight = next(given)
            whole[spec.name] = _Whole(bias=next(given) if spec.bias else None, weight=weight)
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
    check_known("format", form, FORMATS)
    if model.bank is not None and model.bank.host != model.host:
        raise MismatchError("this prototype bank belongs to another host: export the bank of the host's own release")
    adaptive = tensors_to_bytes(adaptive_weights(model.layers), {"host": model.host})
    if form == "executorch":
        contents = {EXECUTORCH_GRAPH: executorch_graph(model)}
    else:
        graph = onnx_graph(model)
        contents = {GRAPH: _with_constants(graph, adaptive) if model.constant else graph}
    contents |= {ADAPTIVE: adaptive, **model.files}
    if model.policy is not None:
        contents[POLICY] = model.policy.to_bytes()
    with atomic_folder(Path(folder)) as new:
        for name, data in contents.items():
            (new / name).write_bytes(data)
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
    torch.compiler.reset()  # as in persona.compiling
    weights = adaptive_weights(model.layers)
    names = [*model.data, *([] if fixed else weights)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter announces changes of its own libraries
        exported = _exported(model, fixed=fixed)
        program = torch.onnx.export(
            exported, dynamo=True, verbose=False, input_names=names, output_names=list(model.outputs)
        )
    assert program is not None
    graph: bytes = without_traces(program.model_proto).SerializeToString()
    return graph


def _with_constants(graph: bytes, adaptive: bytes) -> bytes:
    """The same graph with its adaptive inputs turned into constants that lie in the file of adaptive weights."""
    import onnx

    model = onnx.load_model_from_string(graph)
    size = int.from_bytes(adaptive[:8], "little")
    places = {name: place for name, place in json.loads(adaptive[8 : 8 + size]).items() if name != "__metadata__"}
    inputs = [entry for entry in model.graph.input if entry.name not in places]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    for name, place in places.items():
        start, stop = place["data_offsets"]
        constant = onnx.TensorProto(name=name, dims=place["shape"], data_type=onnx.TensorProto.FLOAT)
        constant.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", ADAPTIVE), ("offset", 8 + size + start), ("length", stop - start)):
            constant.external_data.add(key=key, value=str(value))
        model.graph.initializer.append(constant)
    changed: bytes = model.SerializeToString()
    return changed


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
        "weights": CONSTANTS if model.constant and form == "onnx" else INPUTS,
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
