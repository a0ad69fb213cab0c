"""Hosts that have not seen what they are judged on: parts of the devices, each with a host that learned from the others.

Where a host is deployed on populations of which nobody has an image, whatever is chosen or learned on the populations at hand
says little, for the host knows them. So each of them is left out in turn: a host that has not seen it stands for the host
that meets a new one. Elsewhere the parts are devices of the deployed kind, drawn at random, and a part's host is the base
host with its adaptive layers fine-tuned on the other parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from persona.errors import ConfigError
from persona.training.objective import FitResult
from vision.evaluation import Classifier, Evaluation
from vision.hosts import Host
from vision.methods.problem import Problem
from vision.personalised import Personalised

PARTS = 4

Devices = NDArray[np.int64]
Choice = TypeVar("Choice")


@dataclass(frozen=True)
class Fold:
    """One part of the devices.

    Attributes:
        name: of the part.
        host: has learned from no device of the part.
        known: the devices that it has learned from.
        devices: the part.
        validation: devices of the part's kind that no editor learns from.
        others: devices of the other parts that no host learns from.
    """

    name: str
    host: Host
    known: Devices
    devices: Devices
    validation: Evaluation
    others: Evaluation

    def rest(self, devices: Devices) -> Devices:
        """Those of ``devices`` that are not in the part."""
        return np.setdiff1d(devices, self.devices)


def populations(problem: Problem) -> list[str]:
    """The populations to leave out in turn; none where those that the host is deployed on are known."""
    known = sorted({problem.data.groups[d] for d in problem.everything})
    return known if problem.deployed.isdisjoint(known) and len(known) > 1 else []


def population_folds(problem: Problem) -> list[Fold]:
    """A fold a population: a host trained like the base host, but without it."""
    groups = np.array(problem.data.groups)
    folds = []
    for name in populations(problem):
        known, unseen = (problem.split.train[(groups[problem.split.train] == name) == out] for out in (False, True))
        own = problem.split.validation[groups[problem.split.validation] == name]
        others = problem.split.validation[groups[problem.split.validation] != name]
        if not (len(known) and len(own) and len(others)):
            raise ConfigError(
                f"the population {name!r} cannot be left out, for nothing is left to train or to validate on: raise "
                "validation_share"
            )
        seen = problem.evaluation(others)
        host = problem.trained_host(f"host_without_{name}", known, seen)
        adapt = problem.split.adapt[groups[problem.split.adapt] == name]
        devices = np.sort(np.concatenate([unseen, adapt]))
        folds.append(Fold(name, host, known, devices, problem.evaluation(own), seen))
    return folds


def device_folds(problem: Problem) -> list[Fold]:
    """``PARTS`` folds of the editor's devices: the base host, its adaptive layers fine-tuned on the other parts."""
    order = np.random.default_rng([problem.config.seed, 59]).permutation(problem.split.adapt)
    if len(order) < PARTS:
        raise ConfigError(f"{len(order)} devices make no {PARTS} parts: raise adapt_share")
    folds = []
    for i, part in enumerate(np.array_split(order, PARTS)):
        rest = np.sort(np.setdiff1d(problem.split.adapt, part))
        host, _ = finetuned(problem, f"finetune_adaptive_without_{i + 1}_of_{PARTS}", problem.base_host(), rest)
        folds.append(
            Fold(f"part {i + 1}", host, problem.split.train, np.sort(part), problem.validation, problem.validation)
        )
    return folds


def finetuned(
    problem: Problem, name: str, host: Host, devices: Devices, validation: Evaluation | None = None
) -> tuple[Host, FitResult]:
    """``host`` with its adaptive layers fine-tuned on ``devices``, and what the training did."""
    model = Personalised(host, fixed_host=True)
    layers = model.host.adaptive_parameters()
    result = problem.train(
        name, model, layers, devices, keep_start=True, fit_config=problem.config.editor_fit(), validation=validation
    )
    return model.host.eval(), result


def choose(problem: Problem, choices: Iterable[Choice], make: Callable[[Host, Choice], Classifier]) -> Choice:
    """The choice whose classifier is best on the validation devices; the first of equals.

    Where the host is deployed on unknown populations, those of each known one are judged over the host that left it out.
    """
    folds = population_folds(problem)
    pairs = [(f.host, f.validation) for f in folds] or [(problem.base_host(), problem.validation)]
    views = [(host, view.cached(problem.features_of(host))) for host, view in pairs]

    def score(choice: Choice) -> float:
        found = [view.run(make(host, choice)) for host, view in views]
        return float(np.mean([evaluated.summary[problem.config.monitor] for evaluated in found]))

    return max(choices, key=score)
