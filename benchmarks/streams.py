"""Whether prototypes made by many workers are those that one worker makes.

Refinement: a stream of events of users of very different activity is cut at random into 1, 4 and 16 shards, so that users lie on
several workers; every worker writes its statistics to a file, the files are merged, and the bank is refined. Differences are to
the refinement by one worker that sees all events, without files.

Partition: the same stream, in blocks, against k-means in memory. ``inertia`` is relative to that.

    python -m benchmarks.streams                     # 1 million events, about a minute
    python -m benchmarks.streams --events 100000
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from persona import runtime

runtime.configure(threads=1)

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.prototypes import bank, codes, editor  # noqa: E402
from persona.prototypes import (  # noqa: E402
    Assigner,
    CodeBlock,
    HeadMetric,
    PrototypeBank,
    Refinement,
    UserStatistics,
    fit_bank,
    fit_bank_streamed,
    merge_statistics,
    refine,
    save_statistics,
)

K, BLOCK = 32, 1 << 14
SHARDS = (1, 4, 16)
SAMPLES = (4_096, 16_384, 65_536)

Row = dict[str, float | int | str]


def zipf_users(events: int) -> Tensor:
    """(events,) users, one per 20 events; the busiest have thousands of events, most have a few."""
    users = max(2, events // 20)
    weights = 1.0 / torch.arange(1, users + 1, dtype=torch.float64)
    return torch.multinomial(weights, events, replacement=True, generator=torch.Generator().manual_seed(2))


def collected(current: PrototypeBank, metric: HeadMetric, z: Tensor, who: Tensor) -> UserStatistics:
    """What one worker sums up."""
    return UserStatistics.collect(z, who, Assigner(metric, current.prototypes)(z).prototypes, len(current))


def refinements(events: int) -> list[Row]:
    """Merged refinement over shards against one worker's."""
    metric, current, z, who = HeadMetric(editor()), bank(K), codes(events), zipf_users(events)
    whole = refine(current, metric, collected(current, metric, z, who))
    owner = torch.randint(max(SHARDS), (events,), generator=torch.Generator().manual_seed(3))
    return [_refinement(current, metric, z, who, owner % shards, whole) for shards in SHARDS]


def _refinement(
    current: PrototypeBank, metric: HeadMetric, z: Tensor, who: Tensor, owner: Tensor, whole: Refinement
) -> Row:
    shards = int(owner.max()) + 1
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        paths = []
        for shard in range(shards):
            rows = owner == shard
            paths.append(Path(folder) / f"{shard}.safetensors")
            save_statistics(paths[-1], collected(current, metric, z[rows], who[rows]), current, {})
        middle = time.process_time()
        statistics, _ = merge_statistics(paths, current)
        made = refine(current, metric, statistics)
        end = time.process_time()
        size = sum(path.stat().st_size for path in paths)
    difference = made.bank.prototypes.flat() - whole.bank.prototypes.flat()
    return {
        "what": "refinement",
        "shards": shards,
        "largest_difference": float(difference.abs().max()),
        "largest_movement": float(made.movement.max()),
        "contexts_equal": int(torch.equal(made.contexts, whole.contexts)),
        "flow_equal": int(torch.equal(made.flow, whole.flow)),
        "split_and_retired_equal": int((made.split, made.retired) == (whole.split, whole.retired)),
        "users": int(made.flow.sum()),
        "users_on_several_shards": _shared(who, owner),
        "statistics_mib": round(size / 2**20, 1),
        "workers_cpu_seconds": round(middle - start, 2),
        "merge_and_refine_cpu_seconds": round(end - middle, 2),
    }


def _shared(who: Tensor, owner: Tensor) -> int:
    """Users with events on more than one shard."""
    pairs = torch.unique(torch.stack([who, owner]), dim=1)[0]
    return int((torch.bincount(pairs) > 1).sum())


def partitions(events: int) -> list[Row]:
    """Streamed partitions against k-means in memory."""
    ed, z, who = editor(), codes(events), zipf_users(events)
    start = time.process_time()
    exact = fit_bank(ed, z, K)
    rows: list[Row] = [
        {"what": "partition in memory", "inertia": 1.0, "cpu_seconds": round(time.process_time() - start, 2)}
    ]
    numbers = torch.arange(events)
    pieces = [torch.split(t, BLOCK) for t in (z, who, numbers)]
    blocks = [CodeBlock(*piece) for piece in zip(*pieces, strict=True)]
    for size, sweeps in [*((size, 0) for size in SAMPLES), (SAMPLES[-1], 20)]:
        start = time.process_time()
        made = fit_bank_streamed(ed, lambda: iter(blocks), K, sample_size=size, sweeps=sweeps)
        rows.append(
            {
                "what": "partition from a stream",
                "sample": size,
                "sweeps": len(made.history) - 1,
                "inertia": round(made.history[-1] / exact.inertia, 5),
                "cpu_seconds": round(time.process_time() - start, 2),
            }
        )
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000)
    count = parser.parse_args().events
    print(json.dumps({"events": count, "k": K, "results": [*refinements(count), *partitions(count)]}, indent=2))
