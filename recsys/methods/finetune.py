"""Fine-tuning for everybody on the later rows: the rows that the held-back editor learns from."""

from __future__ import annotations

from persona.methods import adaptive_bytes, all_bytes
from recsys.methods.problem import Problem, Trained
from recsys.personalised import Personalised


def finetune_all(problem: Problem) -> Trained:
    """Every parameter of the host; all devices download the whole model again."""
    model = Personalised(problem.finetuned_host())
    return Trained(model, all_bytes(model.host), problem.trainings.results["finetune_all"])


def finetune_adaptive(problem: Problem) -> Trained:
    """The adaptive layers alone, the same for every device."""
    model = Personalised(problem.base_host())
    layers = model.host.adaptive_parameters()
    result = problem.train("finetune_adaptive", model, layers, problem.held_back.adapt, keep_start=True)
    return Trained(model, adaptive_bytes(model.host), result)
