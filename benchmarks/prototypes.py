"""What prototypes cost: assignment, partition and refinement, each beside its obvious rival, with growth in N and K.

Every measurement runs in a process of its own, so its peak memory is its own: what it needed beyond its inputs. The editor
is that of a SASRec head (two layers of 32 x 32, codes 2 x 32, 2112 numbers an edit), codes are drawn around 100 centres.

    python -m benchmarks.prototypes > prototypes.json
    python -m benchmarks.prototypes --scale 0.05      # a quick look
"""

import argparse
import ctypes
import gc
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from persona import runtime

runtime.configure(threads=1)

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from persona.editor import EditorConfig, ParameterEditor  # noqa: E402
from persona.edits import LayerSpec  # noqa: E402
from persona.prototypes import Assigner, HeadMetric, PrototypeBank, UserStatistics, fit_bank, kmeans, merge, refine  # noqa: E402

WIDTH, LENGTH, BATCH = 32, 10, 4096
SPECS = (LayerSpec("head.0", WIDTH, WIDTH), LayerSpec("head.2", WIDTH, WIDTH))
EVENTS_PER_USER = 20
SHARDS = 10

Row = dict[str, float | int | str]


def editor() -> ParameterEditor:
    """With heads of random weights, as if trained."""
    torch.manual_seed(0)
    made = ParameterEditor(EditorConfig(WIDTH, width=WIDTH), SPECS, torch.full((2,), 0.2)).requires_grad_(False)
    for p in made.heads.parameters():
        p.normal_(std=0.02)
    return made


def codes(n: int) -> Tensor:
    """(n, 2, 32) float32 codes around 100 centres."""
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(100, 2, WIDTH, generator=generator)
    z = torch.randn(n, 2, WIDTH, generator=generator).mul_(0.5)
    return z.add_(centres[torch.randint(100, (n,), generator=generator)]).tanh_()


def bank(k: int) -> PrototypeBank:
    """Fitted on a few codes."""
    return fit_bank(editor(), codes(20_000), k, restarts=1).bank


def held(field: str) -> float:
    """MiB that this process holds (VmRSS), or held at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def timed(work: Callable[[], object]) -> Row:
    """Seconds by the clock and of the processor (one thread), and MiB beyond what was held before."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # give back what is free, or the work would use it unseen
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before, start, worked = held("VmRSS"), time.perf_counter(), time.process_time()
    work()
    return {
        "seconds": round(time.perf_counter() - start, 3),
        "cpu_seconds": round(time.process_time() - worked, 3),
        "peak_mib": round(held("VmHWM") - before, 1),
    }


def assign(n: int, k: int) -> Row:
    """Codes of n contexts to the nearest of k prototypes, in code space."""
    assigner, z = Assigner(HeadMetric(editor()), bank(k).prototypes), codes(n)
    return timed(lambda: assigner(z))


def editor_pass(n: int, k: int) -> Row:
    """The one editor pass before it: contexts to codes."""
    del k
    ed, context = editor(), torch.randn(n, LENGTH, WIDTH)
    lengths = torch.full((n,), LENGTH)
    pieces = zip(torch.split(context, BATCH), torch.split(lengths, BATCH), strict=True)
    return timed(lambda: [ed.codes(c, le) for c, le in pieces])


def assign_by_editor_passes(n: int, k: int) -> Row:
    """The rival: an editor pass a prototype, its edits written out and compared with the prototype."""
    ed, prototypes = editor(), bank(k).prototypes.flat()
    context, lengths = torch.randn(n, LENGTH, WIDTH), torch.full((n,), LENGTH)

    def work() -> Tensor:
        nearest = []
        for c, le in zip(torch.split(context, BATCH), torch.split(lengths, BATCH), strict=True):
            distances = [(ed.unbounded(ed.codes(c, le)).flat() - p).norm(dim=1) for p in prototypes]
            nearest.append(torch.stack(distances, 1).argmin(1))
        return torch.cat(nearest)

    return timed(work)


def partition(n: int, k: int) -> Row:
    """k-means in the metric of the heads, four restarts, and the bank with its basis."""
    ed, z = editor(), codes(n)
    made = []
    row = timed(lambda: made.append(fit_bank(ed, z, k)))
    return row | {"inertia": round(made[0].inertia, 3), "converged": int(made[0].converged)}


def partition_alone(n: int, k: int) -> Row:
    """The same k-means without the bank."""
    metric, z = HeadMetric(editor()), codes(n)
    made = []
    row = timed(lambda: made.append(kmeans(metric.points(z), k)))
    return row | {"inertia": round(made[0].inertia, 3)}


def partition_by_scikit_learn(n: int, k: int) -> Row:
    """The rival: KMeans on written-out edits, four restarts."""
    from sklearn.cluster import KMeans

    ed, z = editor(), codes(n)
    made = []
    row = timed(lambda: made.append(KMeans(k, n_init=4, random_state=0).fit(ed.unbounded(z).flat().numpy())))
    return row | {"inertia": round(float(made[0].inertia_), 3)}


def refinement(n: int, k: int) -> Row:
    """A window of n events: assigned, summed up by user in shards, merged, and the bank refined."""
    metric, current, z = HeadMetric(editor()), bank(k), codes(n)
    users = torch.randint(max(1, n // EVENTS_PER_USER), (n,), generator=torch.Generator().manual_seed(2))
    steps: Row = {}

    def work() -> None:
        start = time.process_time()
        assigner = Assigner(metric, current.prototypes)
        size = -(-n // SHARDS)
        shards = [
            UserStatistics.collect(zs, us, assigner(zs).prototypes, k)
            for zs, us in zip(torch.split(z, size), torch.split(users, size), strict=True)
        ]
        statistics = merge(shards)
        middle = time.process_time()
        refine(current, metric, statistics)
        steps["collect_cpu_seconds"] = round(middle - start, 3)
        steps["refine_cpu_seconds"] = round(time.process_time() - middle, 3)
        steps["rows"] = len(statistics)

    return timed(work) | steps


MEASUREMENTS = {
    f.__name__: f
    for f in (
        assign,
        editor_pass,
        assign_by_editor_passes,
        partition,
        partition_alone,
        partition_by_scikit_learn,
        refinement,
    )
}
# The main size first, then growth in N, then in K. The rivals get what they can do in a minute or two.
PLAN = {
    "assign": [(100_000, 32), (10_000, 32), (1_000_000, 32), (100_000, 8), (100_000, 128)],
    "editor_pass": [(100_000, 32)],
    "assign_by_editor_passes": [(10_000, 32), (10_000, 8)],
    "partition": [(1_000_000, 32), (100_000, 32), (300_000, 32), (100_000, 8), (100_000, 128)],
    "partition_alone": [(20_000, 32)],
    "partition_by_scikit_learn": [(20_000, 32)],
    "refinement": [(1_000_000, 32), (100_000, 32), (300_000, 32), (1_000_000, 8), (1_000_000, 128)],
}


def measure(name: str, n: int, k: int) -> Row:
    """One measurement, in the process that calls it."""
    runtime.configure(threads=1)
    return {"what": name, "n": n, "k": k, **MEASUREMENTS[name](n, k)}


def run(scale: float) -> Iterator[Row]:
    """All measurements, each in a fresh process."""
    for name, sizes in PLAN.items():
        for n, k in sizes:
            with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
                yield pool.submit(measure, name, max(1000, int(n * scale)), k).result()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full number of contexts")
    results = list(run(parser.parse_args().scale))
    print(json.dumps({"threads": 1, "torch": torch.__version__, "results": results}, indent=2))
