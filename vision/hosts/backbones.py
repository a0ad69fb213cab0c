"""torchvision's light classifiers as a body (images -> pooled features) and a head (linear layers)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from vision.hosts.config import HostConfig


@dataclass(frozen=True)
class Family:
    """How a kind of torchvision model is taken apart.

    Attributes:
        model: its name in torchvision.
        stem: name of its first convolution.
        pool: name of the max pooling that follows the stem, if there is one.
        last: name of its last linear layer.
        split: the model's parts, body and head.
    """

    model: str
    stem: str
    pool: str | None
    last: str
    split: Callable[[Any], tuple[nn.Sequential, nn.Sequential]]


def _split_mobilenet(model: Any) -> tuple[nn.Sequential, nn.Sequential]:
    return nn.Sequential(model.features, model.avgpool, nn.Flatten(1)), model.classifier


def _split_resnet(model: Any) -> tuple[nn.Sequential, nn.Sequential]:
    stages = [model.layer1, model.layer2, model.layer3, model.layer4]
    body = nn.Sequential(model.conv1, model.bn1, model.relu, model.maxpool, *stages, model.avgpool, nn.Flatten(1))
    return body, nn.Sequential(model.fc)


def _split_shufflenet(model: Any) -> tuple[nn.Sequential, nn.Sequential]:
    stages = [model.conv1, model.maxpool, model.stage2, model.stage3, model.stage4, model.conv5]
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(1)), nn.Sequential(model.fc)


FAMILIES: dict[str, Family] = {
    "mobilenet_v3_small": Family("mobilenet_v3_small", "features.0.0", None, "classifier.3", _split_mobilenet),
    "mobilenet_v3_large": Family("mobilenet_v3_large", "features.0.0", None, "classifier.3", _split_mobilenet),
    "resnet18": Family("resnet18", "conv1", "maxpool", "fc", _split_resnet),
    "shufflenet_v2": Family("shufflenet_v2_x1_0", "conv1.0", "maxpool", "fc", _split_shufflenet),
}


def build_model(config: HostConfig) -> nn.Module:
    """The torchvision model of ``config`` with fresh weights, its stem fitted to the images."""
    family = FAMILIES[config.kind]
    model: nn.Module = torchvision.models.get_model(family.model, weights=None, num_classes=config.n_classes)
    stem = model.get_submodule(family.stem)
    assert isinstance(stem, nn.Conv2d)
    if config.channels != stem.in_channels or config.small:
        model.set_submodule(family.stem, _fitted_stem(stem, config))
    if config.small and family.pool is not None:
        model.set_submodule(family.pool, nn.Identity())
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            # MobileNet's own 0.01 is made for ImageNet's many steps; a host of a few thousand images needs faster ones.
            module.momentum = 0.1
    return model


def _fitted_stem(stem: nn.Conv2d, config: HostConfig) -> nn.Conv2d:
    """A first convolution for the channels and the size of the images: 3 x 3 at full resolution for small ones."""
    kernel = 3 if config.small else stem.kernel_size[0]
    stride = 1 if config.small else stem.stride[0]
    fitted = nn.Conv2d(config.channels, stem.out_channels, kernel, stride, kernel // 2, bias=False)
    nn.init.kaiming_normal_(fitted.weight, mode="fan_out")
    return fitted


def fit_weights(weights: dict[str, Tensor], config: HostConfig, model: nn.Module) -> dict[str, Tensor]:
    """Weights of a torchvision model for other images or classes: what can be carried over, and the rest as it is.

    A colour stem reads gray images by the sum over its channels. A last layer of other classes starts anew.
    """
    family, own = FAMILIES[config.kind], model.state_dict()
    fitted = dict(weights)
    stem, last = f"{family.stem}.weight", f"{family.last}.weight"
    if stem in fitted and fitted[stem].ndim == 4 and config.channels == 1:
        fitted[stem] = fitted[stem].sum(1, keepdim=True)
    if last in fitted and fitted[last].shape != own[last].shape:
        for name in (last, f"{family.last}.bias"):
            fitted[name] = own[name]
    return {name: torch.as_tensor(tensor) for name, tensor in fitted.items()}
