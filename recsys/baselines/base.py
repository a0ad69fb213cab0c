"""What every method of a comparison is given, and what it returns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from persona.editor import ParameterEditor
from persona.errors import MismatchError
from persona.storage import read_json, write_json
from persona.training import FitConfig, FitResult, fit
from recsys.config import RecsysConfig
from recsys.evaluation import Evaluation, Scorer
from recsys.hosts import Host, make_host
from recsys.objectives import make_objective
from recsys.personalised import Personalised
from recsys.protocols import Split, hold_back, make_split
from recsys.sequences import SequenceData

FLOAT_BYTES = 4

Positions = NDArray[np.int64]
OnEpoch = Callable[[str, dict[str, float]], None]


@dataclass
class Trained:
    """A method, ready to be evaluated.

    Attributes:
        scorer: scores candidates in their context.
        refresh_bytes: what one device receives when the method adapts it once, in float32.
        results: what each of its training runs did, by name.
        seconds: wall time of its own training (a shared host is not counted); 0 if it was already there.
    """

    scorer: Scorer
    refresh_bytes: int
    results: dict[str, FitResult] = field(default_factory=dict)
    seconds: float = 0.0


class Problem:
    """One protocol, host and seed on one data set: rows, evaluations, and the hosts that methods share.

    Args:
        data: the events.
        config: all settings.
        folder: where trainings leave their checkpoints, and resume from; without one nothing is kept.
        on_epoch: called with the name of a training and the metrics of each of its epochs.

    Raises:
        MismatchError: the folder holds the work of other settings or other data.
    """

    def __init__(
        self, data: SequenceData, config: RecsysConfig, *, folder: Path | None = None, on_epoch: OnEpoch | None = None
    ) -> None:
        self.data, self.config, self.folder, self.on_epoch = data, config, folder, on_epoch
        self.split: Split = make_split(data, config.protocol)
        self.results: dict[str, FitResult] = {}
        if folder is not None:
            _claim(Path(folder), {"data": data.digest, "settings": config.as_dict()})

    @cached_property
    def validation(self) -> Evaluation:
        """Rows that select epochs and settings."""
        return self._evaluation(self.split.validation, self.config.validation_events)

    @cached_property
    def test(self) -> Evaluation:
        """Rows that are only ever reported."""
        return self._evaluation(self.split.test, None)

    @cached_property
    def held_back(self) -> Split:
        """The split whose ``adapt`` rows the host has not seen."""
        return hold_back(self.data, self.split, self.config.hold_back)

    @property
    def everything(self) -> Positions:
        """All rows before validation: what a method may learn from."""
        return np.concatenate([self.split.train, self.split.adapt])

    def new_host(self) -> Host:
        """An untrained host; the same one each time."""
        torch.manual_seed(self.config.seed)
        return make_host(self.config.host_config(self.data.n_items))

    def new_editor(self, host: Host, *, transfer: str | None = None, generate: bool = False) -> ParameterEditor:
        """An untrained editor for ``host``; ``generate`` leaves out the bound and the zero start."""
        torch.manual_seed(self.config.seed + 1)
        settings = self.config.editor_config(host.context_dim).as_dict()
        if transfer is not None:
            settings["transfer"] = transfer
        if generate:
            settings |= {"bound": "none", "zero_start": False, "head": "full"}
        config = type(self.config.editor_config(1))(**settings)
        return ParameterEditor(config, host.adaptive.specs, host.adaptive.weight_scales())

    def base_host(self) -> Host:
        """The host trained on the protocol's training rows, a copy for every caller."""
        return self._trained_host("host", self.split.train)

    def early_host(self) -> Host:
        """The host that has not seen the rows held back; the base host where the protocol holds back by itself."""
        if len(self.split.adapt):
            return self.base_host()
        return self._trained_host("host_early", self.held_back.train)

    def train(
        self,
        name: str,
        model: Personalised,
        parameters: Iterable[nn.Parameter],
        positions: Positions,
        *,
        keep_start: bool = False,
        editing: bool = False,
    ) -> FitResult:
        """Train ``parameters`` of ``model`` on ``positions``; a training that is already in the folder is taken from there."""
        config = self.config
        objective = make_objective(model, self.data, positions, self.validation, config.loss_config(), config.seed)
        fit_config: FitConfig = config.fit_config(config.editor_learning_rate if editing else config.learning_rate)
        on_epoch = self.on_epoch
        result = fit(
            model,
            parameters,
            objective,
            fit_config,
            folder=None if self.folder is None else Path(self.folder) / name,
            on_epoch=None if on_epoch is None else lambda metrics: on_epoch(name, metrics),
            keep_start=keep_start,
        )
        self.results[name] = result
        return result

    def trained(self, name: str, scorer: Scorer, refresh_bytes: int, started: float) -> Trained:
        """Pack a method's outcome."""
        own = {key: result for key, result in self.results.items() if key == name}
        return Trained(scorer, refresh_bytes, own, time.perf_counter() - started)

    def _trained_host(self, name: str, positions: Positions) -> Host:
        if name not in self._hosts:
            model = Personalised(self.new_host())
            self.train(name, model, model.parameters(), positions)
            self._hosts[name] = {k: v.clone() for k, v in model.host.state_dict().items()}
        host = self.new_host()
        host.load_state_dict(self._hosts[name])
        return host.eval()

    @cached_property
    def _hosts(self) -> dict[str, dict[str, torch.Tensor]]:
        return {}

    def _evaluation(self, positions: Positions, limit: int | None) -> Evaluation:
        return Evaluation(
            self.data,
            positions,
            max_length=self.config.host_config(self.data.n_items).max_length,
            full=self.config.protocol == "full",
            seed=self.config.seed,
            limit=limit,
        )


def adaptive_bytes(host: Host) -> int:
    """Bytes of all adaptive layers in float32: a full edit, or the layers themselves."""
    return FLOAT_BYTES * sum(p.numel() for p in host.adaptive_parameters())


def all_bytes(host: Host) -> int:
    """Bytes of the whole host in float32."""
    return FLOAT_BYTES * sum(p.numel() for p in host.parameters())


def _claim(folder: Path, owner: dict[str, object]) -> None:
    """Write down what the folder is for, or refuse to mix it with something else."""
    path = folder / "settings.json"
    if not path.exists():
        write_json(path, owner)
        return
    known = read_json(path)
    if known == owner:
        return
    if known.get("data") != owner["data"]:
        raise MismatchError(f"{folder} holds work on other data: choose another --work folder, or delete this one")
    theirs, ours = known["settings"], owner["settings"]
    assert isinstance(ours, dict)
    changed = ", ".join(f"{k} {theirs.get(k)} there, {v} now" for k, v in ours.items() if theirs.get(k) != v)
    raise MismatchError(f"{folder} holds work of other settings ({changed}): choose another --work folder or delete it")
