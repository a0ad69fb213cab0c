"""What a parameter editor reads of a device: its unlabelled images as a sequence of tokens.

==========  =========================================================================================================
kind        tokens
==========  =========================================================================================================
images      one an image in stream order: its standardised features, and what the host believes it shows
pooled      two for all images, whatever their order: mean and standard deviation of the same, and how many images there are
classes     one a class, whatever the order: how the images that the host takes for this class differ from the images of
            the class that the host has learned from, and their share
==========  =========================================================================================================

Shapes: B devices, n images of a device, F features, K classes, T tokens, d_c token width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from persona.errors import ConfigError, nearest
from vision.hosts import Host

CONTEXTS = ("images", "pooled", "classes")
SMALLEST_STD = 1e-3


class ContextReader(nn.Module):
    """Features of a device's images -> tokens for ``persona.editor.ParameterEditor``.

    Args:
        kind: ``images``, ``pooled`` or ``classes``.
        host: whose features are read.

    Attributes:
        mean: (F,) of the features that the host has learned from.
        std: (F,) likewise.
        class_means: (K, F) standardised mean features of each class.

    Raises:
        ConfigError: the kind is unknown.
    """

    mean: Tensor
    std: Tensor
    class_means: Tensor

    def __init__(self, kind: str, host: Host) -> None:
        super().__init__()
        if kind not in CONTEXTS:
            raise ConfigError(f"unknown context {kind!r}: {nearest(kind, CONTEXTS)}")
        self.kind, self.features, self.classes = kind, host.feature_dim, host.config.n_classes
        self.register_buffer("mean", torch.zeros(self.features))
        self.register_buffer("std", torch.ones(self.features))
        self.register_buffer("class_means", torch.zeros(self.classes, self.features))

    @property
    def dim(self) -> int:
        """d_c."""
        f, k = self.features, self.classes
        return {"images": f + k, "pooled": f + k + 1, "classes": f + 1}[self.kind]

    def fit(self, features: Tensor, labels: Tensor) -> None:
        """Take the scale of features (N, F), and where each class lies, from images the host has learned from (N,)."""
        self.mean.copy_(features.mean(0))
        self.std.copy_(features.std(0).clamp_min(SMALLEST_STD))
        standard = (features - self.mean) / self.std
        for label in range(self.classes):
            if bool((labels == label).any()):
                self.class_means[label] = standard[labels == label].mean(0)

    def forward(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Context features (B, n, F + K) of a host -> tokens (B, T, d_c) and how many there are (B,)."""
        features, belief = context[..., : self.features], context[..., self.features :]
        features = (features - self.mean) / self.std
        if self.kind == "images":
            tokens = torch.cat([features, belief], dim=-1)
        elif self.kind == "pooled":
            images = torch.cat([features, belief], dim=-1)
            pooled = torch.stack([images.mean(1), images.std(1, unbiased=False)], dim=1)
            # The error of a mean of n goes with the root of 1 / n.
            error = pooled.new_full((len(pooled), 2, 1), features.shape[1] ** -0.5)
            tokens = torch.cat([pooled, error], dim=-1)
        else:
            weight = belief.sum(1)
            total = torch.einsum("bnk,bnf->bkf", belief, features) - weight.unsqueeze(-1) * self.class_means
            share = weight.unsqueeze(-1) / features.shape[1]
            # One image's worth of doubt: a class that was hardly seen says nothing.
            tokens = torch.cat([total / (weight.unsqueeze(-1) + 1), share], dim=-1)
        return tokens, torch.full((len(tokens),), tokens.shape[1], dtype=torch.int64, device=tokens.device)
