"""The folder that a device runs: made by ``persona export``, read here without torch.

    device.json            format, task, layers, inputs and outputs, bound, digests of all files
    graph.onnx             the host; the weights of its adaptive layers are inputs, or constants that lie in the next file
    adaptive.safetensors   those weights as the host has them: <layer>.weight (in, out) and <layer>.bias (out,)
    bank/                  the prototype bank (absent if the host has none)
    policy.safetensors     when to ask for a new edit (absent if it was not calibrated)
    ...                    what the task adds, such as its vocabulary

A file that is missing, damaged or of another bundle is refused, each with one sentence that names it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from persona.arrays import Floats, arrays_from_bytes, read_file
from persona.bundles import BundleFormat
from persona.device.bank import DeviceBank
from persona.device.changes import Layer, Region
from persona.device.policy import RequestPolicy
from persona.errors import DataError, FormatError, MismatchError
from persona.graphs import open_graph
from persona.wire import trust_radius

FORMAT, FORMAT_VERSION = "persona-device-bundle", 1
HEADER, GRAPH, ADAPTIVE, BANK, POLICY = (
    "device.json",
    "graph.onnx",
    "adaptive.safetensors",
    "bank",
    "policy.safetensors",
)
EXECUTORCH_GRAPH = "graph.pte"
# How adaptive weights reach the graph. As inputs they cost nothing to exchange, and many devices share a session. As constants
# they are folded into convolutions and packed for the processor, once an edit, in a session of the device's own.
INPUTS, CONSTANTS = "inputs", "constants"
_ENTRIES = ("task", "graph", "host", "layers", "inputs", "outputs", "bound", "bank_version", "settings", "files")
HEADER_OF = BundleFormat(
    FORMAT,
    HEADER,
    {FORMAT_VERSION: _ENTRIES},
    "make one with `persona export`",
    kind="device bundle",
    again="export the bundle again, or update the device's release",
)


@dataclass(frozen=True)
class Input:
    """What the graph reads: numpy's name of a type, and a shape."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Weighted:
    """A graph under certain adaptive weights, ready to run; threads may share it.

    Attributes:
        session: of the graph.
        fed: weights that are inputs of it.
        held: weights that are constants of it, which it does not copy.
    """

    session: onnxruntime.InferenceSession
    fed: dict[str, Floats]
    held: tuple[onnxruntime.OrtValue, ...] = ()

    def run(self, outputs: list[str], data: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """The outputs of these names."""
        # Plain arrays: values that were bound before cost three times the launch of a small graph.
        found: list[NDArray[Any]] = self.session.run(outputs, {**data, **self.fed})
        return found


@dataclass(frozen=True)
class DeviceBundle:
    """A host on a device: shared by all that run it, and never changed.

    Attributes:
        folder: where it was read from.
        host: digest of the host.
        layers: its adaptive layers, in order.
        weights: their own weights, by the names that the graph has for them.
        region: where edits of them may lie.
        settings: of the task.
        files: the files of the task by name.
        bank: the prototype bank, if there is one.
        policy: when to ask for a new edit, if it was calibrated.
        inputs: the data that the graph reads, by name.
        outputs: names of what it computes.
        plain: the graph under the host's own weights.
        graph: the graph as bytes, where its adaptive weights are constants.
        threads: compute threads of the graph.
    """

    folder: Path
    host: str
    task: str
    layers: tuple[Layer, ...]
    weights: dict[str, Floats]
    region: Region
    settings: dict[str, Any]
    files: dict[str, bytes]
    bank: DeviceBank | None
    policy: RequestPolicy | None
    inputs: dict[str, Input]
    outputs: list[str]
    plain: Weighted = field(repr=False)
    graph: bytes = field(default=b"", repr=False)
    threads: int = 1

    @classmethod
    def load(cls, folder: Path | str, threads: int = 1) -> DeviceBundle:
        """Read and check a folder of ``persona export``.

        Args:
            folder: the bundle.
            threads: compute threads of the graph.

        Raises:
            DataError: there is no bundle in the folder, or its graph is for another runtime.
            FormatError: a file is missing or damaged, or of a version that this release cannot read.
            MismatchError: parts of different bundles are mixed.
        """
        folder = Path(folder)
        header = HEADER_OF.read(folder)
        if header["graph"] != "onnx":
            raise DataError(f"{folder} was exported for {header['graph']}: export it again with --format onnx")
        files = _read_files(folder, header["files"])
        try:
            layers = tuple(Layer(**layer) for layer in header["layers"])
            weights = _weights(files[ADAPTIVE], layers, header["host"], folder / ADAPTIVE)
            region = region_of(header["bound"], layers)
            inputs = {str(name): Input(dtype, tuple(shape)) for name, (dtype, shape) in header["inputs"].items()}
            outputs = list(header["outputs"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FormatError(f"{folder / HEADER} is damaged ({error}): export the bundle again") from error
        graph, source, constant = files[GRAPH], str(folder / GRAPH), header.get("weights", INPUTS) == CONSTANTS
        bank = DeviceBank.load(folder / BANK, layers, header["host"], region) if header["bank_version"] else None
        if bank is not None and bank.version != header["bank_version"]:
            raise MismatchError(f"{folder} holds the prototype bank of another bundle: export the bundle again")
        return cls(
            folder=folder,
            host=header["host"],
            task=header["task"],
            layers=layers,
            weights=weights,
            region=region,
            settings=header["settings"],
            files={name: data for name, data in files.items() if name not in (GRAPH, ADAPTIVE, POLICY)},
            bank=bank,
            policy=RequestPolicy.from_bytes(files[POLICY]) if POLICY in files else None,
            inputs=inputs,
            outputs=outputs,
            plain=_constant(graph, weights, source, threads)
            if constant
            else Weighted(open_graph(graph, source, threads), weights),
            graph=graph if constant else b"",
            threads=threads,
        )

    def under(self, weights: dict[str, Floats]) -> Weighted:
        """The graph under other weights than the host's: at once where they are inputs, else after some tens of milliseconds.

        Raises:
            FormatError: the graph cannot be opened with them.
        """
        if not self.graph:
            return Weighted(self.plain.session, weights)
        return _constant(self.graph, weights, str(self.folder / GRAPH), self.threads)

    @cached_property
    def edit_bytes(self) -> int:
        """Bytes of a full edit in float32, without its framing."""
        return sum(weight.nbytes for weight in self.weights.values())

    def expect(self, task: str) -> None:
        """Refuse a bundle of another task.

        Raises:
            MismatchError: this one is of another task.
        """
        if self.task != task:
            raise MismatchError(f"{self.folder} is a bundle for {self.task}, not for {task}: give one of that task")


def region_of(bound: Mapping[str, Any], layers: tuple[Layer, ...]) -> Region:
    """Where edits of a host may lie: what the service trusts, too.

    Args:
        bound: ``kind``, ``tau``, and ``scales``, the unit of tau of each layer (its root-mean-square weight).
        layers: the adaptive layers.
    """
    taus = {
        layer.name: float(bound["tau"]) * float(scale) for layer, scale in zip(layers, bound["scales"], strict=True)
    }
    allowed = sum(
        float(scale) ** 2 * layer.in_features * layer.out_features
        for layer, scale in zip(layers, bound["scales"], strict=True)
    )
    kind = str(bound["kind"])
    return Region(kind, taus, trust_radius(kind, float(bound["tau"]), allowed**0.5))


def _read_files(folder: Path, digests: Any) -> dict[str, bytes]:
    """The files of a bundle by name, each checked against its digest."""
    if not isinstance(digests, dict) or not {GRAPH, ADAPTIVE} <= digests.keys():
        raise FormatError(f"{folder / HEADER} does not list its files: export the bundle again")
    files = {}
    for name, digest in digests.items():
        if len(PurePosixPath(name).parts) != 1:
            raise FormatError(f"{folder / HEADER} lists a file outside of its folder: export the bundle again")
        files[name] = read_file(folder / name)
        if hashlib.sha256(files[name]).hexdigest() != digest:
            raise FormatError(f"{folder / name} is damaged (its digest differs): fetch the bundle again")
    return files


def _weights(data: bytes, layers: tuple[Layer, ...], host: str, path: Path) -> dict[str, Floats]:
    arrays, header = arrays_from_bytes(data, str(path))
    if header.get("host") != host:
        raise MismatchError(f"{path} belongs to another host than the rest of its bundle: fetch the bundle again")
    for layer in layers:
        shapes = [(layer.in_features, layer.out_features), (layer.out_features,)]
        for name, shape in zip(layer.inputs, shapes, strict=False):
            if name not in arrays or arrays[name].shape != shape or arrays[name].dtype != np.float32:
                raise FormatError(f"{path} does not fit the layer {layer.name}: export the bundle again")
    return arrays


def _constant(graph: bytes, weights: Mapping[str, Floats], source: str, threads: int) -> Weighted:
    held = {name: onnxruntime.OrtValue.ortvalue_from_numpy(weight) for name, weight in weights.items()}
    return Weighted(open_graph(graph, source, threads, held), {}, tuple(held.values()))
