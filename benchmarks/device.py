"""Hosts on a device: latency and size of every host, edited against unedited, ONNX against torch.

    python -m benchmarks.device [--rounds 30] [--out docs/evidence/device.json]

The edited graph has the weights of its adaptive layers as inputs (recommenders) or exchanged constants (classifiers); the unedited
rival is the same host exported as one would without personalisation, its weights inside the graph. `receive_ms` is the time from
the bytes of an edit to a device that answers by it: checks, bound, new weights, a first answer. `device` is the whole of `persona.device.Device.run` under an edit: the
edited graph, and the check that what it says is finite; `device_host` is the same device without an edit. Recommenders rank 3,700 items (preset
`paper`), classifiers read one image of 3 x 96 x 96 pixels and know ten classes; all weights are random, which changes no
time. One thread, batch 1. The variants take turns in bursts, and ratios are medians over rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from persona import runtime

runtime.configure()

import numpy as np  # noqa: E402
import torch  # noqa: E402

from persona.adaptive import AdaptiveLayers  # noqa: E402
from persona.device import Device, DeviceBundle  # noqa: E402
from persona.device.bundle import GRAPH, HEADER  # noqa: E402
from persona.edit_format import decode_edit, encode_edit  # noqa: E402
from persona.editor import EditorConfig, ParameterEditor  # noqa: E402
from persona.edits import DenseEdit, Edit  # noqa: E402
from persona.export import DeviceModel, onnx_graph, write_device_bundle  # noqa: E402
from persona.graphs import open_graph  # noqa: E402
from persona.storage import write_json  # noqa: E402
from recsys.device import export as recsys_export  # noqa: E402
from recsys.hosts import HostConfig, make_host  # noqa: E402
from recsys.personalised import Personalised  # noqa: E402
from recsys.serving.release import Release  # noqa: E402
from vision import hosts as vision_hosts  # noqa: E402
from vision.device import export as vision_export  # noqa: E402
from vision.personalised import Personalised as VisionPersonalised  # noqa: E402

ITEMS, CLASSES, PIXELS = 3700, 10, 96
# Calls in a row: enough that caches are warm again after another variant's turn.
BURST_US, LONGEST_BURST = 10_000.0, 60
RECEIPTS = 10
RECOMMENDERS = ("din", "gru4rec", "sasrec")
CLASSIFIERS = ("mobilenet_v3_small", "resnet18")


def recommender(kind: str) -> tuple[DeviceModel, dict[str, torch.Tensor]]:
    """A recommender as if trained, and a full context."""
    torch.manual_seed(0)
    host = make_host(HostConfig.preset(kind, "paper", ITEMS))
    host.embedding.embeddings["item"].weight.data.mul_(40)
    config = EditorConfig(context_dim=host.context_dim)
    editor = ParameterEditor(config, host.adaptive.specs, host.adaptive.weight_scales())
    made = Release(Personalised(host, editor), [str(i) for i in range(1, ITEMS + 1)])
    length = host.config.max_length
    return recsys_export.device_model(made), {
        "items": torch.arange(1, length + 1).unsqueeze(0),
        "lengths": torch.tensor([length]),
    }


def classifier(kind: str) -> tuple[DeviceModel, dict[str, torch.Tensor]]:
    """A classifier with running statistics as if trained, and a picture."""
    torch.manual_seed(0)
    host = vision_hosts.make_host(vision_hosts.HostConfig(kind, CLASSES, 3, PIXELS, "all")).train()
    pictures = torch.randint(0, 256, (8, 3, PIXELS, PIXELS), dtype=torch.uint8)
    for norm in host.norm_layers():
        norm.momentum = 1.0
    with torch.no_grad():
        host(pictures)
    names = [f"class {i}" for i in range(CLASSES)]
    model = vision_export.device_model(VisionPersonalised(host.eval()), names, (3, PIXELS, PIXELS))
    return model, {"images": pictures[:1]}


def random_edit(layers: AdaptiveLayers, host: str) -> bytes:
    """A full edit of a twentieth of the weights' size, as it travels."""
    specs = layers.specs
    scales = dict(zip(layers.layers, layers.weight_scales().tolist(), strict=True))
    flat = torch.randn(1, sum(spec.parameters for spec in specs), generator=torch.Generator().manual_seed(1))
    edit = Edit.from_flat(flat, specs, host)
    small = {
        name: DenseEdit(
            bias=None if layer.bias is None else 0.05 * scales[name] * layer.bias,
            weight=0.05 * scales[name] * layer.dense().weight,
        )
        for name, layer in edit.layers.items()
    }
    return encode_edit(Edit(small, host))


