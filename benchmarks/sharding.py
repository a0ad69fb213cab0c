"""What sharding the item table brings and costs: memory and training rows a second against items, events and processes.

Every setting is measured in processes of its own, which train the same SASRec (paper preset, d = 32) on the same synthetic
log, one thread each. Memory is that of the process that takes most: ``model`` is the peak of the training steps above what the
process had with the log in memory and no model yet, ``total`` the peak altogether, ``saving`` the peak above the same baseline
when a checkpoint is written. Losses of all numbers of processes have to agree.

    python -m benchmarks.sharding                                    # all settings, into docs/evidence/sharding.json
    python -m benchmarks.sharding --items 10000000 --events 1000000  # one of them
"""

import argparse
import ctypes
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from persona import runtime

runtime.set_environment()

EVIDENCE = Path("docs/evidence/sharding.json")
# items, events, optimizer of the table
SETTINGS = [
    *((items, 1_000_000, "rowwise_adagrad") for items in (10_000_000, 1_000_000, 100_000, 10_000)),
    *((items, 1_000_000, "adam") for items in (1_000_000, 100_000, 10_000)),
    *((100_000, events, "rowwise_adagrad") for events in (10_000_000, 50_000_000)),
]
PROCESSES = (1, 2)
EVENTS_A_USER = 20
WARM_UP, MEASURED = 4, 12
TOLERANCE = 1e-6


def log(items: int, events: int) -> Any:
    """Users with twenty events each, items as skewed as in logs: a quarter of the events falls on a thousandth of the items."""
    import numpy as np
    import polars as pl

    from recsys.data.sequences import SequenceData

    rng = np.random.default_rng(0)
    drawn = (rng.random(events, dtype=np.float32) ** 5 * items).astype(np.int32) + np.int32(1)
    users = events // EVENTS_A_USER
    return SequenceData(
        items=drawn,
        times=np.arange(events),
        offsets=np.arange(users + 1) * EVENTS_A_USER,
        basket_start=np.arange(events),
        user_ids=pl.int_range(users, dtype=pl.Int32, eager=True),
        item_ids=pl.int_range(items, dtype=pl.Int32, eager=True),
        titles=None,
        baskets=False,
        ordered_only=False,
    )


def memory(field: str) -> float:
    """Megabytes of this process: ``VmRSS`` now, or ``VmHWM`` at most since ``forget_peak``."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def forget_peak() -> None:
    """Let the peak of memory start anew, from what is in use: freed blocks go back to the system first."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def work(items: int, events: int, optimizer: str, folder: str) -> None:
    """What one process does; it leaves its numbers in ``folder``."""
    runtime.configure(threads=1)
    runtime.keep_freed_memory()  # as training does
    from itertools import islice

    import numpy as np
    import torch

    from persona.training.execution import Execution
    from persona.training.objective import FitConfig
    from persona.training.ranks import current
    from recsys.distributed import group, tables
    from recsys.distributed.execution import ShardedExecution
    from recsys.evaluation import Evaluation
    from recsys.hosts import HostConfig, make_host
    from recsys.objectives import LossConfig, RowObjective
    from recsys.personalised import Personalised

    with group.joined():
        data, config = log(items, events), HostConfig.preset("sasrec", "paper", items)
        positions = np.flatnonzero(np.arange(events) % EVENTS_A_USER > 0)
        group.ensure()
        forget_peak()
        baseline = memory("VmRSS")
        if optimizer == "adam":
            torch.manual_seed(0)
            host = make_host(config)
        else:
            host = tables.new_host(config, seed=0, learning_rate=0.05)
        model, validation = Personalised(host), Evaluation(data, positions[:1], max_length=config.max_length)
        objective = RowObjective(model, data, positions, validation, LossConfig(), seed=0)
        arguments = (model, list(model.parameters()), objective, FitConfig(), Path(folder))
        execution = Execution(*arguments) if optimizer == "adam" else ShardedExecution(*arguments, learning_rate=0.05)
        losses, started = [], 0.0
        for loss in execution.steps(islice(objective.batches(0), WARM_UP + MEASURED)):
            losses.append(loss)
            if len(losses) == WARM_UP:
                started = time.perf_counter()
        seconds = time.perf_counter() - started
        trained = memory("VmHWM")
        whole = execution.ranks.sum(torch.stack(losses)).tolist()
        execution.save({}, {"history": []})
        found = {
            "rows_per_second": MEASURED * LossConfig().batch_size / seconds,
            "baseline": baseline,
            "model": trained - baseline,
            "total": trained,
            "saving": memory("VmHWM") - baseline,
            "losses": whole,
        }
        (Path(folder) / f"{current().rank}.json").write_text(json.dumps(found))


