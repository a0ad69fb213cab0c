"""Classifiers for devices: an image in, logits and features out, adaptive weights as constants that an edit exchanges.

Shapes: C channels, H height, W width, F features, K classes.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from persona.bounds import Bound
from persona.export import DeviceModel, write_device_bundle
from persona.prototypes import PrototypeBank
from persona.storage import digest_tensors
from vision.device.classifier import TASK
from vision.hosts import Host
from vision.personalised import Personalised


class _OnDevice(nn.Module):
    """An image (1, C, H, W) uint8 -> logits (1, K) and features (1, F)."""

    def __init__(self, host: Host) -> None:
        super().__init__()
        self.host = host

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        with self.host.norms.applied(1):
            features = self.host.body(self.host.scaled(images))
        return self.host.head(features), features


def device_model(
    model: Personalised, class_names: list[str], image_shape: tuple[int, int, int], bank: PrototypeBank | None = None
) -> DeviceModel:
    """What a device needs of a classifier.

    Args:
        model: host and editor.
        class_names: (K,).
        image_shape: (C, H, W).
        bank: prototypes of this host and editor.
    """
    host, editor = model.host.eval(), model.editor
    return DeviceModel(
        task=TASK,
        module=_OnDevice(host),
        layers=host.adaptive,
        host=digest_tensors(host.state_dict()),
        data={"images": torch.zeros(1, *image_shape, dtype=torch.uint8)},
        outputs=("logits", "features"),
        bound=Bound("none") if editor is None else editor.bound,
        scales=host.weight_scales() if editor is None else editor.weight_scales,
        bank=bank,
        constant=True,
        settings={"classes": class_names, "image_shape": list(image_shape), "host": host.config.as_dict()},
    )


def export_classifier(
    model: Personalised,
    class_names: list[str],
    image_shape: tuple[int, int, int],
    folder: Path,
    *,
    bank: PrototypeBank | None = None,
    form: str = "onnx",
) -> None:
    """Write a classifier as a device bundle; errors as in ``persona.export.write_device_bundle``."""
    write_device_bundle(device_model(model, class_names, image_shape, bank), folder, form)
