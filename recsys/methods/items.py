"""Item edits in a comparison: a host, or Persona, whose item table and biases follow the stream.

Under ``time`` the stream is all that came after what the host was trained on: what was held back from it, the validation slice,
and the test events before the one that is judged. Where protocols leave out the last event of each user there is no stream, and
the methods equal what they edit; so they do over a table that lies in pieces.

Whether rows move at all, k0, beta and the half-life are chosen in a rehearsal: the host that has not seen the rows held back follows
the stream over these and the validation slice, which is as long as the one that the test part brings. Two metrics judge, the one
that selects epochs and NDCG@10 over the whole catalogue. A candidate has, in both, a share of the largest gain over no edits that
any candidate has; who is below no edits in one of them is out, and the largest sum of shares is first. Settings are searched one
after the other: k0, beta, half-life, and k0 again. The first that is not below no edits on the validation slice, over the host that
is deployed, wins; no edits is the last of the candidates.

Shapes: V items.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from persona.rows import row_bytes
from persona.training.objective import FitResult
from recsys.evaluation import Evaluation, Follower, Scorer, reported
from recsys.hosts import Host
from recsys.item_edits import Blocks, ItemEdits, new_edits
from recsys.methods.host import train_host
from recsys.methods.persona import refresh_host
from recsys.methods.problem import Positions, Problem, Trained
from recsys.methods.prototypes import train_persona
from recsys.personalised import Personalised

K0 = (np.inf, 1.0, 0.1)
BETAS = (0.25, 0.5, 1.0)
SHARES = (0.1, 0.03, 0.01)  # half-lives as shares of the training events, besides none
FIRST = 2  # the half-life that k0 is first chosen with
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


def rehearse(problem: Problem) -> list[Choice]:
    """What may be chosen, the best first, no edits last: judged on all rows that the early host has not seen but test rows."""
    held_back, host = problem.held_back, problem.early_host()
    rows = np.sort(np.concatenate([held_back.adapt, problem.split.validation]))
    edits = _over(problem, Personalised(host), held_back.train, held_back.cut_times["adapt"])
    evaluation, values = _judge(problem, rows), dict[Choice, tuple[float, float]]()

    def best(candidates: Iterable[Choice]) -> Choice:
        for choice in candidates:
            if choice not in values:
                values[choice] = _metrics(problem, evaluation, _with(edits, choice))
        return ordered(values)[0]

    spans = [np.inf, *(share * len(problem.everything) for share in SHARES)]
    found = best([Choice(), *(Choice(k0, half_life=spans[FIRST]) for k0 in K0)])
    for grid in (
        [{"beta": beta} for beta in BETAS],
        [{"half_life": span} for span in spans],
        [{"k0": k0} for k0 in (None, *K0)],
    ):
        found = best(replace(found, **changes) for changes in grid)
    return ordered(values)


def ordered(values: dict[Choice, tuple[float, float]]) -> list[Choice]:
    """Of choices with two metrics each, those that lose in neither against no edits, the largest gain first."""
    gains = np.array(list(values.values())) - np.array(values[Choice()])
    shares = (gains / np.maximum(gains.max(axis=0), 1e-12)).sum(axis=1)
    kept = [(share, choice) for share, choice, gain in zip(shares, values, gains, strict=True) if (gain >= 0).all()]
    return [choice for _, choice in sorted(kept, key=lambda pair: -pair[0])]


def _following(problem: Problem, trained: Trained) -> Trained:
    """``trained`` with item edits, if there is a stream and validation wants them."""
    scorer = trained.scorer
    if problem.config.protocol != "time" or problem.sharded:
        return trained
    started = time.perf_counter()
    assert isinstance(scorer, Personalised)
    evaluation = _judge(problem, problem.split.validation)
    plain = _metrics(problem, evaluation, scorer)
    edits = _over(problem, scorer, *_learned(problem, scorer.host))
    for choice in rehearse(problem):
        model = _with(edits, choice)
        found = plain if choice == Choice() else _metrics(problem, evaluation, model)
        if found[0] >= plain[0] and found[1] >= plain[1]:
            break
    result = FitResult(best_value=found[0], seconds=time.perf_counter() - started)
    sent = trained.refresh_bytes + model.moved_rows() * row_bytes(scorer.host.config.dim)
    chosen = {**trained.chosen, **choice.record()}
    return Trained(scorer if choice == Choice() else model, sent, result, chosen)


def _learned(problem: Problem, host: Host) -> tuple[Positions, int]:
    """The rows that a host was trained on, and the time at which its stream begins."""
    early = host.digest() == problem.early_host().digest()
    cuts = problem.held_back.cut_times
    return (problem.held_back.train, cuts["adapt"]) if early else (problem.everything, cuts["validation"])


def _over(problem: Problem, model: Personalised, learned: Positions, since: int) -> ItemEdits:
    """``model`` with edits of its table by the stream from the time ``since`` on."""
    events, edits, _ = new_edits(problem.data, model.host, learned, problem.config.seed)
    return ItemEdits(model, events, edits, Blocks(problem.data, since))


def _judge(problem: Problem, positions: Positions) -> Evaluation:
    """Rows with uniform negatives, and with the whole catalogue alongside."""
    rows = problem.evaluation(positions, problem.config.validation_events)
    reported(rows, attends=problem.config.host == "din").alongside.pop("popular")
    return rows


def _metrics(problem: Problem, evaluation: Evaluation, model: Scorer | Follower) -> tuple[float, float]:
    found = evaluation.run(model).summary
    return found[problem.config.monitor], found[FULL]


def _with(edits: ItemEdits, choice: Choice) -> ItemEdits:
    generator = None if choice.k0 is None else edits.edits.generator
    made = replace(edits.edits, generator=generator, k0=choice.k0 or 0.0, beta=choice.beta)
    return edits.with_edits(made, choice.half_life)
