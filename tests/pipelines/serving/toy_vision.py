"""A small classifier, hardly trained, with an editor whose heads do something and two prototypes."""

from __future__ import annotations

from pathlib import Path

import torch

from persona.prototypes import fit_bank
from tests.vision.common import toy_images
from vision.config import VisionConfig
from vision.methods import Problem
from vision.prototypes import window_codes
from vision.serving.release import Release

DATA = toy_images(devices=8, per_device=6, classes=3, size=16)


def write_classifier(folder: Path) -> Path:
    settings = {"host": "compact", "epochs": 1, "context_images": 3, "step": 3, "width": 4, "rank": 2}
    problem = Problem(DATA, VisionConfig.from_dict(settings | {"validation_share": 0.2}))
    host = problem.base_host()
    model = problem.personalise(host)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.editor.heads.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.editor.host = host.digest()
    codes, _ = window_codes(model, problem.evaluation(problem.split.adapt))
    bank = fit_bank(model.editor, codes, 2).bank
    made = Release(model, DATA.class_names, DATA.image_shape, {"settings": problem.config.as_dict()}, bank)
    made.compile().save(folder)
    return folder
