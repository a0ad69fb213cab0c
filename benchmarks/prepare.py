"""Time and memory of preparing a large log: Parquet in, ``SequenceData`` saved, against plain pandas.

    python benchmarks/prepare.py --rows 20000000

Users and items follow power laws, ids are integers, times are seconds of three years. Everything is written into a temporary
folder, which goes away. Each contender runs in a process of its own, so that peak memory (resident set) is its own, imports
included. The rival reads the same file with pandas, sorts by user and time, drops duplicates, factorises, and saves the same
arrays with numpy. Prints one JSON object; CPU seconds (all threads) say what counts where other jobs share the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GIB = 2**20  # ru_maxrss is in KiB


def generate(path: Path, rows: int) -> None:
    """Write a synthetic log of ``rows`` events, about a user per 40 rows and an item per 100."""
    import numpy as np
    import polars as pl

    generator = np.random.default_rng(0)
    users, items = max(rows // 40, 2), max(rows // 100, 2)
    frame = pl.DataFrame(
        {
            "user_id": (users * generator.random(rows) ** 1.5).astype(np.int64),
            "item_id": (items * generator.random(rows) ** 3).astype(np.int64),
            "timestamp": generator.integers(1_600_000_000, 1_600_000_000 + 3 * 365 * 86_400, rows),
        }
    )
    frame.write_parquet(path)


def prepare(source: Path, target: Path) -> int:
    """This project's way; returns the number of events."""
    from recsys.log import read_log
    from recsys.sequences import build_sequences

    data = build_sequences(read_log(source))
    data.save(target)
    return data.n_events


def prepare_with_pandas(source: Path, target: Path) -> int:
    """The straightforward way with pandas."""
    import numpy as np
    import pandas as pd

    frame = pd.read_parquet(source)
    frame = frame.drop_duplicates(["user_id", "item_id", "timestamp"])
    frame = frame.sort_values(["user_id", "timestamp"], kind="stable")
    _, user_ids = pd.factorize(frame["user_id"], sort=True)
    items, item_ids = pd.factorize(frame["item_id"], sort=True)
    counts = frame.groupby("user_id").size().to_numpy()
    ties = frame.duplicated(["user_id", "timestamp"], keep=False).mean()
    target.mkdir()
    np.savez(
        target / "sequences.npz",
        items=(items + 1).astype(np.int32),
        times=frame["timestamp"].to_numpy(),
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        user_ids=user_ids.astype(str).to_numpy(dtype=str),
        item_ids=item_ids.astype(str).to_numpy(dtype=str),
        ties=ties,
    )
    return len(frame)


STEPS = {"persona": prepare, "pandas": prepare_with_pandas}


def run_step(name: str, folder: Path) -> None:
    """Run one contender in this process and print what it took."""
    start = time.perf_counter()
    events = STEPS[name](folder / "log.parquet", folder / name)
    seconds, cpu = time.perf_counter() - start, time.process_time()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / GIB
    result = {"seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2), "peak_gib": round(peak, 2), "events": events}
    print(json.dumps(result))


def in_fresh_process(*arguments: str) -> str:
    """The last line that this script prints when run with ``arguments``."""
    root = Path(__file__).resolve().parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, __file__, *arguments]
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return output.strip().splitlines()[-1] if output.strip() else ""


def main() -> None:
    """Generate, measure every contender, print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--step", choices=["generate", *STEPS], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step == "generate":
        generate(options.folder / "log.parquet", options.rows)
        return
    if options.step is not None:
        run_step(options.step, options.folder)
        return
    with tempfile.TemporaryDirectory() as name:
        in_fresh_process("--rows", str(options.rows), "--folder", name, "--step", "generate")
        size = (Path(name) / "log.parquet").stat().st_size
        result: dict[str, object] = {
            "rows": options.rows,
            "parquet_mb": round(size / 1e6, 1),
            "load": os.getloadavg()[0],
        }
        for step in STEPS:
            measured = json.loads(in_fresh_process("--folder", name, "--step", step))
            result[step] = {**measured, "rows_per_second": round(options.rows / measured["seconds"])}
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
