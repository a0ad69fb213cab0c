"""The methods of a comparison: one file a method, one interface, ``train(problem) -> Trained``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from persona.comparison import Measured
from persona.errors import ConfigError, nearest
from recsys.evaluation import REPORTED
from recsys.methods.apg import train_apg
from recsys.methods.cluster import finetune_cluster
from recsys.methods.cost import extra_parameters, refresh_seconds
from recsys.methods.device import finetune_device_1, finetune_device_10
from recsys.methods.duet import train_duet
from recsys.methods.finetune import finetune_adaptive, finetune_all
from recsys.methods.host import train_host, train_longer
from recsys.methods.persona import (
    refresh_host,
    train_configured,
    train_cross_fitted,
    train_frozen,
    train_generated,
    train_held_back,
    train_joint,
)
from recsys.methods.problem import Problem, Trained
from recsys.methods.prototypes import train_basis, train_persona, train_prototypes
from recsys.methods.rivals import (
    train_item_knn,
    train_markov,
    train_personal,
    train_popularity,
    train_popularity_recent,
)

METHODS: dict[str, Callable[[Problem], Trained]] = {
    "host": train_host,
    "popularity": train_popularity,
    "popularity_recent": train_popularity_recent,
    "item_knn": train_item_knn,
    "markov": train_markov,
    "personal": train_personal,
    "trained_longer": train_longer,
    "finetune_all": finetune_all,
    "finetune_adaptive": finetune_adaptive,
    "finetune_cluster": finetune_cluster,
    "finetune_device_1": finetune_device_1,
    "finetune_device_10": finetune_device_10,
    "duet": train_duet,
    "apg": train_apg,
    "persona_frozen": train_frozen,
    "persona_joint": train_joint,
    "persona_generated": train_generated,
    "host_refreshed": refresh_host,
    "persona_held_back": train_held_back,
    "persona_cross_fitted": train_cross_fitted,
    "persona_prototypes": train_prototypes,
    "persona_basis": train_basis,
    "persona": train_persona,
}

# Whatever is compared, these are compared, too: who does not beat them needs no model.
RIVALS = ("popularity_recent", "item_knn")


def train_method(name: str, problem: Problem) -> Trained:
    """Train the method called ``name``.

    Raises:
        ConfigError: the name is unknown.
    """
    if name not in METHODS:
        raise ConfigError(f"unknown method {name!r}: {nearest(name, METHODS)}")
    return METHODS[name](problem)


def measure(problem: Problem, method: str) -> Measured:
    """Train and test one method, or take the result that is already in the problem's folder."""
    needed = REPORTED[problem.config.protocol]
    return problem.trainings.measured(method, partial(_measure, problem, method), needed)


def _measure(problem: Problem, method: str) -> Measured:
    trained = train_method(method, problem)
    evaluated = problem.test.run(trained.scorer)
    return Measured(
        method=method,
        summary=evaluated.summary,
        per_unit=evaluated.per_user,
        units=evaluated.users,
        seconds=trained.result.seconds,
        refresh_bytes=trained.refresh_bytes,
        epochs=trained.result.epochs,
        best_epoch=trained.result.best_epoch,
        history=trained.result.history,
        refresh_seconds=refresh_seconds(trained, problem.test.contexts),
        parameters=extra_parameters(trained),
        chosen=trained.chosen,
    )


__all__ = ["METHODS", "RIVALS", "Problem", "Trained", "measure", "train_configured", "train_method"]
