"""What a task brings to a pipeline: values and functions, so that every step is written once.

A new task writes one ``Task`` beside its data, hosts and methods. Functions load torch when they are called, so that a command
line reads the values at once.

Shapes: U units (users, devices), L layers, d code width.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona.settings import Settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from persona.comparison import Measured
    from persona.prototypes import FittedBank, PrototypeBank
    from persona.training.objective import FitResult

Notify = Callable[[str], None]
OnEpoch = Callable[[str, dict[str, float]], None]
# Levels of a bank that its versions are compared at, and the first of them: prototypes alone.
SERVED = ("prototype", "basis")
ALONE = SERVED[0]
# How the name of a method begins that is a file of scores.
SCORES = "scores:"


def found_at(place: str) -> Any:
    """What is called ``name`` in a module, given as ``module:name``."""
    module, _, name = place.partition(":")
    return attrgetter(name)(import_module(module))


def later(place: str) -> Callable[..., Any]:
    """The function at a place, whose module is imported when it is called."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return found_at(place)(*args, **kwargs)

    return call


def at_home(package: str) -> dict[str, Any]:
    """What every task keeps at the same place of its package, by the names of ``Task``'s attributes."""
    places = {
        "problem": "methods:Problem",
        "methods": "methods:METHODS.keys",
        "measure": "methods:measure",
        "train": "methods:trained",
        "train_configured": "methods:train_configured",
        "observe": "observed:observe",
    }
    return {name: later(f"{package}.{place}") for name, place in places.items()}


@dataclass(frozen=True)
class Observed:
    """What a version did on the test part: all that two versions are compared by.

    Attributes:
        rows: JSON values that name the test rows; versions with the same are compared unit by unit.
        units: (U,) names.
        metrics: (U,) values a metric, by their whole names.
        known: (U,) how much was known of each unit before the test.
        groups: (U,) names of segments; those of activity where the data has none.
        prototypes: (U,) that each unit was given; ``None`` without a bank.
        answers: unit, input, rank, item, title: what was answered to a few inputs, in words.
    """

    rows: Sequence[Any]
    units: list[str]
    metrics: Mapping[str, NDArray[np.float64]]
    known: NDArray[np.int64]
    groups: list[str] | None = None
    prototypes: list[int] | None = None
    answers: Sequence[tuple[str, str, int, str, str]] = ()


@dataclass(frozen=True)
class Interface:
    """How a registered model is called, without a word of MLflow.

    Attributes:
        artifact: name of the logged model, and of the file that answers for it.
        inputs: type of every column; empty where the input is an array like the example.
        outputs: type of every column; a list holds the type of its members.
        parameters: with their defaults; one that the ``info`` of a release tells has that instead.
        requirements: packages that a server of the model needs; the code itself travels with it.
        example: an input for a release.
        describe: a release in one line, for people, given the tags of its version.
    """

    artifact: str
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    parameters: Mapping[str, Any]
    requirements: tuple[str, ...]
    example: Callable[[Any], Any]
    describe: Callable[[Any, Mapping[str, Any]], str]


@dataclass(frozen=True)
class Task:
    """One kind of thing that is personalised.

    Attributes:
        name: of its commands; experiments and registered models are called ``persona-<name>-<data>``.
        place: ``module:name`` of this very value, for processes that are started anew.
        unit: whoever is personalised for.
        context: what an editor reads at once.
        work: the folder that its commands use by default.
        config: class of its settings.
        protocols: that a host may be tested under.
        compared: metrics that versions are compared by, larger or smaller.
        deciding: those of them that decide whether a refined bank is served; larger is better.
        tagged: settings that a released version is tagged with.
        ranks: whether several processes can train together.
        versions_apart: whether every version of a bank is registered by a run of its own.
        interface: of its registered models.
        load: (folder) -> the prepared data.
        problem: (data, config, folder=, on_epoch=) -> what methods are given.
        methods: () -> names of all methods, those that other packages declare included.
        named: names of its own methods, which help shows at once.
        untrained: those of them that train nothing, so that they take no time to speak of.
        rivals: those that stand in every comparison, beside the host.
        headlines: (protocol) -> metrics that tables and figures show.
        measure: (problem, method) -> the method on the test part.
        train_host: (problem) -> name and result of the training of the host that the settings ask for.
        train: (problem, method) -> what the method trained, not yet tested.
        train_configured: (problem) -> the mode of the settings, or the one that validation chose, and what was trained.
        model: (what was trained) -> host and editor, whose edits carry the digest of the host.
        bank_config: (problem) -> how its bank is made where nothing else is said.
        fit_bank: (problem, model, bank settings, notify) -> the bank, fitted and chosen without the test part.
        levels: (problem, evaluation, model, bank, levels) -> what each level achieves there.
        release: (problem, model, info) -> what is saved as a bundle, without a bank: it has ``model``, ``info``, ``host_digest``,
            ``bank``, the ``server`` of its bank, and ``with_bank(bank)``.
        save: (release, folder, **options) writes the bundle.
        rows: (problems, one a seed) -> a table of the test rows for others to score; ``None`` where files of scores are not taken.
        observe: (problem, measured by label, release, level) -> what the release did on the test part; reads that part.
    """

    name: str
    place: str
    unit: str
    context: str
    work: Path
    config: type[Settings]
    protocols: tuple[str, ...]
    compared: tuple[str, ...]
    deciding: tuple[str, ...]
    tagged: tuple[str, ...]
    interface: Interface
    load: Callable[[Path], Any]
    problem: Callable[..., Any]
    methods: Callable[[], Collection[str]]
    named: tuple[str, ...]
    rivals: tuple[str, ...]
    untrained: tuple[str, ...]
    headlines: Callable[[str], tuple[str, ...]]
    measure: Callable[[Any, str], Measured]
    train_host: Callable[[Any], tuple[str, FitResult]]
    train: Callable[[Any, str], Any]
    train_configured: Callable[[Any], tuple[str, Any]]
    model: Callable[[Any], Any]
    bank_config: Callable[[Any], Any]
    fit_bank: Callable[[Any, Any, Any, Notify], FittedBank]
    levels: Callable[[Any, Any, Any, PrototypeBank, Sequence[str]], dict[str, Measured]]
    release: Callable[[Any, Any, Mapping[str, Any]], Any]
    save: Callable[..., None]
    observe: Callable[[Any, Mapping[str, Measured], Any, str], Observed]
    ranks: bool = False
    versions_apart: bool = False
    rows: Callable[[Sequence[Any]], Any] | None = None

    def registered(self, data: str = "") -> str:
        """Name of the registered bundles that learned from ``data``, which earlier releases left out of it."""
        return f"persona-{self.name}-{data}" if data else f"persona-{self.name}"

    def banks(self, data: str = "") -> str:
        """Name of their registered prototype banks."""
        return f"{self.registered(data)}-prototypes"

    def experiment(self, data: str = "") -> str:
        """Name of the experiment that their runs are in."""
        return self.registered(data) if data else self.name
