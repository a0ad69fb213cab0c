"""Editing one user against fine-tuning for one user: context in, ranked top ten out.

    python benchmarks/editing.py [--host sasrec] [--items 3700] [--rounds 40]

Both start from the same host and the same recent events of one user, and end with the same ranking of the whole catalogue.

* edit: one pass of the editor, then the edited host ranks;
* fine-tune: N steps of Adam on the user's own recent events (every event a target, 4 negatives each) over the adaptive
  layers, or over the whole host, then the tuned host ranks.

The variants take turns in one process, a burst of calls each, so that a machine that slows down slows all of them; ratios are
medians over rounds.
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

from persona.editor import EditorConfig, ParameterEditor  # noqa: E402
from recsys import losses  # noqa: E402
from recsys.batches import Batch, Context  # noqa: E402
from recsys.hosts import Host, HostConfig, make_host  # noqa: E402
from recsys.personalised import Personalised  # noqa: E402
from recsys.recommender import Recommender  # noqa: E402

NEGATIVES = 4
BURST = 5


def make_recommender(kind: str, n_items: int) -> Recommender:
    """A host with a fresh editor: training changes neither's cost."""
    torch.manual_seed(0)
    host = make_host(HostConfig.preset(kind, "paper", n_items))
    editor = ParameterEditor(
        EditorConfig(context_dim=host.context_dim), host.adaptive.specs, host.adaptive.weight_scales()
    )
    return Recommender(Personalised(host, editor), [str(i) for i in range(1, n_items + 1)]).compile()


def finetune(tuned: Host, history: list[int], steps: int, *, everything: bool) -> list[int]:
    """Tune a host on one user's history for ``steps`` steps, then rank."""
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
    with torch.no_grad():
        scores = tuned.score_catalogue(tuned.encode(Context.from_lists([history], length)))
    return scores[0].topk(10).indices.tolist()


def alternate(variants: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every variant in every round: the median of a burst, for a server answers with warm caches."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            burst = []
            for _ in range(BURST):
                start = time.perf_counter()
                run()
                burst.append(1e3 * (time.perf_counter() - start))
            times[name].append(statistics.median(burst))
    return times


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="sasrec")
    parser.add_argument("--items", type=int, default=3700)
    parser.add_argument("--rounds", type=int, default=40)
    arguments = parser.parse_args()
    recommender = make_recommender(arguments.host, arguments.items)
    host = recommender.model.host
    history = list(range(1, host.config.max_length + 1))
    ids = [str(i) for i in history]
    variants: dict[str, Callable[[], object]] = {
        "edit": lambda: recommender.recommend(ids, 10),
        "host": lambda: recommender.recommend(ids, 10, level="host"),
    }
    for steps in (1, 10):
        for name, everything in (("adaptive", False), ("all", True)):
            # Copying the host for the user is not counted.
            own = copy.deepcopy(host)
            variants[f"finetune_{name}_{steps}"] = lambda h=own, s=steps, e=everything: finetune(
                h, history, s, everything=e
            )
    alternate(variants, max(5, arguments.rounds // 20))
    times = alternate(variants, arguments.rounds)
    edit = times["edit"]
    report = {
        "host": arguments.host,
        "items": arguments.items,
        "rounds": arguments.rounds,
        "median_ms": {name: round(statistics.median(values), 4) for name, values in times.items()},
        "times_cheaper_than": {
            name: round(statistics.median(v / e for v, e in zip(values, edit, strict=True)), 1)
            for name, values in times.items()
            if name.startswith("finetune")
        },
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
