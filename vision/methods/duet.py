"""DUET: generate the classifier from the context instead of editing it.

Source: Lv et al., "DUET: A Tuning-Free Device-Cloud Collaborative Parameters Generation Framework for Efficient Device
Model Generalization", WWW'23. The network is the editor's, over classifier weights of zero, without a bound and without
transfer, and it learns together with the host.
"""

from __future__ import annotations

import time

import torch

from vision.methods.problem import Problem, Trained, edit_bytes
from vision.personalised import Personalised


def train_duet(problem: Problem) -> Trained:
    """Host and generator learn together on all devices before validation; the generator alone where the body is given."""
    host = problem.new_host("classifier")
    with torch.no_grad():
        for parameter in host.adaptive_parameters():
            parameter.zero_()
    model = problem.personalise(host, generate=True, fixed_host=problem.given_body)
    started = time.perf_counter()
    assert model.editor is not None
    learned = [*([] if problem.given_body else host.shared_parameters()), *model.editor.parameters()]
    result = problem.train("duet", model, learned, problem.everything)
    return Trained(
        model,
        payload(problem, model),
        forward_passes=problem.window_passes,
        result=result,
        seconds=time.perf_counter() - started,
        keeps_body=problem.given_body,
    )


@torch.no_grad()
def payload(problem: Problem, model: Personalised) -> int:
    """Bytes of the edit of one device."""
    images = problem.data.tensor(problem.data.positions_of(problem.split.validation[:1])[:2])
    edit = model.edit(model.host.features(images.to(model.host.device)).unsqueeze(0))
    assert edit is not None
    return edit_bytes(edit)
