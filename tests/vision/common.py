"""Small images of a few devices, and helpers for the tests of the vision room."""

from typing import Any

import numpy as np
import torch

from persona.prototypes import fit_bank
from vision.config import VisionConfig
from vision.data.images import DeviceImages
from vision.methods import Problem
from vision.prototypes import window_codes
from vision.serving.release import Release

SIZE = 32
# Trainings of one epoch, on devices enough for every part of a split.
TINY = {
    "adapt_share": 0.4,
    "validation_share": 0.2,
    "test_share": 0.25,
    "context_images": 3,
    "step": 3,
    "batch_size": 16,
    "epochs": 1,
    "editor_epochs": 1,
    "steps_per_epoch": 2,
    "devices_per_batch": 3,
    "width": 4,
    "rank": 2,
}


def toy_images(
    devices: int = 12, per_device: int = 8, classes: int = 3, channels: int = 1, size: int = SIZE, seed: int = 0
) -> DeviceImages:
    """Bars whose place is the class, on a background whose brightness is the device's own; groups alternate a, b."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, devices * per_device)
    owner = np.repeat(np.arange(devices), per_device)
    pixels = rng.normal(60, 12, (len(labels), size, size, channels)) + 5 * owner[:, None, None, None]
    width = size // classes
    for i, label in enumerate(labels):
        pixels[i, :, label * width : (label + 1) * width] += 70
    return DeviceImages.from_arrays(
        pixels.clip(0, 255).astype(np.uint8),
        labels,
        owner,
        device_ids=[f"d{i}" for i in range(devices)],
        class_names=[f"c{i}" for i in range(classes)],
        groups=["ab"[i % 2] for i in range(devices)],
    )


def awake_release(data: DeviceImages, **settings: Any) -> Release:
    """A host, hardly trained, with an editor whose heads do something and two prototypes of its own edits."""
    small = {"host": "compact", "epochs": 1, "context_images": 3, "step": 3, "width": 4, "rank": 2}
    problem = Problem(data, VisionConfig.from_dict({**small, "validation_share": 0.2, **settings}))
    host = problem.base_host()
    model = problem.personalise(host)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.editor.heads.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.editor.host = host.digest()
    codes, _ = window_codes(model, problem.evaluation(problem.split.adapt))
    bank = fit_bank(model.editor, codes, 2).bank
    return Release(model, data.class_names, data.image_shape, {"settings": problem.config.as_dict()}, bank)