def measure(items: int, events: int, optimizer: str, processes: int) -> dict[str, Any]:
    """One setting on a number of processes of this machine."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        command = [sys.executable, "-m", "benchmarks.sharding", "--worker", str(items), str(events), optimizer, folder]
        group = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1"}
        started = [
            subprocess.Popen(command, env={**os.environ, **group, "MASTER_PORT": str(port), "RANK": str(rank)})
            for rank in range(processes)
        ]
        codes = [process.wait() for process in started]
        if any(codes):
            raise RuntimeError(f"a process failed at {items} items and {events} events")
        found = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(processes)]
    most = {name: round(max(one[name] for one in found)) for name in ("baseline", "model", "total", "saving")}
    return {
        "items": items,
        "events": events,
        "table_optimizer": optimizer,
        "processes": processes,
        "rows_per_second": round(min(one["rows_per_second"] for one in found)),
        **{f"{name}_mb": value for name, value in most.items()},
        "losses": found[0]["losses"],
        "load_average": round(os.getloadavg()[0], 1),
    }


def compare(results: list[dict[str, Any]]) -> dict[str, float]:
    """A setting on several processes against the same on one: the largest relative difference of a loss, and of memory."""
    one, *others = results
    worst = max(abs(a - b) / abs(a) for other in others for a, b in zip(one["losses"], other["losses"], strict=True))
    if worst > TOLERANCE:
        raise RuntimeError(f"losses differ by {worst:.1e} of their value")
    return {"loss_difference": worst, "model_share": round(others[-1]["model_mb"] / one["model_mb"], 3)}


def table(settings: list[dict[str, Any]]) -> str:
    """The results as a table in Markdown."""
    names = ("items", "events", "table_optimizer", "processes", "rows_per_second", "model_mb", "saving_mb", "total_mb")
    lines = [f"| {' | '.join(names)} |", f"|{' --- |' * len(names)}"]
    for setting in settings:
        for row in setting["results"]:
            cells = (f"{row[name]:,}" if isinstance(row[name], int) else str(row[name]) for name in names)
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, keep, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, help="measure only this many items")
    parser.add_argument("--events", type=int, default=1_000_000, help="with --items: this many events")
    parser.add_argument("--optimizer", default="rowwise_adagrad", choices=("rowwise_adagrad", "adam"))
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        items, events, optimizer, folder = options.worker
        work(int(items), int(events), optimizer, folder)
        return
    chosen = [(options.items, options.events, options.optimizer)] if options.items else SETTINGS
    for items, events, optimizer in chosen:
        results = [measure(items, events, optimizer, processes) for processes in PROCESSES]
        setting = {"results": results, **compare(results)}
        keep(setting)
        print(table([setting]), f"loss difference {setting['loss_difference']:.1e}", sep="\n", flush=True)
    print(table(read()))


def read() -> list[dict[str, Any]]:
    """The settings that have been measured."""
    return json.loads(EVIDENCE.read_text())["settings"] if EVIDENCE.exists() else []


def keep(setting: dict[str, Any]) -> None:
    """Write what was measured of a setting, in place of what was there of it."""

    def key(of: dict[str, Any]) -> list[Any]:
        return [of["results"][0][name] for name in ("table_optimizer", "events", "items")]

    settings = [old for old in read() if key(old) != key(setting)] + [setting]
    settings.sort(key=lambda of: (key(of)[0] != "rowwise_adagrad", *key(of)))
    EVIDENCE.write_text(json.dumps({"cores": os.cpu_count(), "settings": settings}, indent=1) + "\n")


if __name__ == "__main__":
    main()
