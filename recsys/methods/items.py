"""Item edits in a comparison: a host, or Persona, whose item table and biases follow the stream.

Under ``time`` the stream is all that came after what the host was trained on: what was held back from it, the validation slice,
and the test events before the one that is judged. Where protocols leave out the last event of each user there is no stream, and
the methods equal what they edit; so they do over a table that lies in pieces.

What validation chooses: whether rows move at all, k0, beta and the half-life. It goes by the metric that selects epochs and by
NDCG@10 over the whole catalogue. Each candidate has, in both, a share of the largest gain over no edits that any candidate has;
who is below no edits in one of them is out, and the largest sum of shares wins.

Shapes: V items.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from persona.rows import row_bytes
from persona.training.objective import FitResult
from recsys.evaluation import Evaluation, reported
from recsys.hosts import Host
from recsys.item_edits import Blocks, ItemEdits, new_edits
from recsys.methods.host import train_host
from recsys.methods.persona import refresh_host
from recsys.methods.problem import Positions, Problem, Trained
from recsys.methods.prototypes import train_persona
from recsys.personalised import Personalised

K0 = (np.inf, 1.0, 0.1)
BETAS = (0.25, 0.5, 1.0)
SHARES = (0.01, 0.03, 0.1)  # half-lives as shares of the training events
FULL = "full_ndcg_10"


@dataclass(frozen=True)
class Choice:
    """Settings of item edits.

    Attributes:
        k0: events that one of training counts for; infinite: only new rows move; ``None``: no row does.
        beta: weight of the bias.
        half_life: in events.
    """

    k0: float | None = None
    beta: float = 0.0
    half_life: float = np.inf

    def record(self) -> dict[str, float]:
        """What a report names: numbers that JSON knows."""
        named = {"rows": float(self.k0 is not None), "beta": self.beta}
        if self.k0 is not None:
            named |= {"only_new": 1.0} if np.isinf(self.k0) else {"k0": self.k0}
        return named if np.isinf(self.half_life) else named | {"half_life": self.half_life}


def train_item_edits(problem: Problem) -> Trained:
    """The base or the refreshed host, whichever validates better, with item edits; a refresh sends the rows that moved."""
    hosts = {0.0: train_host(problem), 1.0: refresh_host(problem)}
    refreshed = max(hosts, key=lambda name: problem.score(hosts[name].scorer))
    trained = hosts[refreshed]
    return _following(problem, replace(trained, chosen={"refreshed": refreshed}))


def train_persona_items(problem: Problem) -> Trained:
    """Persona as it is deployed, over an item table that follows the stream."""
    return _following(problem, train_persona(problem))


def choose(problem: Problem, edits: ItemEdits) -> tuple[Choice, ItemEdits | None, float]:
    """What validation prefers, the recommender with it, ``None`` where that is no edits at all, and what selects epochs of it."""
    evaluation = _validation(problem)
    values: dict[Choice, tuple[float, float]] = {}

    def best(candidates: Iterable[Choice]) -> Choice:
        for choice in candidates:
            if choice not in values:
                found = evaluation.run(_with(edits, choice)).summary
                values[choice] = (found[problem.config.monitor], found[FULL])
        return preferred(values)

    rows = best([Choice(), *(Choice(k0) for k0 in K0)])
    biased = best(replace(start, beta=beta) for start in dict.fromkeys((rows, Choice())) for beta in BETAS)
    if biased != Choice():
        count = len(problem.everything)
        biased = best(replace(biased, half_life=share * count) for share in SHARES)
    return biased, None if biased == Choice() else _with(edits, biased), values[biased][0]


def preferred(values: dict[Choice, tuple[float, float]]) -> Choice:
    """Of choices with two metrics each, the one that gains the most over no edits, and loses in neither."""
    gains = np.array(list(values.values())) - np.array(values[Choice()])
    shares = gains / np.maximum(gains.max(axis=0), 1e-12)
    scores = np.where((gains >= 0).all(axis=1), shares.sum(axis=1), -1.0)
    return list(values)[int(scores.argmax())]


def _following(problem: Problem, trained: Trained) -> Trained:
    """``trained`` with item edits, if there is a stream and validation wants them."""
    scorer = trained.scorer
    if problem.config.protocol != "time" or problem.sharded:
        return trained
    started = time.perf_counter()
    assert isinstance(scorer, Personalised)
    host = scorer.host
    learned, cut = _learned(problem, host)
    events, edits, explained = new_edits(problem.data, host, learned, problem.config.seed)
    choice, model, value = choose(
        problem, ItemEdits(scorer, events, edits, Blocks(problem.data, problem.split.cut_times[cut]))
    )
    sent = 0 if model is None else model.moved_rows() * row_bytes(host.config.dim)
    result = FitResult(best_value=value, seconds=time.perf_counter() - started)
    chosen = {**trained.chosen, **choice.record(), "explained": explained}
    return Trained(scorer if model is None else model, trained.refresh_bytes + sent, result, chosen)


def _learned(problem: Problem, host: Host) -> tuple[Positions, str]:
    """The rows that a host was trained on, and the cut after which its stream begins."""
    if len(problem.split.adapt) and host.digest() == problem.base_host().digest():
        return problem.split.train, "adapt"
    return problem.everything, "validation"


def _validation(problem: Problem) -> Evaluation:
    """The validation rows with uniform negatives, and with the whole catalogue alongside."""
    rows = problem.evaluation(problem.split.validation, problem.config.validation_events)
    reported(rows, attends=problem.config.host == "din").alongside.pop("popular")
    return rows


def _with(edits: ItemEdits, choice: Choice) -> ItemEdits:
    generator = None if choice.k0 is None else edits.edits.generator
    made = replace(edits.edits, generator=generator, k0=choice.k0 or 0.0, beta=choice.beta)
    return edits.with_edits(made, choice.half_life)
