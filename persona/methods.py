"""What the methods of a comparison share, whatever the task: what they are given, what they return, how they are measured.

Problem   one split, host and seed on one data set; its test part cannot be read before the report
Trained   a method, ready to be evaluated
measure   train and test one method, or take the result that is kept
served    a method whose devices apply what a level of its bank sends
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import nn

from persona.comparison import Measured
from persona.editor import ParameterEditor
from persona.errors import ConfigError, check_known
from persona.plugins import code_digest, function, is_place
from persona.prototypes import PrototypeBank, Server
from persona.prototypes.fitted_format import load_fitted, save_fitted
from persona.prototypes.fitting import RECIPE, BankConfig, Contexts, FittedBank, LevelScore, fit_editor_bank
from persona.storage import digest_json
from persona.training.kept import OnEpoch, Trainings
from persona.training.objective import FitResult

FLOAT_BYTES = 4
# The whole method: its editor is trained in the mode of the settings.
WHOLE = "persona"


class Data(Protocol):
    """What a problem is about."""

    @property
    def digest(self) -> str:
        """SHA-256 of all of it."""


class ProblemSettings(Protocol):
    """What the settings of all tasks have."""

    @property
    def host(self) -> str:
        """The kind of the host."""

    @property
    def seed(self) -> int:
        """Of all that is random."""

    @property
    def mode(self) -> str:
        """In which the editor is trained; ``auto`` lets validation choose."""

    @property
    def monitor(self) -> str:
        """The metric that selects."""

    def host_settings(self) -> dict[str, Any]:
        """What a trained host depends on."""

    def editor_settings(self) -> dict[str, Any]:
        """What a trained editor depends on besides its host."""


DataT = TypeVar("DataT", bound=Data)
ConfigT = TypeVar("ConfigT", bound=ProblemSettings)
EvaluationT = TypeVar("EvaluationT")
ModelT = TypeVar("ModelT")
TrainedT = TypeVar("TrainedT", bound="Trained[Any]")
PersonalisedT = TypeVar("PersonalisedT", bound=Any)
ProblemT = TypeVar("ProblemT", bound="Problem[Any, Any, Any]")


class ReadBeforeReport(RuntimeError):
    """The test part was read while something was still to be trained or chosen."""


@dataclass
class Trained(Generic[ModelT]):
    """A method, ready to be evaluated.

    Attributes:
        model: what is evaluated.
        refresh_bytes: what one device receives when the method adapts it once, in float32.
        result: what its own training did; a host that methods share is not its own.
        chosen: settings that validation selected.
        body_bytes: of a host other than the one devices have, which each has to fetch once; 0 where it edits that one.
    """

    model: ModelT
    refresh_bytes: int = 0
    result: FitResult = field(default_factory=FitResult)
    chosen: dict[str, float] = field(default_factory=dict)
    body_bytes: int = 0


class Problem(ABC, Generic[DataT, ConfigT, EvaluationT]):
    """One split, host and seed on one data set: what methods learn from, are chosen by and are tested on.

    Args:
        data: events or images.
        config: all settings.
        folder: where trainings leave their checkpoints, and resume from; without one nothing is kept. Work on the same
            data with the same settings has the same place in it, so that only what changed is trained again.
        on_epoch: called with the name of a training and the metrics of each of its epochs.
        owner: what all of it depends on besides data and settings, as JSON values.

    Attributes:
        edited: methods whose names start so depend on the settings of editors.
        banked: methods with a prototype bank.
        rules: by which methods decide or learn, where an earlier release had another rule: a result of that time is made again.
    """

    edited: ClassVar[tuple[str, ...]]
    banked: ClassVar[tuple[str, ...]]
    rules: ClassVar[Mapping[str, str]] = {}

    def __init__(
        self,
        data: DataT,
        config: ConfigT,
        *,
        folder: Path | None = None,
        on_epoch: OnEpoch | None = None,
        owner: Mapping[str, Any] | None = None,
    ) -> None:
        self.data, self.config, self._owner = data, config, dict(owner or {})
        self.trainings = Trainings(
            folder,
            f"{config.host}-seed{config.seed}",
            self.owner(),
            config.editor_settings(),
            self.edited,
            on_epoch,
        )
        self._reports = False

    def owner(self) -> dict[str, Any]:
        """What all trainings depend on, as JSON values."""
        return {"data": self.data.digest, **self.config.host_settings(), **self._owner}

    def with_config(self, config: ConfigT) -> Self:
        """The same data, folder and listener under other settings."""
        return type(self)(self.data, config, folder=self.trainings.root, on_epoch=self.trainings.on_epoch)

    @property
    def needed(self) -> Collection[str]:
        """Metrics without which a kept result is of an earlier release, and made again."""
        return ()

    @property
    def test(self) -> EvaluationT:
        """What is only ever reported.

        Raises:
            ReadBeforeReport: outside ``reporting``.
        """
        if not self._reports:
            raise ReadBeforeReport(
                "the test part is for reports alone: decide on `validation`, and read `test` within "
                "`with problem.reporting():` once everything is chosen"
            )
        return self._test

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """A block that may read ``test``: whatever it reports has been trained and chosen before."""
        before, self._reports = self._reports, True
        try:
            yield
        finally:
            self._reports = before

    @property
    @abstractmethod
    def validation(self) -> EvaluationT:
        """What selects epochs and settings."""

    @abstractmethod
    def score(self, model: Any) -> float:
        """The metric that selects, of ``model`` on the validation part."""

    def preference(self, model: Any) -> float:
        """What a choice among finished models goes by: ``score``, or what resembles deployment more where a task can tell."""
        return self.score(model)

    @abstractmethod
    def judged(self, model: Any) -> dict[str, NDArray[np.float64]]:
        """(U,) values of validation units by metric, more is better: the one that selects, and what else a release is held to."""

    def without_edits(self, model: Any, host: Any = None) -> Any:
        """``model`` with edits of zero, over its own host or another one, ready to be released."""
        return model.scaled(0.0, host)

    @abstractmethod
    def tested(self, trained: Any) -> Measured:
        """What a method achieves on the test part, and what only the task knows of its cost; yet without its name."""

    @property
    def bank_config(self) -> BankConfig:
        """How the banks of methods are made."""
        return BankConfig()

    def bank_of(
        self, editor: ParameterEditor, contexts: Contexts, settings: BankConfig, score: LevelScore, **options: Any
    ) -> FittedBank:
        """The bank of an editor that is in the problem's folder, or else a new one, which is kept there.

        Arguments as in ``persona.prototypes.fit_editor_bank``.
        """
        folder = self.trainings.folder_of(WHOLE)
        key = {"recipe": RECIPE, "host": editor.host, "editor": editor.digest(), **asdict(settings)}
        place = None if folder is None else folder / "banks" / digest_json(key)[:16]
        if place is not None and place.exists():
            return load_fitted(place, contexts)
        fitted = fit_editor_bank(editor, contexts, settings, score, seed=self.config.seed, **options)
        if place is not None:
            save_fitted(place, fitted)
        return fitted

    def depends(self, method: str) -> dict[str, Any]:
        """What the result of a method depends on besides the settings of host and editor; empty for most."""
        rule = {"rule": self.rules[method]} if method in self.rules else {}
        if method not in self.banked:
            return rule
        mode = {"mode": self.config.mode} if method == WHOLE else {}
        return {"recipe": RECIPE, "bank": asdict(self.bank_config), **mode, **rule}

    @cached_property
    def _test(self) -> EvaluationT:
        return self._make_test()

    @abstractmethod
    def _make_test(self) -> EvaluationT:
        """The evaluation on the test part."""


Method = Callable[[ProblemT], TrainedT]


def train_method(name: str, problem: ProblemT, methods: Mapping[str, Method[ProblemT, TrainedT]]) -> TrainedT:
    """Train the method called ``name``, or the one at the place ``module:function``.

    Raises:
        ConfigError: the name is unknown.
    """
    if is_place(name):
        trained: TrainedT = function(name)(problem)
        return trained
    check_known("method", name, methods)
    return methods[name](problem)


def measure(
    problem: ProblemT,
    name: str,
    methods: Mapping[str, Method[ProblemT, TrainedT]],
    depends: Mapping[str, Any] | None = None,
) -> Measured:
    """Train and test one method, or take the result that is already in the problem's folder, with what it ``depends`` on."""

    def report() -> Measured:
        trained = train_method(name, problem, methods)
        with problem.reporting():
            tested = problem.tested(trained)
        return replace(
            tested,
            method=name,
            refresh_bytes=trained.refresh_bytes,
            body_bytes=trained.body_bytes,
            epochs=trained.result.epochs,
            best_epoch=trained.result.best_epoch,
            history=trained.result.history,
            chosen={setting: float(value) for setting, value in trained.chosen.items()},
        )

    depends = {**problem.depends(name), **(depends or {})}
    if name not in methods and is_place(name):
        depends["code"] = code_digest(name)
    return problem.trainings.measured(name, report, depends, problem.needed)


