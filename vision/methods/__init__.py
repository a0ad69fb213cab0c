"""The methods of a comparison: one file a method, one interface, ``train(problem) -> Trained``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from persona.comparison import Measured
from persona.errors import ConfigError, nearest
from vision.methods.batch_norm import train_batch_norm
from vision.methods.duet import train_duet
from vision.methods.finetune import finetune_adaptive, finetune_all, finetune_device, finetune_interpolated
from vision.methods.host import train_host, train_longer
from vision.methods.lame import train_lame
from vision.methods.persona import (
    personalised,
    train_configured,
    train_cross_fitted,
    train_frozen,
    train_gated,
    train_held_back,
    train_joint,
    train_tuned,
)
from vision.methods.problem import Problem, Trained
from vision.methods.prototypes import fit_chosen, train_basis, train_persona, train_prototypes, train_refined
from vision.methods.t3a import train_t3a
from vision.methods.tent import train_tent

METHODS: dict[str, Callable[[Problem], Trained]] = {
    "host": train_host,
    "trained_longer": train_longer,
    "finetune_all": finetune_all,
    "finetune_adaptive": finetune_adaptive,
    "finetune_interpolated": finetune_interpolated,
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


def train_method(name: str, problem: Problem) -> Trained:
    """Train the method called ``name``.

    Raises:
        ConfigError: the name is unknown.
    """
    if name not in METHODS:
        raise ConfigError(f"unknown method {name!r}: {nearest(name, METHODS)}")
    return METHODS[name](problem)


def measure(problem: Problem, method: str) -> Measured:
    """Train and test one method, or take the result that is already in the problem's folder.

    Beside the metrics the summary holds the cost, ``forward_passes`` and ``backward_passes`` an image and
    ``ms_per_image``. Where the body is given, features are computed once for all methods that keep it, in tests as well, and
    these are not timed.
    """
    return problem.trainings.measured(method, partial(_measure, problem, method))


def _measure(problem: Problem, method: str) -> Measured:
    trained = train_method(method, problem)
    known = problem.given_body and trained.keeps_body
    evaluated = (problem.test.cached(problem.features) if known else problem.test).run(trained.classifier)
    cost = {"forward_passes": trained.forward_passes, "backward_passes": trained.backward_passes}
    return Measured(
        method=method,
        summary=evaluated.summary | cost,
        per_unit=evaluated.per_device,
        units=evaluated.devices,
        seconds=trained.seconds,
        refresh_bytes=trained.refresh_bytes,
        epochs=trained.result.epochs,
        best_epoch=trained.result.best_epoch,
        history=trained.result.history,
        chosen={name: float(value) for name, value in trained.chosen.items()},
    )


__all__ = [
    "METHODS",
    "Problem",
    "Trained",
    "fit_chosen",
    "measure",
    "personalised",
    "train_configured",
    "train_method",
]
