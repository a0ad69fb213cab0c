"""Every setting of a recommendation experiment in one flat, typed record: what a run logs and what makes it repeatable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from persona.errors import ConfigError, check_each, check_known, nearest
from persona.settings import EDITOR_SHAPE, PROCESSOR_SETTINGS, Settings

if TYPE_CHECKING:  # the command line reads the settings without waiting for torch
    from persona.training.objective import FitConfig
    from recsys.data.sequences import SequenceData
    from recsys.hosts import HostConfig
    from recsys.objectives import LossConfig

# What selects epochs where targets are ranked against the whole catalogue, unless something else is asked for; the metrics of
# sampled negatives (None: not chosen, so the default, which is one of them) are not measured there.
RANKING_MONITOR = "ndcg_10"
SAMPLED_MONITORS = (None, "auc", "uauc")
TABLE_OPTIMIZERS = ("adam", "rowwise_adagrad")
# Modes that start from a host to which the later rows are unknown.
HOLD_BACK = ("auto", "held_back", "cross_fitted", "refreshed")
MODES = (*HOLD_BACK, "joint", "generated", "frozen")
# What only methods with an editor depend on: hosts and other methods are shared between settings that differ here.
EDITOR_SETTINGS = ("editor_learning_rate", "edit_dropout", *EDITOR_SHAPE)
# What large tables and many processes need. With their defaults these are in no record, so that what was recorded before there
# were any stays what it is.
SCALE_SETTINGS = ("table_optimizer", "table_learning_rate", "checkpoint_steps")

# Where at least this share of the next events are items that the user has had, a list without them misses what the log is about, for
# it can be right in the rest alone. Logs lie on either side of it: films have 0 %, a wholesaler's orders 31 %, check-ins 81 %.
REPEATS = 0.2
SEEN = ("auto", "yes", "no")

# How each preset trains: what comes with it unless it is given by itself. "paper" is the published training; "modern" what real logs
# ask for (docs/decisions/0005-default-recipe.md).
RECIPES: dict[str, dict[str, Any]] = {
    "paper": {
        "loss": "bce",
        "negatives": 4,
        "batch_size": 1024,
        "sequences": False,
        "monitor": "uauc",
        "learning_rate": 1e-3,
    },
    "modern": {
        "loss": "softmax",
        "negatives": 1024,
        "batch_size": 1024,
        "sequences": True,
        "monitor": "ndcg_10",
        "learning_rate": 3e-3,
    },
}
# Of the modern one, where candidates are scored one by one, or a table is looked up in pieces: rows with negatives of their own.
BY_ROWS = {"loss": "sampled_softmax", "negatives": 32, "sequences": False, "learning_rate": 1e-3}


def recipe(preset: str, host: str, table_optimizer: str = "adam") -> dict[str, Any]:
    """The settings of training that come with a preset for a host; none with an unknown preset."""
    by_rows = preset == "modern" and (host == "din" or table_optimizer != "adam")
    return {**RECIPES.get(str(preset), {}), **(BY_ROWS if by_rows else {})}


@dataclass(frozen=True, init=False)
class RecsysConfig(Settings):
    """Settings of one protocol, host and seed; those of the editor's form are described in the base.

    Attributes:
        protocol: ``paper``, ``full`` or ``time``.
        host: ``din``, ``gru4rec`` or ``sasrec``.
        preset: ``paper`` (d = 32, T = 10, trained as published) or ``modern`` (d = 64, T = 50, trained for real logs); brings
            loss, negatives, batch_size, sequences, monitor and learning_rate that are not given by themselves.
        seed: of initialisation, order of rows, negatives and dropout.
        loss: ``softmax`` over all items seen, ``sampled_softmax``, ``gbce`` or ``bce`` (as published).
        negatives: sampled for every positive; with ``sequences``, for every batch, and all items if that many or more; with
            ``softmax``, for every batch of a catalogue that is too large for all items.
        batch_size: rows a step, or sequences; with ``softmax``, targets of sequences.
        sequences: train the host on all positions of a sequence at once (GRU4Rec, SASRec).
        monitor: validation metric that selects epochs; under ``full`` a ranking metric such as ``ndcg_10``.
        epochs: at most this many, for host and editor each.
        patience: epochs without a better validation value before training stops, once popularity is beaten.
        min_epochs: patience is not counted before.
        learning_rate: of Adam, for the host.
        editor_learning_rate: of Adam, for the editor.
        weight_decay: decoupled.
        dim: d, 0 takes the preset's.
        max_length: T, 0 takes the preset's.
        dropout: of the host, negative takes the preset's.
        mode: which rows the editor learns from: ``held_back``, ``cross_fitted``, ``refreshed``, ``joint``, ``generated`` or
            ``frozen``; ``auto`` is the one that validates best, of all but the last.
        hold_back: share of the training rows kept from the host for the editor, where the protocol keeps none.
        edit_dropout: share of rows trained without an edit in mode ``joint``.
        validation_events: at most this many events validate an epoch.
        table_optimizer: of the item table: ``adam``, every process with a table of its own, or ``rowwise_adagrad``, fused and
            without gradient clipping, the rows of one table spread over all processes.
        table_learning_rate: of ``rowwise_adagrad``.
        checkpoint_steps: write a checkpoint every this many steps, too, besides one an epoch.
        seen: whether items that the user has had are offered and ranked, ``yes`` or ``no``; ``auto`` says yes where a fifth of
            the next events or more are such items. Training is the same either way.
        device: where torch computes, ``auto``, ``cpu``, ``cuda`` or ``cuda:1``; ``auto`` is a graphics card where there is one.
        precision: of the products in training steps, ``float32`` or ``bf16``, which is faster on a graphics card.

    Raises:
        ConfigError: a setting is unknown, out of range, or contradicts another one.
    """

    editor_names: ClassVar[tuple[str, ...]] = EDITOR_SETTINGS
    quiet_names: ClassVar[tuple[str, ...]] = ("seen", *SCALE_SETTINGS, *PROCESSOR_SETTINGS)
    switch_names: ClassVar[tuple[str, ...]] = ("seen",)

    protocol: str = "time"
    host: str = "sasrec"
    preset: str = "modern"
    seed: int = 0
    loss: str = "softmax"
    negatives: int = 1024
    batch_size: int = 1024
    sequences: bool = True
    monitor: str = "ndcg_10"
    epochs: int = 60
    patience: int = 5
    min_epochs: int = 0
    learning_rate: float = 3e-3
    editor_learning_rate: float = 1e-3
    weight_decay: float = 0.0
    dim: int = 0
    max_length: int = 0
    dropout: float = -1.0
    mode: str = "auto"
    hold_back: float = 0.2
    edit_dropout: float = 0.5
    transfer: str = "stacked"
    head: str = "full"
    rank: int = 4
    bound: str = "tanh"
    tau: float = 1.0
    width: int = 32
    validation_events: int = 5000
    table_optimizer: str = "adam"
    table_learning_rate: float = 0.05
    checkpoint_steps: int = 0
    seen: str = "auto"
    device: str = "auto"
    precision: str = "float32"

    def __init__(self, **given: Any) -> None:
        values: dict[str, Any] = {f.name: f.default for f in fields(self)}
        unknown = [name for name in given if name not in values]
        if unknown:
            raise TypeError(f"RecsysConfig has no setting {unknown[0]!r}")
        chosen = values | given
        brought = recipe(chosen["preset"], chosen["host"], chosen["table_optimizer"])
        for name, value in (values | brought | given).items():
            object.__setattr__(self, name, value)
        self.__post_init__()

    @classmethod
    def own(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Of the values of ``as_dict``, those that their preset did not bring: what stays when preset or host change."""
        usual: dict[str, Any] = {**{f.name: f.default for f in fields(cls)}, **values}
        brought = recipe(usual["preset"], usual["host"], usual["table_optimizer"])
        return {name: value for name, value in values.items() if name not in brought or value != brought[name]}

    def __post_init__(self) -> None:
        self.check_types()
        self.check_device()
        check_known("mode", self.mode, MODES)
        if self.seen not in SEEN:
            raise ConfigError(f"seen is {self.seen!r}, but it has to be one of {', '.join(SEEN)}")
        self._check_protocol()
        for name in ("hold_back", "edit_dropout"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, but it is a share between 0 and 1")
        check_each(self, ["validation_events"], 1)
        self._check_table()
        # The parts check themselves; here they are built once, so that a wrong setting is named before any work.
        self.host_config(n_items=2)
        self.editor_config(context_dim=1)
        self.fit_config(self.learning_rate)
        self.fit_config(self.editor_learning_rate)
        self.loss_config()

    def _check_protocol(self) -> None:
        """The protocol, and that it measures what is to select epochs."""
        from recsys.data.protocols import PROTOCOLS
        from recsys.metrics import CUTOFFS

        check_known("protocol", self.protocol, PROTOCOLS)
        ranking = ["mrr", *(f"{name}_{k}" for name in ("ndcg", "hr") for k in CUTOFFS)]
        # Larger has to be better, so logloss is none of them.
        monitors = ranking if self.protocol == "full" else ["auc", "uauc", *ranking]
        if self.monitor not in monitors:
            raise ConfigError(
                f"monitor {self.monitor!r} cannot select epochs under protocol {self.protocol}: {nearest(self.monitor, monitors)}"
            )

    def _check_table(self) -> None:
        """How the table learns, and that what is asked for besides goes with it."""
        check_known("table optimizer", self.table_optimizer, TABLE_OPTIMIZERS)
        if not self.table_learning_rate > 0:
            raise ConfigError(f"table_learning_rate is {self.table_learning_rate}, but it has to be positive")
        if self.loss == "softmax" and (self.host == "din" or self.table_optimizer != "adam"):
            reason = "din scores every candidate by itself" if self.host == "din" else "its rows lie in pieces"
            raise ConfigError(
                f"loss softmax needs all items at once, but {reason}: choose loss = sampled_softmax, or leave it out"
            )
        if self.sequences and self.table_optimizer != "adam":
            raise ConfigError(
                "whole sequences look the table up twice a step, which a sharded table cannot: use rows (sequences = false), "
                "or table_optimizer = adam"
            )
        if self.precision != "float32" and self.table_optimizer != "adam":
            raise ConfigError(
                f"a sharded table learns in float32, not in {self.precision}: leave precision at float32, or give table_optimizer = "
                "adam"
            )

    def epochs_of(self, training: str) -> int:
        """At most how many epochs the training of this name takes."""
        return self.epochs

    def under_protocol(self, protocol: str) -> Self:
        """The same settings under another protocol, with a monitor that it measures."""
        ranks = protocol == "full" and self.monitor in SAMPLED_MONITORS
        return replace(self, protocol=protocol, monitor=RANKING_MONITOR if ranks else self.monitor)

    @classmethod
    def taken_up(cls, before: Mapping[str, Any], new: Mapping[str, Any]) -> Self:
        """As in ``Settings``; what selected epochs under another protocol is not taken up where it is not measured."""
        settings = {**cls.own(before), **new}
        if settings.get("protocol") == "full" and "monitor" not in new and settings.get("monitor") in SAMPLED_MONITORS:
            settings["monitor"] = RANKING_MONITOR
        return cls.from_dict(settings)

    def host_settings(self) -> dict[str, Any]:
        """What a trained host depends on; how often it was written to disk, and what is offered in the end, are no part of that."""
        return {k: v for k, v in super().host_settings().items() if k not in ("checkpoint_steps", "seen")}

    def offers_seen(self, data: SequenceData) -> bool:
        """Whether items that a user has had are offered, and ranked with the rest of the catalogue, on this log."""
        return data.repeats_share >= REPEATS if self.seen == "auto" else self.seen == "yes"

    def resolved(self, data: SequenceData) -> dict[str, Any]:
        """As in ``Settings``."""
        return {"seen": "yes"} if self.offers_seen(data) else {}

    def host_config(self, n_items: int) -> HostConfig:
        """The host's settings for a catalogue."""
        from recsys.hosts import HostConfig

        chosen = {"dim": self.dim or None, "max_length": self.max_length or None}
        overrides: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
        if self.dropout >= 0:
            overrides["dropout"] = self.dropout
        return HostConfig.preset(self.host, self.preset, n_items, **overrides)

    def fit_config(self, learning_rate: float) -> FitConfig:
        """The training loop's settings."""
        from persona.training.objective import FitConfig

        return FitConfig(
            epochs=self.epochs,
            patience=self.patience,
            min_epochs=self.min_epochs,
            learning_rate=learning_rate,
            weight_decay=self.weight_decay,
            seed=self.seed,
            checkpoint_steps=self.checkpoint_steps,
            precision=self.precision,
        )

    def loss_config(self) -> LossConfig:
        """The objective's settings."""
        from recsys.objectives import LossConfig

        return LossConfig(self.loss, self.negatives, self.batch_size, self.sequences, self.monitor)
