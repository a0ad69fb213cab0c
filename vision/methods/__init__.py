"""The methods of a comparison: one file a method, one interface, ``train(problem) -> Trained``."""

from __future__ import annotations

from collections.abc import Callable

from persona import methods
from persona.comparison import Measured
from persona.plugins import declared
from vision.methods.batch_norm import train_batch_norm
from vision.methods.duet import train_duet
from vision.methods.finetune import finetune_adaptive, finetune_all, finetune_device, finetune_interpolated
from vision.methods.host import train_host, train_longer
from vision.methods.lame import train_lame
from vision.methods.persona import (
    joint_body,
    personalised,
    refresh_host,
    train_configured,
    train_cross_fitted,
    train_frozen,
    train_gated,
    train_held_back,
    train_joint,
    train_tuned,
)
from vision.methods.problem import Problem, Trained
from vision.methods.prototypes import train_basis, train_persona, train_prototypes, train_refined
from vision.methods.t3a import train_t3a
from vision.methods.tent import train_tent

METHODS: dict[str, Callable[[Problem], Trained]] = {
    "host": train_host,
    "trained_longer": train_longer,
    "finetune_all": finetune_all,
    "finetune_adaptive": finetune_adaptive,
    "finetune_interpolated": finetune_interpolated,
    "host_refreshed": refresh_host,
    "joint_body": joint_body,
    "finetune_device": finetune_device,
    "batch_norm": train_batch_norm,
    "tent": train_tent,
    "t3a": train_t3a,
    "lame": train_lame,
    "duet": train_duet,
    "persona_frozen": train_frozen,
    "persona_joint": train_joint,
    "persona_cross_fitted": train_cross_fitted,
    "persona_prototypes": train_prototypes,
    "persona_refined": train_refined,
    "persona_basis": train_basis,
    "persona_held_back": train_held_back,
    "persona_tuned": train_tuned,
    "persona_gated": train_gated,
    "persona": train_persona,
}

METHODS |= declared("persona.vision.methods", METHODS)


def train_method(name: str, problem: Problem) -> Trained:
    """Train the method called ``name``; a name that is unknown is a ``ConfigError``."""
    return methods.train_method(name, problem, METHODS)


def trained(problem: Problem, method: str) -> Trained:
    """``train_method``, the problem first, as a ``Task`` has it."""
    return train_method(method, problem)


def measure(problem: Problem, method: str) -> Measured:
    """Train and test one method, or take the result that is already in the problem's folder."""
    return methods.measure(problem, method, METHODS)


__all__ = [
    "METHODS",
    "Problem",
    "Trained",
    "measure",
    "personalised",
    "train_configured",
    "train_method",
]
