"""What a parameter editor reads of a device: its unlabelled images as a sequence of tokens.

==========  =========================================================================================================
kind        tokens
==========  =========================================================================================================
images      one an image in stream order: its standardised features, and what the host believes it shows
pooled      two for all images, whatever their order: mean and standard deviation of the same, and how many images there are
features    two likewise of the features alone: the cheapest, for the host's classifier need not run for it
beliefs     one for all images, of the host's beliefs alone: what it takes images for, how surely, and what it confuses; it
            holds few numbers and none that name a population, so it is for populations that no device has shown
classes     one a class, whatever the order: how the images that the host takes for this class differ from the images of
            the class that the host has learned from, and their share
==========  =========================================================================================================

Shapes: B devices, n images of a device, F features, K classes, T tokens, d_c token width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from persona.errors import check_known
from vision.hosts import Host

CONTEXTS = ("images", "pooled", "features", "beliefs", "classes")
SMALLEST_STD = 1e-3
# Log-probabilities are cut off here, and divided by this scale.
SMALLEST_BELIEF, LOG_SCALE = 1e-6, 4.0


class ContextReader(nn.Module):
    """Features of a device's images -> tokens for ``persona.editor.ParameterEditor``.

    Args:
        kind: one of ``CONTEXTS``.
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
        check_known("context", kind, CONTEXTS)
        self.kind, self.features, self.classes = kind, host.feature_dim, host.config.n_classes
        self.register_buffer("mean", torch.zeros(self.features))
        self.register_buffer("std", torch.ones(self.features))
        self.register_buffer("class_means", torch.zeros(self.classes, self.features))

    @property
    def dim(self) -> int:
        """d_c."""
        f, k = self.features, self.classes
        widths = {"images": f + k, "pooled": f + k + 1, "features": f + 1, "beliefs": k * (k + 3) + 2, "classes": f + 1}
        return widths[self.kind]

    @property
    def reads_beliefs(self) -> bool:
        """Whether it takes the host's beliefs beside the features."""
        return self.kind != "features"

    def fit(self, features: Tensor, labels: Tensor) -> None:
        """Take the scale of features (N, F), and where each class lies, from images the host has learned from (N,)."""
        self.mean.copy_(features.mean(0))
        self.std.copy_(features.std(0).clamp_min(SMALLEST_STD))
        standard = (features - self.mean) / self.std
        for label in range(self.classes):
            if bool((labels == label).any()):
                self.class_means[label] = standard[labels == label].mean(0)

    def forward(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, T, d_c) and how many there are (B,).

        Args:
            context: (B, n, F + K) context features of a host; (B, n, F), its features alone, where ``reads_beliefs`` is false.
        """
        features, belief = context[..., : self.features], context[..., self.features :]
        if self.kind == "features":
            tokens = self._moments(features)
            return tokens, torch.full((len(tokens),), 2, dtype=torch.int64, device=tokens.device)
        features = (features - self.mean) / self.std
        if self.kind == "images":
            tokens = torch.cat([features, belief], dim=-1)
        elif self.kind == "pooled":
            tokens = _pooled(torch.cat([features, belief], dim=-1))
        elif self.kind == "beliefs":
            tokens = _believed(belief)
        else:
            weight = belief.sum(1)
            total = torch.einsum("bnk,bnf->bkf", belief, features) - weight.unsqueeze(-1) * self.class_means
            share = weight.unsqueeze(-1) / features.shape[1]
            # One image's worth of doubt: a class that was hardly seen says nothing.
            tokens = torch.cat([total / (weight.unsqueeze(-1) + 1), share], dim=-1)
        return tokens, torch.full((len(tokens),), tokens.shape[1], dtype=torch.int64, device=tokens.device)

    def _moments(self, features: Tensor) -> Tensor:
        """As ``_pooled`` of standardised features (B, n, F), which are pooled first, for that is less work."""
        mean = features.mean(1)
        deviation = (features.square().mean(1) - mean.square()).clamp_min(SMALLEST_STD**2).sqrt()
        moments = torch.stack([(mean - self.mean) / self.std, deviation / self.std], dim=1)
        return _with_error(moments, features.shape[1])


def _pooled(images: Tensor) -> Tensor:
    """(B, n, d) -> (B, 2, d + 1): mean and standard deviation, and the root of 1 / n, with which the error of a mean goes."""
    std, mean = torch.std_mean(images, 1, correction=0)
    return _with_error(torch.stack([mean, std], dim=1), images.shape[1])


def _with_error(moments: Tensor, n: int) -> Tensor:
    """(B, 2, d) -> (B, 2, d + 1); not by padding, which in a graph would fix the number of images."""
    return torch.cat([moments, torch.full_like(moments[..., :1], n**-0.5)], dim=-1)


def _believed(belief: Tensor) -> Tensor:
    """(B, n, K) -> (B, 1, K (K + 3) + 2): mean belief, mean and deviation of its centred logarithm, what goes with each class."""
    n = belief.shape[1]
    log = belief.clamp_min(SMALLEST_BELIEF).log()
    centred = (log - log.mean(-1, keepdim=True)) / LOG_SCALE
    std, mean = torch.std_mean(centred, 1, correction=0)
    confused = torch.einsum("bnj,bnk->bjk", belief, centred) / n
    entropy = -(belief * log).sum(-1).mean(1, keepdim=True)
    error = torch.full_like(entropy, n**-0.5)
    return torch.cat([belief.mean(1), mean, std, confused.flatten(1), entropy, error], dim=1).unsqueeze(1)
