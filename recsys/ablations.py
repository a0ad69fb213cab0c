"""Ablations: what each part of the method is worth, each a plain function that gives ``Measured`` rows for ``compare``.

    staleness(problem)                          the editor reads a context that is s events old, the host a fresh one
    levels(problem)                             editor only, prototypes only, prototypes with their remainder
    sizes(problem)                              plain prototypes only, for several K
    setting(problem, "transfer", TRANSFERS)     the editor trained with other settings: transfer, bound, tau, width, head

The host is among the rows of each, so that ``table(compare([...]))`` shows differences to it.

Shapes: B rows, T context length of the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from persona.comparison import REFERENCE, Measured, Row
from persona.editor import ParameterEditor
from persona.prototypes import Server
from persona.transfer import TRANSFERS
from persona.wire import BOUNDS, MESSAGE_LEVELS
from recsys.config import RecsysConfig
from recsys.data.batches import Context
from recsys.evaluation import Evaluation, Scorer
from recsys.methods import measure, train_method
from recsys.methods.problem import Problem
from recsys.personalised import Personalised
from recsys.prototypes import ServedAtLevel, fit_bank

METHOD = "persona_held_back"
DELAYS = (0, 1, 2, 5, 10)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class StaleEdits:
    """Edits from a context that is ``delay`` events old, applied to a host that reads the fresh one.

    Args:
        model: host and editor.
        delay: s; what is scored has contexts of T + s events, the last T of which are fresh.
    """

    def __init__(self, model: Personalised, delay: int) -> None:
        self.model, self.host, self.delay = model, model.host, delay

    def score(self, context: Context, candidates: Tensor) -> Tensor:
        """Logits (B, C) of candidates (B, C), in a context of width T + s."""
        length = self.model.host.config.max_length
        state = self.model.host.encode(last(context, 0, length))
        return self.model.host.score(state, candidates, self.model.edit(last(context, self.delay, length)))

    def score_catalogue(self, context: Context) -> Tensor:
        """Logits (B, V + 1), in a context of width T + s."""
        length = self.model.host.config.max_length
        state = self.model.host.encode(last(context, 0, length))
        return self.model.host.score_catalogue(state, self.model.edit(last(context, self.delay, length)))


def last(context: Context, dropped: int, length: int) -> Context:
    """The last ``length`` items of every row of a context after its newest ``dropped`` are gone; possibly none."""
    stop = (context.lengths - dropped).clamp_min(0)
    start = (stop - length).clamp_min(0)
    index = start.unsqueeze(1) + torch.arange(length, device=start.device)
    valid = index < stop.unsqueeze(1)
    items = context.items.gather(1, index.clamp_max(context.items.shape[1] - 1))
    return Context(torch.where(valid, items, 0), stop - start)


def staleness(problem: Problem, delays: Sequence[int] = DELAYS, method: str = METHOD) -> dict[str, Measured]:
    """The editor with contexts that are 0, 1, 2, ... events old; rows ``stale_<s>``."""
    model = _edited(problem, method)
    rows = _with_host(problem)
    with problem.reporting():
        positions = problem.test.positions
    for delay in delays:
        evaluation = Evaluation(
            problem.data,
            positions,
            max_length=model.host.config.max_length + delay,
            full=problem.config.protocol == "full",
            seen=problem.seen,
            seed=problem.config.seed,
        )
        rows[f"stale_{delay}"] = _measured(f"stale_{delay}", evaluation, StaleEdits(model, delay))
    return rows


def levels(problem: Problem, names: Sequence[str] = MESSAGE_LEVELS[1:], method: str = METHOD) -> dict[str, Measured]:
    """One editor at several serving levels of its bank; rows ``level_<name>``, ``level_full`` is the editor alone."""
    model = _edited(problem, method)
    server = Server(_editor(model), fit_bank(problem, model, problem.bank_config).bank)
    rows = _with_host(problem)
    for name in names:
        rows[f"level_{name}"] = _at_level(f"level_{name}", problem, model, server, name)
    return rows


def sizes(problem: Problem, ks: Sequence[int] = SIZES, method: str = METHOD) -> dict[str, Measured]:
    """Plain prototypes alone, for several K; rows ``k_<K>``, and the editor itself as ``editor``.

    They are the means of their members, so that rows differ in K and in nothing else. A K for which there are too few distinct edits has no row.
    """
    model = _edited(problem, method)
    rows = _with_host(problem)
    for k in ks:
        plain = replace(problem.bank_config, k=k, specialise=False)
        server = Server(_editor(model), fit_bank(problem, model, plain).bank)
        if len(server.bank) < k:
            continue
        rows[f"k_{k}"] = _at_level(f"k_{k}", problem, model, server, "prototype")
    return rows | {"editor": replace(measure(problem, method), method="editor")}


def setting(
    problem: Problem, name: str, values: Sequence[str | int | float], method: str = METHOD
) -> dict[str, Measured]:
    """``method`` trained with other values of one of the editor's settings, over the same host; rows ``<name>_<value>``.

    Raises:
        ConfigError: the setting does not take a value.
    """
    rows = _with_host(problem)
    for value in values:
        config = RecsysConfig.from_dict({**problem.config.as_dict(), name: value})
        other = problem.with_config(config)
        rows[f"{name}_{value}"] = replace(measure(other, method), method=f"{name}_{value}")
    return rows


def transfer(problem: Problem) -> dict[str, Measured]:
    """Cross-layer knowledge transfer in its three forms; rows ``transfer_<form>``."""
    return setting(problem, "transfer", list(TRANSFERS))


def bound(problem: Problem) -> dict[str, Measured]:
    """Bounds of an edit, and none; rows ``bound_<kind>``."""
    return setting(problem, "bound", BOUNDS)


STUDIES: dict[str, Callable[[Problem], dict[str, Measured]]] = {
    "transfer": transfer,
    "bound": bound,
    "sizes": sizes,
    "levels": levels,
    "staleness": staleness,
}


def table(rows: Sequence[Row], metrics: Sequence[str] = ("uauc", "ndcg_10")) -> list[str]:
    """Lines of a Markdown table: metrics, and differences to the reference with their intervals."""
    columns = ["ablation", *(c for m in metrics for c in (m, f"{m} against the {REFERENCE}")), "bytes a refresh"]
    lines = [f"| {' | '.join(columns)} |", f"| {' | '.join(['---'] * len(columns))} |"]
    for row in rows:
        shown = [c for m in metrics for c in (f"{row.metrics[m]:.4f}", str(row.differences.get(m, "-")))]
        lines.append(f"| {' | '.join([row.method, *shown, f'{row.refresh_bytes:,}'])} |")
    return lines


def _edited(problem: Problem, method: str) -> Personalised:
    model = train_method(method, problem).scorer
    assert isinstance(model, Personalised)
    assert model.editor is not None
    return model


def _editor(model: Personalised) -> ParameterEditor:
    assert model.editor is not None
    return model.editor


def _with_host(problem: Problem) -> dict[str, Measured]:
    return {REFERENCE: measure(problem, REFERENCE)}


def _at_level(name: str, problem: Problem, model: Personalised, server: Server, level: str) -> Measured:
    with problem.reporting():
        return _measured(name, problem.test, ServedAtLevel(model, server, level), server.payload_bytes(level))


def _measured(name: str, evaluation: Evaluation, scorer: Scorer, refresh_bytes: int = 0) -> Measured:
    found = evaluation.run(scorer)
    return Measured(name, found.summary, found.per_user, found.users, refresh_bytes=refresh_bytes)
