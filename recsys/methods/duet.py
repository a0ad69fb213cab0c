"""DUET: generate the adaptive layers from the context instead of editing them.

Source: Lv et al., "DUET: A Tuning-Free Device-Cloud Collaborative Parameters Generation Framework for Efficient Device
Model Generalization", WWW'23. The network is the editor's, over adaptive weights of zero, without a bound and without
transfer, and it learns together with the host.
"""

from __future__ import annotations

import torch

from persona.methods import adaptive_bytes
from recsys.methods.problem import Problem, Trained
from recsys.personalised import Personalised


def train_duet(problem: Problem) -> Trained:
    """Host and generator learn together on all rows before validation."""
    host = problem.new_host()
    generator = problem.new_editor(host, generate=True)
    with torch.no_grad():
        for parameter in host.adaptive_parameters():
            parameter.zero_()
    model = Personalised(host, generator)
    learned = [*host.shared_parameters(), *generator.parameters()]
    result = problem.train("duet", model, learned, problem.everything)
    return Trained(model, adaptive_bytes(host), result)
