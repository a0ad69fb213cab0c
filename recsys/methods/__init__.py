"""The methods of a comparison: one file a method, one interface, ``train(problem) -> Trained``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from persona import methods
from persona.comparison import Measured
from persona.plugins import declared
from persona.task import SCORES
from recsys.methods.apg import train_apg
from recsys.methods.cluster import finetune_cluster
from recsys.methods.device import finetune_device_1, finetune_device_10
from recsys.methods.duet import train_duet
from recsys.methods.finetune import finetune_adaptive, finetune_all
from recsys.methods.given import measure_given
from recsys.methods.host import train_host, train_longer
from recsys.methods.items import train_item_edits, train_persona_items
from recsys.methods.persona import (
    refresh_host,
    train_configured,
    train_cross_fitted,
    train_frozen,
    train_generated,
    train_held_back,
    train_joint,
    train_refreshed,
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
    "persona_refreshed": train_refreshed,
    "persona_prototypes": train_prototypes,
    "persona_basis": train_basis,
    "persona": train_persona,
    "item_edits": train_item_edits,
    "persona_items": train_persona_items,
}

METHODS |= declared("persona.recsys.methods", METHODS)


def train_method(name: str, problem: Problem) -> Trained:
    """Train the method called ``name``; a name that is unknown is a ``ConfigError``."""
    return methods.train_method(name, problem, METHODS)


def trained(problem: Problem, method: str) -> Trained:
    """``train_method``, the problem first, as a ``Task`` has it."""
    return train_method(method, problem)


def measure(problem: Problem, method: str) -> Measured:
    """Train and test one method, or take the result that is already in the problem's folder; ``scores:FILE`` is what others scored."""
    if method.startswith(SCORES):
        return measure_given(problem, Path(method.removeprefix(SCORES)))
    return methods.measure(problem, method, METHODS)


__all__ = ["METHODS", "Problem", "Trained", "measure", "train_configured", "train_method"]
