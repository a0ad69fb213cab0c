"""Quality against the rate of requests: when should a device ask for a new edit?

    python -m benchmarks.policy [--work work/evidence/movielens-small] [--seeds 3] [--out docs/evidence/request-policy.json]

Protocol time on movielens-small, SASRec, held-back editor. Every test user is a device that sees the test events in order; at
each event it ranks the next item among 99 others under the edit it asked for last, and asks anew when its policy says so. All
policies ask at a device's first event. Rates are set as they would be in practice: thresholds are calibrated on the latest
contexts before the test period (those the editor learns from), and the rate that comes out on the test period is reported
beside the quality.

* fitted: distances in coordinates of the context's summary that predict distances between edits (what `persona export` ships);
* plain: distances between mean embeddings of the context;
* fixed: every n-th event; random: each event with the same probability;
* edits: distances between the edits themselves, which only the cloud knows: the limit of any such policy.

Hosts and editors are those of `python -m benchmarks.evidence recsys movielens-small-modes`, trained first where they are missing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from persona import runtime

runtime.configure()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from persona.device.policy import RequestPolicy, fit_policy, plain_policy, requests, source_rows  # noqa: E402
from persona.storage import write_json  # noqa: E402
from recsys import metrics  # noqa: E402
from recsys.config import RecsysConfig  # noqa: E402
from recsys.data import catalogue  # noqa: E402
from recsys.data.batches import Context  # noqa: E402
from recsys.data.sequences import SequenceData, build_sequences  # noqa: E402
from recsys.device.export import edit_points, summaries  # noqa: E402
from recsys.methods import Problem, train_method  # noqa: E402
from recsys.personalised import Personalised  # noqa: E402

DATA = "movielens-small"
SETTINGS = RecsysConfig(protocol="time", host="sasrec", preset="paper", epochs=60, patience=5, min_epochs=10)
RATES = (0.3, 0.1, 0.03)
ROWS = 2048
HEADLINES = ("uauc", "ndcg_10")

Asked = NDArray[np.bool_]


@dataclass
class Devices:
    """Events of devices in order, with what policies and quality need of them."""

    context: Context
    first: Asked
    summaries: NDArray[np.float32]
    points: NDArray[np.float32]

    @classmethod
    def at(cls, data: SequenceData, positions: NDArray[np.int64], model: Personalised) -> Devices:
        """The events at ``positions``."""
        items, lengths = data.contexts(positions, model.host.config.max_length)
        context = Context(torch.from_numpy(items), torch.from_numpy(lengths))
        users = data.user_of(positions)
        first = np.append(True, users[1:] != users[:-1])
        points = edit_points(model, context).astype(np.float32)
        return cls(context, first, summaries(model.host, context), points)


class Quality:
    """Test metrics of edits that were asked for at other events than those they answer."""

    def __init__(self, problem: Problem, model: Personalised) -> None:
        self.model, self.test = model, problem.test
        assert model.editor is not None
        with torch.no_grad():
            context = self.test.contexts
            self.state = model.host.encode(context)
            self.codes = model.editor.codes(model.host.context_features(context), context.lengths)
            self.targets = model.host.target_vectors(self.test.candidates.reshape(-1))

    @torch.no_grad()
    def __call__(self, rows: NDArray[np.int64] | None) -> dict[str, float]:
        """Metrics where event i is answered by the edit of event ``rows[i]``; by the host where ``None``."""
        scores = []
        assert self.model.editor is not None
        host, width = self.model.host, self.test.candidates.shape[1]
        for block in torch.split(torch.arange(len(self.codes)), ROWS):
            edit = None
            if rows is not None:
                sources = torch.from_numpy(rows)[block]
                edit = self.model.editor.bounded(self.model.editor.unbounded(self.codes[sources]))
            targets = self.targets.view(-1, width, host.config.dim)[block]
            with host.adaptive.applied(edit):
                scores.append(host.match(self.state.index_select(block), targets))
        values = metrics.per_user(torch.cat(scores).numpy(), self.test.users, ks=(10,))
        return {name: float(values[name].mean()) for name in HEADLINES}


def fixed(first: Asked, rate: float) -> Asked:
    """Every n-th event of a device."""
    index = np.arange(len(first))
    return (index - source_rows(first)) % round(1 / rate) == 0


def policies(before: Devices, lately: Devices, now: Devices, seed: int) -> dict[str, Callable[[float], Asked]]:
    """Which test events ask at a wanted rate: fitted on all events before, calibrated on the latest of them."""
    width = (before.summaries.shape[1] - 1) // 3
    drift: dict[str, tuple[RequestPolicy, NDArray[np.float32], NDArray[np.float32]]] = {
        "fitted": (fit_policy(before.summaries, before.points), lately.summaries, now.summaries),
        "plain": (plain_policy(before.summaries, slice(0, width)), lately.summaries, now.summaries),
        "edits": (plain_policy(before.points, slice(None)), lately.points, now.points),
    }

    def drifted(name: str) -> Callable[[float], Asked]:
        policy, past, present = drift[name]

        def ask(rate: float) -> Asked:
            threshold = policy.calibrated(policy.coordinates(past), lately.first, rate).threshold
            return requests(policy.coordinates(present), now.first, threshold)

        return ask

    rng = np.random.default_rng([seed, 5])
    draws = rng.random(len(now.first))
    return {name: drifted(name) for name in drift} | {
        "fixed": lambda rate: fixed(now.first, rate),
        "random": lambda rate: now.first | (draws < rate),
    }


def measure(data: SequenceData, work: Path, seed: int) -> list[dict[str, Any]]:
    """One row a policy and wanted rate."""
    config = replace(SETTINGS, seed=seed)
    problem = Problem(data, config, folder=work / "cells")
    model = train_method("persona_held_back", problem).scorer
    assert isinstance(model, Personalised)
    model.eval()
    with problem.reporting():
        quality = Quality(problem, model)
    before = Devices.at(data, problem.everything, model)
    lately = Devices.at(data, problem.held_back.adapt, model)
    now = Devices.at(data, quality.test.positions, model)
    rows = [
        {"seed": seed, "policy": "never", "wanted": 0.0, "rate": 0.0, **quality(None)},
        {"seed": seed, "policy": "always", "wanted": 1.0, "rate": 1.0, **quality(np.arange(len(now.first)))},
        {
            "seed": seed,
            "policy": "once",
            "wanted": 0.0,
            "rate": float(now.first.mean()),
            **quality(source_rows(now.first)),
        },
    ]
    for name, ask in policies(before, lately, now, seed).items():
        for rate in RATES:
            asked = ask(rate)
            found = {"seed": seed, "policy": name, "wanted": rate, "rate": float(asked.mean())}
            rows.append(found | quality(source_rows(asked)))
            print(json.dumps(rows[-1]), flush=True)
    return rows


def averaged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds, a row a policy and wanted rate."""
    keys = list(dict.fromkeys((row["policy"], row["wanted"]) for row in rows))
    found = []
    for policy, wanted in keys:
        own = [row for row in rows if (row["policy"], row["wanted"]) == (policy, wanted)]
        means = {name: float(np.mean([row[name] for row in own])) for name in ("rate", *HEADLINES)}
        found.append({"policy": policy, "wanted": wanted, **means})
    return found