class Served(Protocol):
    """A model whose devices apply what a level of a bank sends."""

    server: Server
    level: str


def served(trained: TrainedT, model: Served) -> TrainedT:
    """The method whose devices hold the bank of ``model``, which serves what ``trained`` has learned."""
    return replace(
        trained,
        model=model,
        refresh_bytes=model.server.payload_bytes(model.level),
        chosen={**trained.chosen, "prototypes": float(len(model.server.bank))},
    )


def editor_of(model: Any) -> ParameterEditor:
    """The editor of a personalised host, whose edits carry the digest of that host from now on.

    Raises:
        ConfigError: the model has no editor.
    """
    if model.editor is None:
        raise ConfigError("prototypes are made of an editor's edits, but this model has no editor")
    editor: ParameterEditor = model.editor
    editor.host = model.host.digest()
    return editor


def at_level(
    model: PersonalisedT,
    bank: PrototypeBank | None,
    level: str,
    *,
    alone: Callable[[Any], PersonalisedT],
    serve: Callable[[PersonalisedT, Server, str], PersonalisedT],
) -> PersonalisedT:
    """What answers at a level of ``persona.wire.LEVELS``; ``prototype`` and ``basis`` need the bank.

    Args:
        model: a personalised host.
        bank: of its editor.
        level: asked for.
        alone: (host) -> the host without an editor.
        serve: (model, server, level) -> what applies what that level sends.
    """
    if level == "host":
        host: PersonalisedT = alone(model.host).eval()
        return host
    if level == "edit":
        return model
    assert bank is not None
    return serve(model, Server(model.editor, bank), level)


class AdaptiveHost(Protocol):
    """A host some of whose layers are adaptive."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """All of them."""

    def adaptive_parameters(self) -> Iterator[nn.Parameter]:
        """Those of the adaptive layers."""


def adaptive_bytes(host: AdaptiveHost) -> int:
    """Bytes of all adaptive layers in float32: a full edit, or the layers themselves."""
    return FLOAT_BYTES * sum(p.numel() for p in host.adaptive_parameters())


def all_bytes(host: AdaptiveHost) -> int:
    """Bytes of the whole host in float32."""
    return FLOAT_BYTES * sum(p.numel() for p in host.parameters())
