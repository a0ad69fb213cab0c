"""Models of every kind, fitted to the channels, sizes and classes of the images at hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vision.hosts.config import HostConfig
from vision.hosts.families import FAMILIES


def build_model(config: HostConfig) -> nn.Module:
    """The model of ``config`` with fresh weights, its stem fitted to the images.

    Raises:
        ConfigError: the kind needs a package that is not installed.
    """
    family = FAMILIES[config.kind]
    model = family.make(config)
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
    """Weights of a model for other images or classes: what can be carried over, and the rest as it is.

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
