"""Adapting a classifier to one device: Persona's edit beside Tent, BN statistics, T3A and LAME, in time and memory.

    python -m benchmarks.vision [--host mobilenet_v3_small] [--size 224] [--context features] [--batch 64] [--rounds 15]

A window of unlabelled images of one device comes in, and all of its images are classified. ``editing`` is what Persona adds to the
host's own forward pass, measured alone: reading the context, one pass of the editor, and the edited classifier instead of the plain
one; both are timed after a pass of the body, which leaves the caches as they are in use. The variants take turns in one process,
so that a machine that slows down slows all of them; ratios are medians over rounds, of processor time (``--wall`` for the clock).
Memory is the peak of a process of its own beyond the loaded host. Training changes nothing of it, so all parameters are fresh.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable

from persona import runtime

runtime.configure(threads=1)

import numpy as np  # noqa: E402
import torch  # noqa: E402

from persona.editor import EditorConfig  # noqa: E402
from vision.contexts import CONTEXTS, ContextReader  # noqa: E402
from vision.evaluation import Classifier, Window  # noqa: E402
from vision.hosts import Host, HostConfig, make_host  # noqa: E402
from vision.methods.batch_norm import BatchNorm  # noqa: E402
from vision.methods.lame import Lame  # noqa: E402
from vision.methods.t3a import T3A  # noqa: E402
from vision.methods.tent import Tent  # noqa: E402
from vision.personalised import Personalised, make_editor  # noqa: E402

CLASSES = 10
# What follows the pass of the body, and how often it is timed in a round.
TAILS, REPEATS = ("editing", "plain"), 5


def make_model(host: Host, context: str) -> Personalised:
    """The host with a fresh editor that is awake: zero heads would be as fast, but show nothing."""
    reader = ContextReader(context, host)
    config = EditorConfig(reader.dim, transfer="none", head="low_rank", rank=8, bound="frobenius")
    editor = make_editor(host, config)
    with torch.no_grad():
        for parameter in editor.heads.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return Personalised(host, reader, editor).eval()


def variants(host: Host, model: Personalised, window: Window) -> dict[str, Callable[[], object]]:
    """What takes turns."""
    methods: dict[str, Classifier] = {
        "host": Personalised(host).eval(),
        "persona": model,
        "batch_norm": BatchNorm(host, 16.0),
        "tent": Tent(host, 1e-4, 16.0),
        "t3a": T3A(host, 20),
        "lame": Lame(host, 3),
    }
    with torch.no_grad():
        features = host.features(window.images).unsqueeze(0)

    @torch.inference_mode()
    def editing() -> object:
        return host.classify(features, model.edit(features))

    @torch.inference_mode()
    def plain() -> object:
        return host.classify(features)

    def classify(method: Classifier) -> Callable[[], object]:
        def run() -> object:
            method.start(0)
            return method.predict(window)

        return run

    return {name: classify(method) for name, method in methods.items()} | {"editing": editing, "plain": plain}


def alternate(
    todo: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float], body: Callable[[], object]
) -> dict[str, list[float]]:
    """Milliseconds of every variant in every round; what follows the body is repeated within a round, after a pass of it."""
    times: dict[str, list[float]] = {name: [] for name in todo}
    for _ in range(rounds):
        for name, run in todo.items():
            spent = []
            for _ in range(REPEATS if name in TAILS else 1):
                if name in TAILS:
                    body()
                start = clock()
                run()
                spent.append(clock() - start)
            times[name].append(1e3 * statistics.median(spent))
    return times


def peak_mib(run: Callable[[], object]) -> float:
    """Peak memory of ``run`` in a forked process, beyond what the process began with."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        before = _high_water()
        run()
        os.write(send, f"{(_high_water() - before) / 1024:.1f}".encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(send)
    text = os.read(receive, 64).decode()
    os.close(receive)
    return float(text)


def _high_water() -> int:
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="mobilenet_v3_small")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--context", default="features", choices=CONTEXTS)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--wall", action="store_true", help="wall time instead of processor time")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    host = make_host(HostConfig(arguments.host, CLASSES, 3, arguments.size, "classifier")).eval()
    images = torch.randint(0, 256, (arguments.batch, 3, arguments.size, arguments.size), dtype=torch.uint8)
    window = Window(images, np.arange(arguments.batch), arguments.batch)
    todo = variants(host, make_model(host, arguments.context), window)
    memory = {name: peak_mib(run) for name, run in todo.items() if name != "plain"}

    @torch.inference_mode()
    def body() -> object:
        return host.features(images)

    clock = time.perf_counter if arguments.wall else time.process_time
    alternate(todo, 1, clock, body)
    times = alternate(todo, arguments.rounds, clock, body)
    passes = times["host"]
    edits = [a - b for a, b in zip(times["editing"], times["plain"], strict=True)]
    report = {
        **{name: getattr(arguments, name) for name in ("host", "size", "context", "batch", "rounds")},
        "clock": "wall" if arguments.wall else "processor",
        "median_ms": {name: round(statistics.median(values), 3) for name, values in times.items()},
        "edit_share_of_a_forward_pass": _ratio(edits, passes, 5),
        "beyond_the_host": {
            name: _ratio([a - b for a, b in zip(times[name], passes, strict=True)], passes, 3)
            for name in ("persona", "batch_norm", "tent", "t3a", "lame")
        },
        "tent_beyond_the_host_over_edit": _ratio([a - b for a, b in zip(times["tent"], passes, strict=True)], edits, 1),
        "peak_mib": memory,
    }
    print(json.dumps(report, indent=2))


def _ratio(a: list[float], b: list[float], digits: int) -> float:
    return round(statistics.median(x / y for x, y in zip(a, b, strict=True)), digits)


if __name__ == "__main__":
    main()
