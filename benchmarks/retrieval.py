"""Large catalogues: what quantised item tables cost in quality, and what exact and approximate retrieval take.

    python -m benchmarks.retrieval                           # all that docs/scale.md tells, into docs/evidence/scale-retrieval.json
    python -m benchmarks.retrieval quality --epochs 3        # a trained SASRec, tables of 32, 8 and 4 bits, and indices of faiss
    python -m benchmarks.retrieval speed --items 10000       # drawn vectors, exact and by faiss

``quality`` keeps both tables of a host, for histories and for candidates, in so many bits, and ranks all items that the user has not
seen; NDCG@10 is of the leave-one-out test, overlap is the share of the best ten that the float32 host has, too. ``speed`` draws item
vectors around 1,000 centres, or scattered without any, which is the worst case of an index; memory is what a search allocates beyond
the table (that of faiss is not seen). One thread, processor time.
"""

from __future__ import annotations

import argparse
import json
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

from persona import runtime

runtime.configure(threads=1)

import numpy as np  # noqa: E402
import torch  # noqa: E402

from recsys.serving.index import ExactIndex, FaissIndex, IndexConfig, recall  # noqa: E402
from recsys.serving.item_tables import KINDS, FloatTable, Vectors, as_table  # noqa: E402

EVIDENCE = Path("docs/evidence/scale-retrieval.json")
BEST, WIDTH, CENTRES = 10, 64, 1000
EPOCHS = 12
# items, centres
RECORDED = ((100_000, CENTRES), (1_000_000, CENTRES), (1_000_000, 0))
Row = dict[str, Any]


def quality(data: str, epochs: int) -> list[Row]:
    """Size, difference of scores, NDCG@10 and overlap@10 by bits; overlap@10 by index."""
    from recsys.config import RecsysConfig
    from recsys.data import catalogue
    from recsys.data.batches import Context
    from recsys.data.sequences import build_sequences
    from recsys.hosts.sequential import SequentialHost
    from recsys.methods import Problem

    sequences = build_sequences(catalogue.resolve(data))
    config = RecsysConfig(
        protocol="full", preset="paper", monitor="ndcg_10", epochs=epochs, loss="sampled_softmax", negatives=256
    )
    problem = Problem(sequences, config)
    host = problem.base_host().eval()
    assert isinstance(host, SequentialHost)
    targets = problem.split.test
    users = sequences.user_of(targets)
    items, lengths = sequences.contexts(targets, host.config.max_length)
    context = Context(torch.from_numpy(items), torch.from_numpy(lengths))
    weight = host.embedding.embeddings["item"].weight
    exact, rows = weight.detach().clone(), []
    reference: Row = {}
    for kind in KINDS:
        with torch.no_grad():
            table = as_table(exact.numpy(), kind)
            weight.copy_(torch.from_numpy(table.rows(slice(None)).copy()))
            vectors = as_table(host.item_vectors()[1:].numpy(), kind)
            queries = host.user_vectors(host.encode(context).users).numpy()
        scores = ExactIndex(vectors).scores(queries)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :BEST]
        reference = reference or {
            "scores": scores,
            "best": best,
            "bytes": table.nbytes,
            "found": indices(vectors, queries),
        }
        rows.append(
            {
                "table": kind,
                "bytes_a_row": table.nbytes / len(table),
                "size": round(table.nbytes / reference["bytes"], 3),
                "largest_score_difference": float(np.abs(scores - reference["scores"]).max()),
                "spread_of_scores": float(scores.std()),
                "overlap_10": round(recall(best, reference["best"]), 4),
                "ndcg_10": round(_ndcg(scores, sequences.items[targets] - 1, *_seen(sequences, users, targets)), 5),
            }
        )
    return [*rows, *reference["found"]]


def indices(vectors: Vectors, queries: Any) -> list[Row]:
    """What indices of faiss find of the best ten."""
    truth = ExactIndex(vectors).search(queries, BEST)[1]
    ways = [IndexConfig(f"IVF{lists(len(vectors))},Flat", probes) for probes in (8, 32)] + [IndexConfig("HNSW32")]
    return [
        {"index": way.factory, "probes": way.probes, "overlap_10": round(recall(found, truth), 4)}
        for way in ways
        for found in [way.index(vectors).search(queries, BEST)[1]]
    ]


def lists(items: int) -> int:
    """Lists of an IVF index: about the square root of the number of items."""
    return 1 << max(4, int(np.sqrt(items)).bit_length())


def _seen(sequences: Any, users: Any, targets: Any) -> tuple[Any, Any]:
    """Rows and items (0..V-1) that users did before their target."""
    counts = targets - sequences.offsets[users]
    rows = np.repeat(np.arange(len(users)), counts)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return rows, sequences.items[np.repeat(sequences.offsets[users], counts) + within] - 1


