"""What every method of a comparison of recommenders is given, and what it returns."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import fbgemm_gpu
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from persona import methods
from persona.comparison import Measured
from persona.editor import ParameterEditor
from persona.errors import ConfigError
from persona.torch_device import resolve
from persona.training.execution import Execution
from persona.training.kept import OnEpoch
from persona.training.loop import MakeExecution
from persona.training.objective import FitResult, Objective
from persona.training.ranks import current
from recsys.config import RecsysConfig
from recsys.data.protocols import Split, hold_back, make_split
from recsys.data.sequences import SequenceData
from recsys.evaluation import REPORTED, Evaluation, Follower, Scorer, catalogue_rows, reported
from recsys.hosts import Host, make_host
from recsys.methods.cost import extra_parameters, refresh_seconds
from recsys.objectives import RowObjective, SequenceObjective, make_objective
from recsys.personalised import Personalised
from recsys.seen import ByCount, seen_counts

logger = logging.getLogger(__name__)

Positions = NDArray[np.int64]

# Of the whole catalogue, in what a release is held to; of the rows that a report ranks, validation ranks one in so many at most.
RANKED, RANKED_PART = "full_ndcg_10", 8
# Rows behind a gap without which they are not asked.
LATE = 500


class Trained(methods.Trained[Scorer | Follower]):
    """A method, ready to be evaluated."""

    @property
    def scorer(self) -> Scorer | Follower:
        """What scores candidates in their context."""
        return self.model


class Problem(methods.Problem[SequenceData, RecsysConfig, Evaluation]):
    """One protocol, host and seed on one data set: rows, evaluations, and the hosts that methods share.

    Args:
        data: the events.
        config: all settings.
        folder: as in ``persona.methods.Problem``.
        on_epoch: likewise.

    Raises:
        ConfigError: there are more processes than rows in a batch, or a graphics card is asked for that cannot be used.
    """

    edited = ("persona", "duet", "apg")
    banked = ("persona_prototypes", "persona_basis", methods.WHOLE)
    rules: ClassVar[Mapping[str, str]] = dict.fromkeys(("persona_cross_fitted", methods.WHOLE), "by intervals")

    def __init__(
        self, data: SequenceData, config: RecsysConfig, *, folder: Path | None = None, on_epoch: OnEpoch | None = None
    ) -> None:
        if config.batch_size < (size := current().size):
            raise ConfigError(
                f"a batch of {config.batch_size} rows cannot be shared by {size} processes: start fewer, or choose a "
                f"batch_size of at least {size}"
            )
        self.seen = config.protocol != "paper" and config.offers_seen(data)
        # What ranks the whole catalogue to select epochs depends on what is in it.
        owner = {"seen": True} if self.seen and config.protocol == "full" else {}
        super().__init__(data, config, folder=folder, on_epoch=on_epoch, owner=owner)
        self.device = resolve(config.device, self._hindrance())
        self.split: Split = make_split(data, config.protocol)

    @cached_property
    def validation(self) -> Evaluation:
        """Rows that select epochs and settings."""
        return self.evaluation(self.split.validation, self.config.validation_events)

    @property
    def needed(self) -> tuple[str, ...]:
        """Metrics that the protocol reports."""
        return REPORTED[self.config.protocol]

    @cached_property
    def reference(self) -> float:
        """The metric that selects, of a ranking by counts of the training rows: what a training from scratch has to beat."""
        return self.score(ByCount(seen_counts(self.data, self.split.train)))

    def depends(self, method: str) -> dict[str, Any]:
        """As in ``persona.methods.Problem``; and whether the test ranks what users have had.

        Persona with item edits depends on all that Persona depends on.
        """
        return super().depends(methods.WHOLE if method == "persona_items" else method) | (
            {"seen": True} if self.seen and self.config.protocol == "time" else {}
        )

    def score(self, model: Scorer | Follower) -> float:
        """The metric that selects, of ``model`` on the validation rows."""
        return self.validation.run(model).summary[self.config.monitor]

    @cached_property
    def late(self) -> Evaluation | None:
        """The later half of the validation rows, which lies behind a gap as the test rows do.

        ``None`` where the protocol makes no cut in time, or where these are fewer than ``LATE`` rows, which would say little.
        """
        rows = self.validation.positions
        times = self.data.times[rows]
        later = rows[times > np.median(times)]
        return self.evaluation(later) if self.config.protocol == "time" and len(later) >= LATE else None

    def preference(self, model: Scorer | Follower) -> float:
        """``score``, averaged under ``time`` over two cuts: all validation rows, and the later half.

        The rows lie right behind what was learned, where the newest refresh looks best; the test rows lie further behind. A longer
        gap would need models that learned from fewer rows, each mode trained once more.
        """
        late = self.late
        values = [self.score(model), *([] if late is None else [late.run(model).summary[self.config.monitor]])]
        return float(np.mean(values))

    def selecting(self, model: Scorer | Follower) -> tuple[str, NDArray[np.float64]]:
        """The metric that selects, and its value of every user of the validation rows; UAUC where it is none of users."""
        found = self.validation.run(model).per_user
        name = self.config.monitor if self.config.monitor in found else "uauc"
        return name, found[name]

    def judged(self, model: Scorer | Follower) -> dict[str, NDArray[np.float64]]:
        """As in ``persona.methods.Problem``: under ``time`` NDCG@10 of the whole catalogue besides the metric that selects."""
        name, values = self.selecting(model)
        found = {name: values}
        if self.config.protocol == "time":
            found[RANKED] = self._ranked.run(model).per_user["ndcg_10"]
        return found

    @cached_property
    def _ranked(self) -> Evaluation:
        """Validation rows ranked against the whole catalogue."""
        rows = catalogue_rows(self.validation, attends=self.config.host == "din", part=RANKED_PART)
        return Evaluation(self.data, rows, max_length=self.validation.max_length, full=True, seed=self.config.seed)

    def tested(self, trained: Trained) -> Measured:
        """Metrics on the test rows, and the cost of a refresh and of what a method has beyond the host."""
        evaluated = self.test.run(trained.scorer)
        return Measured(
            method="",
            summary=evaluated.summary,
            per_unit=evaluated.per_user,
            units=evaluated.users,
            seconds=trained.result.seconds,
            refresh_seconds=refresh_seconds(trained, self.test.contexts),
            parameters=extra_parameters(trained),
        )

    def _make_test(self) -> Evaluation:
        """Rows that are only ever reported, beyond accuracy and under ``time`` by several protocols."""
        rows = self.evaluation(self.split.test)
        rows.known = np.bincount(self.data.items[self.everything], minlength=self.data.n_items + 1)
        return reported(rows, attends=self.config.host == "din") if self.config.protocol == "time" else rows

    @cached_property
    def held_back(self) -> Split:
        """The split whose ``adapt`` rows the host has not seen."""
        return hold_back(self.data, self.split, self.config.hold_back)

    @property
    def everything(self) -> Positions:
        """All rows before validation: what a method may learn from."""
        return np.concatenate([self.split.train, self.split.adapt])

    def new_host(self) -> Host:
        """An untrained host; the same one each time, on any number of processes."""
        config = self.config.host_config(self.data.n_items)
        if self.sharded:
            from recsys.distributed import tables

            return tables.new_host(config, self.config.seed, self.config.table_learning_rate)
        torch.manual_seed(self.config.seed)
        return make_host(config).to(self.device)

    @property
    def sharded(self) -> bool:
        """Whether the rows of the item table are spread over processes while it learns, be it over one."""
        return self.config.table_optimizer != "adam"

    def _hindrance(self) -> str:
        """What keeps the work from a graphics card, as a clause; empty where nothing does."""
        if self.sharded:
            return f"the table optimizer {self.config.table_optimizer} keeps its table on the CPU"
        if current().size > 1:
            return "several processes train together on the CPU alone"
        return "" if fbgemm_gpu.__variant__ == "cuda" else "the installed fbgemm computes on the CPU alone"

    def new_editor(self, host: Host, *, generate: bool = False) -> ParameterEditor:
        """An untrained editor for ``host``; ``generate`` means no bound, no zero start, no transfer."""
        torch.manual_seed(self.config.seed + 1)
        config = self.config.editor_config(host.context_dim)
        if generate:
            config = replace(config, bound="none", zero_start=False, head="full", transfer="none")
        return ParameterEditor(config, host.adaptive.specs, host.adaptive.weight_scales())

    def base_host(self) -> Host:
        """The host trained on the protocol's training rows, a copy for every caller."""
        return self._trained_host("host", self.split.train)

    def early_host(self) -> Host:
        """The host that has not seen the rows held back; the base host where the protocol holds back by itself."""
        if len(self.split.adapt):
            return self.base_host()
        return self._trained_host("host_early", self.held_back.train)

    def parts(self, count: int) -> list[Positions]:
        """The rows held back in ``count`` parts of about the same size, none empty.

        In the order of time where the log has one that all users share; else by user, in a seeded order.
        """
        rows = self.held_back.adapt
        if self.data.ordered_only:
            order = np.random.default_rng([self.config.seed, 23]).permutation(self.data.n_users)
            key = order[self.data.user_of(rows)]
        else:
            key = self.data.times[rows]
        edges = np.quantile(key, np.arange(1, count) / count, method="nearest")
        part = np.searchsorted(edges, key, side="right")
        return [rows[part == index] for index in np.unique(part)]

    def refreshed_hosts(self, parts: Sequence[Positions]) -> list[Host]:
        """The early host, and what it becomes as it is fine-tuned on one part after another: fixed, copies for every caller."""
        hosts = [self.early_host()]
        for index, rows in enumerate(parts):
            hosts.append(self._trained_host(f"host_refreshed_{index + 1}_of_{len(parts)}", rows, start=hosts[-1]))
        return hosts

    def finetuned_host(self) -> Host:
        """The base host, every parameter fine-tuned on all later rows in one piece; a copy for every caller."""
        return self._trained_host("finetune_all", self.held_back.adapt, start=self.base_host())

    def train(
        self,
        name: str,
        model: Personalised,
        parameters: Iterable[nn.Parameter],
        positions: Positions,
        *,
        keep_start: bool = False,
        learning_rate: float | None = None,
    ) -> FitResult:
        """Train ``parameters`` of ``model`` on ``positions``; a training that is already in the folder is taken from there."""
        return self.fit(
            name,
            model,
            parameters,
            self.objective(model, positions),
            keep_start=keep_start,
            learning_rate=learning_rate,
        )

    def objective(self, model: Personalised, positions: Positions) -> RowObjective | SequenceObjective:
        """What ``model`` learns from ``positions``, selected on the validation rows."""
        config = self.config
        return make_objective(
            model, self.data, positions, self.validation, config.loss_config(), config.seed, self.reference
        )

    def fit(
        self,
        name: str,
        model: Personalised,
        parameters: Iterable[nn.Parameter],
        objective: Objective,
        *,
        keep_start: bool = False,
        learning_rate: float | None = None,
    ) -> FitResult:
        """``train`` by any objective."""
        chosen = list(parameters)
        return self.trainings.fit(
            name,
            model,
            chosen,
            objective,
            self.config.fit_config(learning_rate or self.config.learning_rate),
            keep_start=keep_start,
            about={"data": self.data.digest},
            execution=self._execution(model, chosen),
        )

    def _execution(self, model: Personalised, chosen: list[nn.Parameter]) -> MakeExecution:
        """How ``chosen`` parameters of ``model`` are trained: with the table in pieces if that is one of them."""
        if not self.sharded:
            return Execution
        from recsys.distributed import tables
        from recsys.distributed.execution import ShardedExecution

        if not any(p is tables.parameter(model.host) for p in chosen):
            return Execution
        return partial(ShardedExecution, learning_rate=self.config.table_learning_rate)

    def _trained_host(self, name: str, positions: Positions, start: Host | None = None) -> Host:
        """The host trained on ``positions``, from ``start`` if it is given and then never worse than that; a copy."""
        if self.sharded:  # large: not kept in memory, but read again from its checkpoint
            return self._train_host(name, positions, start)
        return self.trainings.network(name, partial(self._train_host, name, positions, start), self.new_host)

    def _train_host(self, name: str, positions: Positions, start: Host | None) -> Host:
        model = Personalised(self.new_host())
        if start is not None:
            model.host.load_state_dict(start.state_dict())
        result = self.train(name, model, model.parameters(), positions, keep_start=start is not None)
        self.trainings.results[name] = result
        if start is None and result.best_value <= self.reference and current().main:
            logger.warning(
                "%s: in %d epochs %s of the validation rows came to %.4f at best, where a ranking by popularity has %.4f: train for "
                "longer, with --epochs %d, or try another --learning-rate",
                name,
                result.epochs,
                self.config.monitor,
                result.best_value,
                self.reference,
                2 * self.config.epochs,
            )
        return model.host.eval()

    def evaluation(self, positions: Positions, limit: int | None = None) -> Evaluation:
        """Some events as targets, at most ``limit`` of them, as the protocol ranks them."""
        return Evaluation(
            self.data,
            positions,
            max_length=self.config.host_config(self.data.n_items).max_length,
            full=self.config.protocol == "full",
            seed=self.config.seed,
            limit=limit,
            seen=self.seen,
        )
