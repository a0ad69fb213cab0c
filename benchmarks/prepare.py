"""Time and memory of preparing a large log: Parquet parts in, ``SequenceData`` saved, against plain pandas.

    python -m benchmarks.prepare                                              # 1 and 10 million rows, all ways
    python -m benchmarks.prepare --rows 1000000 10000000 50000000 --ways streamed

Items follow Zipf's law with exponent 1, users a power law; ids are integers, times are seconds of three years; parts have 5 million
rows. Everything is written into a temporary folder, which goes away. Each way runs in a process of its own, so that peak memory
(resident set) is its own, imports included. ``streamed`` reads block by block, ``at_once`` the whole log; what they write is compared.
The rival reads the same parts with pandas, sorts by user and time, drops duplicates, factorises, and saves the same arrays with
numpy. Prints one JSON object; CPU seconds (all threads) say what counts where other jobs share the machine.
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
PART = 5_000_000


def generate(folder: Path, rows: int) -> None:
    """Write a synthetic log of ``rows`` events in parts, about a user per 40 rows and an item per 100."""
    import numpy as np
    import polars as pl

    users, items = max(rows // 40, 2), max(rows // 100, 2)
    folder.mkdir()
    for number, start in enumerate(range(0, rows, PART)):
        generator = np.random.default_rng([0, number])
        count = min(PART, rows - start)
        # The inverse of the distribution function of density 1 / rank, up to ``items``.
        ranks = np.exp(generator.random(count) * np.log(items)).astype(np.int64)
        frame = pl.DataFrame(
            {
                "user_id": (users * generator.random(count) ** 1.5).astype(np.int64),
                "item_id": ranks,
                "timestamp": generator.integers(1_600_000_000, 1_600_000_000 + 3 * 365 * 86_400, count),
            }
        )
        frame.write_parquet(folder / f"part-{number:04}.parquet")


def streamed(source: Path, target: Path) -> tuple[int, str]:
    """This project's way for large logs; the number of events, and the digest of the sequences."""
    from recsys.data.preparing import prepare_log

    made = prepare_log(source, target, at_once=0)
    return int(made.counts.sum()), made.digest


def at_once(source: Path, target: Path) -> tuple[int, str]:
    """This project's way for other logs."""
    from recsys.data.preparing import prepare_log

    made = prepare_log(source, target, at_once=sys.maxsize)
    return int(made.counts.sum()), made.digest


def pandas(source: Path, target: Path) -> tuple[int, str]:
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
    return len(frame), ""


WAYS = {way.__name__: way for way in (streamed, at_once, pandas)}


def run_step(name: str, folder: Path) -> None:
    """Run one way in this process and print what it took."""
    start = time.perf_counter()
    events, digest = WAYS[name](folder / "log", folder / name)
    seconds, cpu = time.perf_counter() - start, time.process_time()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / GIB
    result = {"seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2), "peak_gib": round(peak, 2), "events": events}
    print(json.dumps(result | {"digest": digest[:12]}))


def in_fresh_process(*arguments: str) -> str:
    """The last line that this script prints when run with ``arguments``."""
    root = Path(__file__).resolve().parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, __file__, *arguments]
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return output.strip().splitlines()[-1] if output.strip() else ""


def measure(rows: int, ways: list[str]) -> dict[str, object]:
    """One log, prepared in every way."""
    with tempfile.TemporaryDirectory() as name:
        in_fresh_process("--rows", str(rows), "--folder", name, "--step", "generate")
        size = sum(part.stat().st_size for part in (Path(name) / "log").iterdir())
        result: dict[str, object] = {"rows": rows, "parquet_mb": round(size / 1e6, 1), "load": os.getloadavg()[0]}
        digests = set()
        for way in ways:
            measured = json.loads(in_fresh_process("--folder", name, "--step", way))
            digests |= {measured["digest"]} - {""}
            result[way] = {**measured, "rows_per_second": round(rows / measured["seconds"])}
    assert len(digests) <= 1, "read at once or block by block, a log has to give the same sequences"
    return result


def main() -> None:
    """Generate, measure every way, print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--step", choices=["generate", *WAYS], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step == "generate":
        generate(options.folder / "log", options.rows[0])
    elif options.step is not None:
        run_step(options.step, options.folder)
    else:
        print(json.dumps([measure(rows, options.ways) for rows in options.rows], indent=2))


if __name__ == "__main__":
    main()
