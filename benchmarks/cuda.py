"""Training on a graphics card beside the CPU: the same losses, rows a second, and memory of the card.

    python -m benchmarks.cuda                        # a few minutes on one card, into docs/evidence/cuda.json
    python -m benchmarks.cuda --device cpu --quick   # the same path without a card, in a minute; writes nothing

SASRec on a synthetic log and a compact image host, each as a host and with an editor over it, take the same steps from the same
seed: on the CPU in float32, and on the card in float32 and in bf16. The mean loss of all steps may differ from the CPU's by
``TOLERANCES`` of its value; where one differs by more, the exit status is 1. What validation finds after these steps is shown
beside it. Rows are targets or images (windows count as full ones); the first steps warm up and are not timed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from persona import runtime

runtime.configure(threads=1)

import numpy as np  # noqa: E402
import polars as pl  # noqa: E402
import torch  # noqa: E402

from benchmarks.sharding import log  # noqa: E402
from persona.errors import ConfigError  # noqa: E402
from persona.torch_device import resolve  # noqa: E402
from persona.training.execution import Execution  # noqa: E402
from persona.training.objective import Objective  # noqa: E402
from recsys.config import RecsysConfig  # noqa: E402
from recsys.data.sequences import SequenceData  # noqa: E402
from recsys.methods.problem import Problem as RecsysProblem  # noqa: E402
from recsys.personalised import Personalised as Recommender  # noqa: E402
from vision.config import VisionConfig  # noqa: E402
from vision.data.images import DeviceImages  # noqa: E402
from vision.methods.problem import Problem as VisionProblem  # noqa: E402
from vision.personalised import Personalised as Classifier  # noqa: E402

EVIDENCE = Path("docs/evidence/cuda.json")
TOLERANCES = {"float32": 1e-3, "bf16": 5e-2}
WARM_UP = 3
SEED = 0


@dataclass(frozen=True)
class Size:
    """How much is done: items and events of the log, devices of 40 images each, steps, rows or images of a batch."""

    items: int = 20_000
    events: int = 400_000
    devices: int = 100
    steps: int = 60
    batch: int = 1024


QUICK = Size(items=200, events=2_000, devices=24, steps=6, batch=64)


@dataclass(frozen=True)
class Timed:
    """One training: its mean loss, what validation found, rows a second, and the peak of the card's memory (0 on the CPU)."""

    work: str
    device: str
    precision: str
    loss: float
    validated: float
    rows_per_second: float
    peak_mib: float


def recommender(size: Size, device: str, precision: str, edited: bool) -> tuple[Recommender, Objective, Any, int]:
    """SASRec on a synthetic log; model, objective, training settings, rows a step."""
    config = RecsysConfig(
        host="sasrec",
        batch_size=size.batch,
        device=device,
        precision=precision,
        validation_events=size.batch,
        dropout=0.0,
    )
    problem = RecsysProblem(named(log(size.items, size.events)), config)
    host = problem.new_host()
    model = Recommender(host, problem.new_editor(host) if edited else None)
    return model, problem.objective(model, problem.split.train), config.fit_config(1e-3), size.batch


def named(data: SequenceData) -> SequenceData:
    """The log with ids that are text, as those of a prepared one are."""
    return replace(data, user_ids=data.user_ids.cast(pl.String), item_ids=data.item_ids.cast(pl.String))


def classifier(size: Size, device: str, precision: str, edited: bool) -> tuple[Classifier, Objective, Any, int]:
    """The compact host on synthetic images, as ``recommender``."""
    config = VisionConfig(
        host="compact", batch_size=size.batch // 4, device=device, precision=precision, steps_per_epoch=999
    )
    problem = VisionProblem(images(size.devices), config)
    host = problem.new_host()
    model = problem.personalise(host) if edited else Classifier(host)
    rows = config.devices_per_batch * config.context_images if edited else config.batch_size
    return model, problem.objective(model, problem.split.train), config.host_fit(), rows


