"""APG: generate the adaptive layers as low-rank products, W = U S(z) V with shared U, V and a generated core S.

Source: Yan et al., "APG: Adaptive Parameter Generation Network for Click-Through Rate Prediction", NeurIPS'22. As with DUET,
the adaptive weights themselves are zero, there is neither bound nor transfer, and everything learns together.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import nn

from persona.editor import LowRankHead, ParameterEditor
from persona.methods import FLOAT_BYTES
from recsys.hosts import Host
from recsys.methods.problem import Problem, Trained
from recsys.personalised import Personalised

RANK = 8


def train_apg(problem: Problem) -> Trained:
    """Host and generator learn together on all rows before validation; a device receives cores and biases."""
    host = problem.new_host()
    generator = _generator(problem, host)
    with torch.no_grad():
        for parameter in host.adaptive_parameters():
            parameter.zero_()
    model = Personalised(host, generator)
    learned = [*host.shared_parameters(), *generator.parameters()]
    result = problem.train("apg", model, learned, problem.everything)
    sent = sum(head.rank**2 + (0 if head.bias is None else head.bias.out_features) for head in _heads(generator))
    return Trained(model, FLOAT_BYTES * sent, result)


def _generator(problem: Problem, host: Host) -> ParameterEditor:
    torch.manual_seed(problem.config.seed + 1)
    config = replace(
        problem.config.editor_config(host.context_dim),
        head="low_rank",
        rank=RANK,
        bound="none",
        transfer="none",
        zero_start=False,
    )
    made = ParameterEditor(config, host.adaptive.specs, host.adaptive.weight_scales())
    for head in _heads(made):
        # Cores start near the identity: with U and V orthonormal, signals then keep their size through the layers.
        nn.init.eye_(head.core.bias.data.view(head.rank, head.rank))
    return made


def _heads(generator: ParameterEditor) -> list[LowRankHead]:
    return [cast(LowRankHead, head) for head in generator.heads]