def _ndcg(scores: Any, targets: Any, rows: Any, seen: Any) -> float:
    """Mean NDCG@10 of one target a row among the items not seen; ties count half."""
    own = scores[np.arange(len(scores)), targets].copy()
    left = scores.copy()
    left[rows, seen] = -np.inf
    left[np.arange(len(scores)), targets] = -np.inf
    rank = (left > own[:, None]).sum(axis=1) + 0.5 * (left == own[:, None]).sum(axis=1)
    return float(np.where(rank < BEST, 1 / np.log2(rank + 2), 0).mean())


def drawn(count: int, width: int, seed: int, centres: int) -> Any:
    """Vectors (count, width) around so many centres, which do not depend on ``seed``; without centres, scattered."""
    generator = np.random.default_rng(seed)
    noise = generator.standard_normal((count, width), dtype=np.float32)
    if not centres:
        return noise
    middle = np.random.default_rng(0).standard_normal((centres, width), dtype=np.float32)
    return middle[generator.integers(0, centres, count)] + np.float32(0.5) * noise


def timed(work: Callable[[], Any], rounds: int) -> tuple[float, float, Any]:
    """Median milliseconds of the processor, MiB allocated at most, and the result."""
    found, spent = work(), []
    for _ in range(rounds):
        start = time.process_time()
        work()
        spent.append(1000 * (time.process_time() - start))
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    return float(np.median(spent)), peak, found


def whole(values: Any, queries: Any) -> tuple[Any, Any]:
    """The rival: all scores at once."""
    scores = queries @ values.T
    rows = np.argpartition(-scores, BEST, axis=1)[:, :BEST]
    order = np.argsort(-np.take_along_axis(scores, rows, axis=1), axis=1)
    return None, np.take_along_axis(rows, order, axis=1)


def speed(items: int, centres: int, width: int, batches: list[int], rounds: int) -> list[Row]:
    """Milliseconds a query, memory and recall@10 by way of retrieval; recall is that of 64 queries at least."""
    values, rows = drawn(items, width, 1, centres), []
    ways: dict[str, tuple[float, float, Callable[[Any], Any]]] = {
        "all scores at once": (values.nbytes, 0.0, lambda queries: whole(values, queries))
    }
    for kind in KINDS:
        index = ExactIndex(as_table(values, kind))
        ways[f"exact, {kind}"] = (index.vectors.nbytes, 0.0, lambda queries, index=index: index.search(queries, BEST))
    for factory, probes in ((f"IVF{lists(items)},Flat", 8), (f"IVF{lists(items)},Flat", 32), ("HNSW32", 0)):
        start = time.process_time()
        built = FaissIndex(FloatTable(values), factory, probes)
        name = f"faiss {factory}" + (f", {probes} probes" if probes else "")
        ways[name] = (
            float("nan"),
            time.process_time() - start,
            lambda queries, index=built: index.search(queries, BEST),
        )
    for batch in batches:
        queries = drawn(batch, width, 2, centres)
        judged = drawn(max(batch, 64), width, 3, centres)
        truth = ExactIndex(FloatTable(values)).search(judged, BEST)[1]
        for name, (size, build_seconds, search) in ways.items():
            spent, peak, _ = timed(lambda search=search, queries=queries: search(queries), rounds)
            rows.append(
                {
                    "way": name,
                    "items": items,
                    "centres": centres,
                    "batch": batch,
                    "table_mib": None if np.isnan(size) else round(size / 2**20, 1),
                    "build_cpu_seconds": round(build_seconds, 1),
                    "ms_a_query": round(spent / batch, 3),
                    "search_mib": None if np.isnan(size) else round(peak, 1),
                    "recall_10": round(recall(search(judged)[1], truth), 4),
                }
            )
    return rows


def main() -> None:
    """Measure and print one JSON object; without an argument, keep it, too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["quality", "speed"])
    parser.add_argument("--data", default="movielens-small")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--centres", type=int, default=CENTRES)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    result: Row = {"threads": 1}
    if options.what != "speed":
        result["quality"] = quality(options.data, options.epochs)
    if options.what != "quality":
        settings = RECORDED if options.what is None else ((options.items, options.centres),)
        found = [speed(items, near, options.width, options.batches, options.rounds) for items, near in settings]
        result["speed"] = [row for rows in found for row in rows]
    print(text := json.dumps(result, indent=1))
    if options.what is None:
        EVIDENCE.write_text(text + "\n")


if __name__ == "__main__":
    main()
