"""The contract of a vision host.

A host is a light classifier on the device: shared layers, the same for everybody, and adaptive layers, which an edit changes
for each device. The shared forward turns images into features (``features``); the adaptive layers classify them under any
edit (``classify``). Where the norms are adaptive, too, features depend on the edit (``features(images, edit)``), and an
edited prediction is a second pass.

Shapes: B devices, n images of a device, N images, C channels, H height, W width, F features, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from persona.adaptive import AdaptiveLayers
from persona.edits import Edit
from persona.errors import MismatchError
from persona.storage import digest_tensors
from vision.hosts.backbones import build_model
from vision.hosts.config import HostConfig
from vision.hosts.families import FAMILIES
from vision.hosts.norms import SCALE, SHIFT, EditableNorm, make_editable
from vision.hosts.weights import load_into


class Host(nn.Module):
    """A light classifier whose adaptive layers can be edited.

    Args:
        config: the settings.
        weights: see ``vision.hosts.weights.load_into``; fresh weights from torch's generator by default.

    Attributes:
        body: images -> pooled features.
        head: features -> logits, the linear layers of the classifier.
        norms: scales and shifts of all batch norms of the body.
        adaptive: the adaptive layers. Not a submodule: the layers themselves are.

    Raises:
        PersonaError: the weights cannot be loaded.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: HostConfig, weights: str | None = None) -> None:
        super().__init__()
        self.config = config
        model = build_model(config)
        if weights is not None:
            load_into(model, config, weights)
        self.body, self.head = FAMILIES[config.kind].split(model)
        self.norms = make_editable(self.body)
        linear = [f"head.{name}" for name, child in self.head.named_modules() if isinstance(child, nn.Linear)]
        names = {"classifier": linear, "norms": [SCALE, SHIFT], "all": [SCALE, SHIFT, *linear]}[config.adaptive]
        self.adaptive = AdaptiveLayers(self, names)
        first = self.head.get_submodule(linear[0].removeprefix("head."))
        assert isinstance(first, nn.Linear)
        self.feature_dim = first.in_features
        mean, std = (torch.tensor(values) for values in FAMILIES[config.kind].scaling)
        if config.channels == 1:
            mean, std = mean.mean(0, keepdim=True), std.mean(0, keepdim=True)
        self.register_buffer("mean", mean[:, None, None], persistent=False)
        self.register_buffer("std", std[:, None, None], persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the host lies."""
        return self.mean.device

    @property
    def context_dim(self) -> int:
        """d_c, the width of ``context_features``: F + K."""
        return self.feature_dim + self.config.n_classes

    @property
    def shared_features(self) -> bool:
        """Whether features are the same under every edit, so that one pass serves the context and the prediction."""
        return self.config.adaptive == "classifier"

    def features(self, images: Tensor, edit: Edit | None = None) -> Tensor:
        """Images (N, C, H, W) or (B, n, C, H, W), values 0 to 255 -> features (N, F) or (B, n, F).

        Args:
            images: uint8 or float.
            edit: of batch 1 for all images, or of batch B (of batch N where images are (N, C, H, W)); without effect
                where the norms are not adaptive.

        Raises:
            MismatchError: the images have other channels, or the edit another number of devices.
        """
        if images.shape[-3] != self.config.channels:
            raise MismatchError(
                f"these images have {images.shape[-3]} channels, but the host reads {self.config.channels}: convert them"
            )
        edited = None if self.shared_features else edit
        if edited is not None and edited.batch_size not in (1, len(images)):
            raise MismatchError(
                f"the edit is for {edited.batch_size} devices, but the images are of {len(images)}: give one edit a "
                "device, or a single edit for all"
            )
        alone = 1 if edited is None else edited.batch_size
        # Channels last: depthwise convolutions learn twice as fast, and others are no slower.
        flat = self.scaled(images.reshape(-1, *images.shape[-3:])).contiguous(memory_format=torch.channels_last)
        with self.adaptive.applied(edited), self.norms.applied(len(images) if images.ndim == 5 else alone, alone):
            pooled: Tensor = self.body(flat)
        return pooled.reshape(*images.shape[:-3], self.feature_dim)

    def scaled(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) of values 0 to 255 as the body reads them."""
        scaled: Tensor = (images.float() / 255 - self.mean) / self.std
        return scaled

    def classify(self, features: Tensor, edit: Edit | None = None) -> Tensor:
        """Features (N, F) or (B, n, F) -> logits (N, K) or (B, n, K), under an edit of batch 1, N or B.

        Where the norms are adaptive, give features that were computed under the same edit.
        """
        with nullcontext() if edit is None else self.adaptive.applied(edit):
            logits: Tensor = self.head(features)
        return logits

    def forward(self, images: Tensor, edit: Edit | None = None) -> Tensor:
        """Images (N, C, H, W) or (B, n, C, H, W) -> logits (N, K) or (B, n, K)."""
        return self.classify(self.features(images, edit), edit)

    def context_features(self, features: Tensor) -> Tensor:
        """What a parameter editor reads of each image: (..., F) -> (..., F + K).

        The features of the host without an edit, and beside them what the host believes the image shows.
        """
        return torch.cat([features, self.head(features).softmax(-1)], dim=-1)

    def digest(self) -> str:
        """SHA-256, in hex, of all parameters and running statistics: what edits and bundles belong to."""
        return digest_tensors(self.state_dict())

    def weight_scales(self) -> Tensor:
        """(L,) the unit of an edit's bound: the root-mean-square weight of each adaptive layer.

        The shifts of norms go by the scales: both act on normalised activations, and fresh shifts are zero.
        """
        scales = self.adaptive.weight_scales()
        names = list(self.adaptive.layers)
        if SHIFT in names:
            scales[names.index(SHIFT)] = scales[names.index(SCALE)]
        return scales

    def norm_layers(self) -> list[EditableNorm]:
        """The norms of the body, in the order of the bank."""
        return [module for module in self.body.modules() if isinstance(module, EditableNorm)]

    def adaptive_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that an edit changes."""
        return iter(self.adaptive.parameters())

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """All other parameters."""
        adaptive = {id(parameter) for parameter in self.adaptive_parameters()}
        return (parameter for parameter in self.parameters() if id(parameter) not in adaptive)