def alternate(variants: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Microseconds of every variant in every round: the best of a burst, for other work on the machine only ever adds to it.

    Every other round goes backwards.
    """
    bursts = {name: min(LONGEST_BURST, max(3, int(BURST_US / timed(run)))) for name, run in variants.items()}
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds):
        for name in list(variants)[:: -1 if turn % 2 else 1]:
            times[name].append(min(timed(variants[name]) for _ in range(bursts[name])))
    return times


def timed(run: Callable[[], object]) -> float:
    """Microseconds of one call."""
    start = time.perf_counter()
    run()
    return 1e6 * (time.perf_counter() - start)


def measure(kind: str, model: DeviceModel, data: dict[str, torch.Tensor], folder: Path, rounds: int) -> dict[str, Any]:
    """One row of the table."""
    write_device_bundle(model, folder)
    device = Device(DeviceBundle.load(folder))
    message = random_edit(model.layers, model.host)
    device.receive(message, "full")
    arrays = {name: tensor.numpy() for name, tensor in data.items()}
    unedited = open_graph(onnx_graph(model, fixed=True))
    with torch.inference_mode(), model.layers.applied(device_edit(device, message)):
        wanted = model.module(*data.values())[0].numpy()
    errors = np.abs(device.run(arrays).arrays[model.outputs[0]] - wanted)

    edited = device.bundle.under({name: np.array(value) for name, value in device.bundle.weights.items()})

    def eager() -> None:
        with torch.inference_mode():
            model.module(*data.values())

    variants: dict[str, Callable[[], object]] = {
        "edited": lambda: edited.run(device.bundle.outputs, arrays),
        "unedited": lambda: unedited.run(device.bundle.outputs, arrays),
        "device": lambda: device.run(arrays),
        "device_host": lambda: device.run(arrays, plain=True),
        "torch": eager,
    }
    alternate(variants, max(3, rounds // 10))
    times = alternate(variants, rounds)
    return {
        "host": kind,
        "graph_bytes": (folder / GRAPH).stat().st_size,
        "bundle_bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        "header_bytes": (folder / HEADER).stat().st_size,
        "adaptive_numbers": sum(spec.parameters for spec in model.layers.specs),
        "full_edit_bytes": len(message),
        "median_us": {name: round(statistics.median(values), 1) for name, values in times.items()},
        "receive_ms": round(min(timed(lambda: device.receive(message, "full")) for _ in range(RECEIPTS)) / 1e3, 2),
        "edited_to_unedited": ratio(times["edited"], times["unedited"]),
        "device_to_device_host": ratio(times["device"], times["device_host"]),
        "largest_error": float(errors.max()),
        "largest_output": float(np.abs(wanted).max()),
    }


def ratio(a: list[float], b: list[float]) -> float:
    """The median over rounds of a / b."""
    return round(statistics.median(x / y for x, y in zip(a, b, strict=True)), 3)


def device_edit(device: Device, message: bytes) -> Edit:
    """The edit that a message stands for, as torch applies it."""
    from persona.bounds import Bound

    region = device.bundle.region
    edit = decode_edit(message)
    return Bound(region.kind, 1.0).apply(edit, torch.tensor(list(region.taus.values())))


def main() -> None:
    """Measure every host and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--hosts", default=",".join((*RECOMMENDERS, *CLASSIFIERS)))
    parser.add_argument("--out", type=Path, default=Path("docs/evidence/device.json"))
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in arguments.hosts.split(","):
            model, data = recommender(kind) if kind in RECOMMENDERS else classifier(kind)
            rows.append(measure(kind, model, data, Path(folder) / kind, arguments.rounds))
            print(json.dumps(rows[-1]), flush=True)
    write_json(arguments.out, {"rounds": arguments.rounds, "items": ITEMS, "pixels": PIXELS, "rows": rows})


if __name__ == "__main__":
    main()