def figure(rows: list[dict[str, Any]], path: Path) -> None:
    """Quality against the rate of requests."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    shown, axes = pyplot.subplots(1, len(HEADLINES), figsize=(10, 4))
    for axis, metric in zip(axes, HEADLINES, strict=True):
        for name in ("fitted", "plain", "fixed", "random", "edits"):
            own = sorted((row for row in rows if row["policy"] == name), key=lambda row: row["rate"])
            style = {"edits": "k:", "fitted": "o-"}.get(name, ".--")
            axis.plot([row["rate"] for row in own], [row[metric] for row in own], style, label=name)
        for name in ("always", "never"):
            level = next(row[metric] for row in rows if row["policy"] == name)
            axis.axhline(level, color="grey", linewidth=0.6)
            axis.annotate(name, (0.026, level), fontsize=8, color="grey", va="bottom")
        axis.set(xscale="log", xlim=(0.025, 0.5), xlabel="requests an event", ylabel=f"time/{metric}")
        axis.minorticks_off()
        axis.set_xticks(RATES, [f"{rate:g}" for rate in RATES])
    axes[0].legend(fontsize=8)
    shown.tight_layout()
    shown.savefig(path, dpi=110)
    pyplot.close(shown)


def main() -> None:
    """Measure, print the table, and keep rows and figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("work/evidence") / DATA)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("docs/evidence/request-policy.json"))
    parser.add_argument("--figure", type=Path, default=Path("docs/figures/request-policy.png"))
    arguments = parser.parse_args()
    prepared = arguments.work / "prepared"
    if not prepared.exists():
        build_sequences(catalogue.load(DATA)).save(prepared)
    data = SequenceData.load(prepared)
    rows = [row for seed in range(arguments.seeds) for row in measure(data, arguments.work, seed)]
    means = averaged(rows)
    write_json(arguments.out, {"seeds": arguments.seeds, "rows": rows, "means": means})
    arguments.figure.parent.mkdir(parents=True, exist_ok=True)
    figure(means, arguments.figure)
    print("| policy | wanted rate | rate | time/uauc | time/ndcg_10 |\n| --- | --- | --- | --- | --- |")
    for row in means:
        print(
            f"| {row['policy']} | {row['wanted']:.2f} | {row['rate']:.3f} | {row['uauc']:.4f} | {row['ndcg_10']:.4f} |"
        )


if __name__ == "__main__":
    main()
