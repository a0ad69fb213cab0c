"""Editing for one user against fine-tuning for one user: context in, edit ready; and on to the ranked top ten.

    python -m benchmarks.editing [--host sasrec] [--items 3700] [--rounds 40]

Both start from the same host and the same recent events of one user.

* edit: one pass of the compiled editor, its level chosen and checked, ready to be applied or sent;
* fine-tune: N steps of Adam on the user's own recent events (every event a target, 4 negatives each) over the adaptive
  layers, or over the whole host.

``ready`` compares these; ``ranked`` adds, on both sides, the ranking of the whole catalogue. The variants take turns in one
process, a burst of calls each, so that a machine that slows down slows all of them; ratios are medians over rounds.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable

from persona import runtime

runtime.configure()

import torch  # noqa: E402

from benchmarks._bundles import make_recommender  # noqa: E402
from recsys import losses  # noqa: E402
from recsys.data.batches import Batch, Context  # noqa: E402
from recsys.hosts import Host  # noqa: E402
from recsys.serving.recommender import Recommender  # noqa: E402

NEGATIVES = 4
BURST = 5


def compiled(kind: str, n_items: int) -> tuple[Host, Recommender]:
    """A host, and what a service runs of its bundle; training changes the cost of neither."""
    release = make_recommender(kind, n_items)
    return release.model.host, release.recommender()


def edit(served: Recommender, history: list[str], level: str) -> object:
    """The edit of one history at a level, bounded and checked; at level ``basis`` its message."""
    known = [served.known_items(history)[0]]
    contexts, tables = served.contexts(known), served.tables
    assert tables is not None
    chosen = tables.choose(contexts.codes, contexts.unbounded, [level])
    if level != "basis" or chosen.prototypes is None:
        return chosen
    coefficients = tables.coefficients(contexts.codes, chosen.prototypes)[0]
    return tables.remainder_message(int(chosen.prototypes[0]), coefficients)


def finetune(tuned: Host, history: list[int], steps: int, *, everything: bool, ranked: bool) -> object:
    """Tune a host on one user's history for ``steps`` steps, then rank if that is wanted."""
    parameters = list(tuned.parameters() if everything else tuned.adaptive_parameters())
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    length = tuned.config.max_length
    contexts = Context.from_lists([history[:i] for i in range(1, len(history))], length)
    targets = torch.tensor(history[1:]).unsqueeze(1)
    for _ in range(steps):
        negatives = torch.randint(1, tuned.config.n_items + 1, (len(targets), NEGATIVES))
        optimizer.zero_grad()
        losses.bce(tuned(Batch(contexts, torch.cat([targets, negatives], 1)).features)).backward()
        optimizer.step()
    if not ranked:
        return tuned
    with torch.no_grad():
        scores = tuned.score_catalogue(tuned.encode(Context.from_lists([history], length)))
    return scores[0].topk(10).indices.tolist()


def alternate(variants: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every variant in every round: the median of a burst, for a server answers with warm caches.

    Of processor time, on one thread: on a quiet machine that is the time on the clock, on a busy one it stays near it.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            burst = []
            for _ in range(BURST):
                start = time.process_time()
                run()
                burst.append(1e3 * (time.process_time() - start))
            times[name].append(statistics.median(burst))
    return times


def compare(host: Host, served: Recommender, rounds: int, *, ranked: bool) -> dict[str, object]:
    """Medians of every variant, and how many times dearer than the edit each fine-tuning is."""
    history = list(range(1, host.config.max_length + 1))
    ids = [str(i) for i in history]
    if ranked:
        variants: dict[str, Callable[[], object]] = {
            level: lambda v=level: served.recommend(ids, level=v) for level in ("edit", "basis", "host")
        }
    else:
        variants = {level: lambda v=level: edit(served, ids, v) for level in ("edit", "basis", "prototype")}
    for steps in (1, 10):
        for name, everything in (("adaptive", False), ("all", True)):
            # Copying the host for the user is not counted.
            own = copy.deepcopy(host)
            variants[f"finetune_{name}_{steps}"] = lambda h=own, s=steps, e=everything: finetune(
                h, history, s, everything=e, ranked=ranked
            )
    alternate(variants, max(2, rounds // 20))
    times = alternate(variants, rounds)
    return {
        "median_ms": {name: round(statistics.median(values), 4) for name, values in times.items()},
        "times_cheaper_than": {
            name: round(statistics.median(v / e for v, e in zip(values, times["edit"], strict=True)), 1)
            for name, values in times.items()
            if name.startswith("finetune")
        },
    }


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="sasrec")
    parser.add_argument("--items", type=int, default=3700)
    parser.add_argument("--rounds", type=int, default=40)
    arguments = parser.parse_args()
    host, served = compiled(arguments.host, arguments.items)
    report = {
        "host": arguments.host,
        "items": arguments.items,
        "rounds": arguments.rounds,
        "ready": compare(host, served, arguments.rounds, ranked=False),
        "ranked": compare(host, served, arguments.rounds, ranked=True),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
