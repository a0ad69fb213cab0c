"""The replay of a stream: after the cut nothing is trained, events arrive in time order, and every policy keeps up as it can.

Window after window, each policy serves all events with what their devices knew just before them; then it may learn from the
window, to serve the next one. Host, editor and bank are those trained before the cut, whatever the scenario does later.

Letters: W windows, U distinct users of a window.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from persona.bootstrap import Interval, bootstrap_mean
from persona.errors import ConfigError
from persona.prototypes import PrototypeBank, RefineConfig
from recsys.config import RecsysConfig
from recsys.data.scenarios import apply_scenario
from recsys.data.sequences import SequenceData
from recsys.methods.problem import Problem
from recsys.personalised import Personalised
from recsys.replay.policies import Edits, Finetuned, Frozen, Policy, Prototypes, Refined, Spent
from recsys.replay.windows import Window, boundaries, cut

METRICS = ("uauc", "ndcg_10")
POLICIES = ("host", "edits", "prototypes", "refined", "refined_checked", "finetune_adaptive", "finetune_all")

Values = dict[str, NDArray[np.float64]]
OnWindow = Callable[[str, int], None]


@dataclass(frozen=True)
class ReplayConfig:
    """How a stream is replayed.

    Attributes:
        scenario: see ``recsys.data.scenarios``.
        windows: of about equally many events.
        days: length of windows of the calendar instead; 0 for windows of equally many events.
        shift: window in which the scenario sets in.
        refinement: limits of a refinement.

    Raises:
        ConfigError: the shift is not inside the stream.
    """

    scenario: str = "none"
    windows: int = 10
    days: float = 0.0
    shift: int = 3
    refinement: RefineConfig = field(default_factory=RefineConfig)

    def __post_init__(self) -> None:
        if self.shift < 1 or (not self.days and self.shift >= self.windows):
            raise ConfigError(
                f"the shift sets in with window {self.shift}, but has to have windows before and after it: choose one from "
                f"1 to {self.windows - 1}"
            )


@dataclass
class Served:
    """One policy in one window.

    Attributes:
        users: (U,) who were served.
        values: (U,) values a metric.
        parent: (U,) values a metric of the version before, where a new version serves for the first time; else empty.
        spent: what it took.
        unexplained: share of the energy of the edits that prototypes miss; None for policies without.
    """

    users: NDArray[np.int64]
    values: Values
    parent: Values
    spent: Spent
    unexplained: float | None = None


@dataclass
class Replay:
    """A replayed stream.

    Attributes:
        config: how.
        starts: (W,) the time at which each window begins.
        events: (W,) events of each window.
        served: for every policy, its windows.
        prototypes: K of the bank.
    """

    config: ReplayConfig
    starts: list[int]
    events: list[int]
    served: dict[str, list[Served]]
    prototypes: int

    def means(self, policy: str, metric: str) -> list[float]:
        """(W,) mean over users of every window."""
        return [float(window.values[metric].mean()) for window in self.served[policy]]

    def difference(self, policy: str, other: str, metric: str, windows: Sequence[int]) -> Interval:
        """``policy`` minus ``other`` over some windows: a user counts with the mean of their windows."""
        pairs = [(self.served[policy][w], self.served[other][w]) for w in windows]
        return _over_users([(a.users, a.values[metric] - b.values[metric]) for a, b in pairs])

    def against_parents(self, policy: str, metric: str, windows: Sequence[int]) -> Interval | None:
        """New versions minus their parents, in the first window of each; None if there was no new version."""
        pairs = [s for s in (self.served[policy][w] for w in windows) if s.parent]
        return _over_users([(s.users, s.values[metric] - s.parent[metric]) for s in pairs]) if pairs else None


def make_policies(
    data: SequenceData, settings: RecsysConfig, model: Personalised, bank: PrototypeBank, limits: RefineConfig
) -> list[Policy]:
    """One of each, with parameters of their own where they change them; ``data`` is the log that is replayed."""
    host = model.host
    return [
        Frozen(host),
        Edits(model),
        Prototypes(model, bank),
        Refined(model, bank, limits),
        Refined(model, bank, limits, settings.monitor),
        Finetuned(copy.deepcopy(host), False, data, settings),
        Finetuned(copy.deepcopy(host), True, data, settings),
    ]


def replay(
    problem: Problem,
    model: Personalised,
    bank: PrototypeBank,
    config: ReplayConfig,
    on_window: OnWindow = lambda policy, window: None,
) -> Replay:
    """Replay the test events of ``problem`` under a scenario.

    Args:
        problem: protocol ``time``; its data is the log as it is.
        model: host and editor, trained before the cut.
        bank: prototypes, fitted before the cut.
        config: scenario, windows, limits.
        on_window: called with a policy and the window that it has just finished.

    Raises:
        ConfigError: another protocol, or a shift outside the windows.
        DataError: the stream is too short.
    """
    if problem.config.protocol != "time":
        raise ConfigError(
            f"a replay follows time, but the protocol is {problem.config.protocol!r}: give --protocol time"
        )
    with problem.reporting():
        positions, length = problem.test.positions, model.host.config.max_length
    starts = boundaries(problem.data.times[positions], config.windows, config.days or None)
    if config.shift >= len(starts):
        raise ConfigError(
            f"the shift sets in with window {config.shift}, but there are only {len(starts)}: choose another"
        )
    data = apply_scenario(problem.data, config.scenario, int(starts[config.shift]), problem.config.seed)
    windows = cut(data, positions, starts, length, problem.config.seed)
    served = {
        policy.name: [_serve(policy, window, on_window) for window in windows]
        for policy in make_policies(data, problem.config, model, bank, config.refinement)
    }
    return Replay(config, starts.tolist(), [len(w.positions) for w in windows], served, len(bank))


def _serve(policy: Policy, window: Window, on_window: OnWindow) -> Served:
    spent = policy.serve(window)
    started = time.process_time()
    values = window.run(policy.scorer).per_user
    spent.serving_seconds = time.process_time() - started
    parent = {} if policy.parent is None else window.run(policy.parent).per_user
    unexplained = policy.unexplained(window) if isinstance(policy, Prototypes) else None
    policy.parent = None
    started = time.process_time()
    spent.gradient_steps = policy.learn(window)
    spent.learning_seconds = time.process_time() - started
    on_window(policy.name, window.index)
    return Served(
        window.users, {m: values[m] for m in METRICS}, {m: parent[m] for m in METRICS if parent}, spent, unexplained
    )


def _over_users(parts: Sequence[tuple[NDArray[np.int64], NDArray[np.float64]]]) -> Interval:
    _, index = np.unique(np.concatenate([users for users, _ in parts]), return_inverse=True)
    values = np.concatenate([values for _, values in parts])
    return bootstrap_mean(np.bincount(index, values) / np.bincount(index))


def spent_in_all(windows: Sequence[Served]) -> Mapping[str, Any]:
    """The sums over windows of what a policy spent."""
    rows = [asdict(window.spent) for window in windows]
    return {name: sum(row[name] for row in rows) for name in rows[0]}