def images(devices: int, each: int = 40, classes: int = 4, side: int = 32) -> DeviceImages:
    """Bars whose place is the class, on a background whose brightness is the device's own."""
    rng = np.random.default_rng(SEED)
    labels, owner = rng.integers(0, classes, devices * each), np.repeat(np.arange(devices), each)
    pixels = rng.normal(60, 12, (len(labels), side, side, 1)) + (owner % 50)[:, None, None, None]
    width = side // classes
    for i, label in enumerate(labels):
        pixels[i, :, label * width : (label + 1) * width] += 70
    names = [f"d{i}" for i in range(devices)], [f"c{i}" for i in range(classes)]
    return DeviceImages.from_arrays(
        pixels.clip(0, 255).astype(np.uint8), labels, owner, device_ids=names[0], class_names=names[1]
    )


WORKS: dict[str, tuple[Callable[..., Any], bool]] = {
    "sasrec": (recommender, False),
    "sasrec with editor": (recommender, True),
    "compact": (classifier, False),
    "compact with editor": (classifier, True),
}


def train(work: str, size: Size, device: str, precision: str) -> Timed:
    """Take the steps and validate once."""
    make, edited = WORKS[work]
    model, objective, config, rows = make(size, device, precision, edited)
    place = model.host.device
    on_card = place.type == "cuda"
    if on_card:
        torch.cuda.reset_peak_memory_stats(place)
    torch.manual_seed(SEED)
    model.train()
    steps = Execution(model, list(model.parameters()), objective, config, None).steps(_batches(objective))
    losses = list(islice(steps, WARM_UP))
    if on_card:
        torch.cuda.synchronize(place)
    started = time.perf_counter()
    losses += islice(steps, size.steps)
    mean = float(torch.stack(losses).mean())  # waits for the card
    rate = rows * size.steps / (time.perf_counter() - started)
    model.eval()
    with torch.no_grad():
        validated = objective.validate()[objective.monitor]
    peak = torch.cuda.max_memory_allocated(place) / 2**20 if on_card else 0.0
    return Timed(work, str(place), precision, mean, float(validated), rate, peak)


def _batches(objective: Objective) -> Any:
    epoch = 0
    while True:
        yield from objective.batches(epoch)
        epoch += 1


def compare(size: Size, device: str) -> tuple[list[Timed], list[str]]:
    """All trainings, and a sentence for each that is not the CPU's within its tolerance."""
    done, wrong = [], []
    for work in WORKS:
        exact = train(work, size, "cpu", "float32")
        done.append(exact)
        for precision, tolerance in TOLERANCES.items():
            found = train(work, size, device, precision)
            done.append(found)
            apart = abs(found.loss / exact.loss - 1)
            if not apart <= tolerance:
                wrong.append(f"{work} in {precision}: loss {found.loss:.6f}, on the CPU {exact.loss:.6f}")
            print(
                _line(exact) if precision == "float32" else "", _line(found), f"apart {apart:.1e}", sep="\n", flush=True
            )
    return done, wrong


def _line(timed: Timed) -> str:
    return (
        f"{timed.work:20} {timed.device:7} {timed.precision:8} loss {timed.loss:.6f}  validation {timed.validated:.4f}  "
        f"{timed.rows_per_second:12,.0f} rows/s  {timed.peak_mib:8,.1f} MiB"
    )


def main() -> int:
    """Compare, print, and keep what a card did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="small sizes, for a dry run")
    given = parser.parse_args()
    try:
        device = resolve(given.device)
    except ConfigError as error:
        print(error)
        return 0
    size = QUICK if given.quick else Size()
    done, wrong = compare(size, given.device)
    print(*wrong, sep="\n")
    if device.type == "cuda" and not given.quick:
        card = torch.cuda.get_device_name(device)
        about = {"card": card, "torch": torch.__version__, "size": asdict(size), "tolerances": TOLERANCES}
        EVIDENCE.write_text(
            json.dumps(about | {"results": [asdict(t) for t in done]}, indent=1) + "\n", encoding="utf-8"
        )
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
