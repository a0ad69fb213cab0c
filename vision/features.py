"""Features of a host's images without an edit, computed once: shared layers are fixed after pre-training.

Letters: N images, F features.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from persona.storage import digest_json, digest_tensors, load_tensors, save_tensors
from vision.hosts import Host
from vision.images import DeviceImages

# Images in one forward pass that needs no gradient.
ROWS = 256

Int64Array = NDArray[np.int64]


class FeatureCache:
    """Features of a fixed host's images without an edit, computed once.

    Args:
        host: in evaluation mode, and its body not trained while the cache is used.
        data: the images.
        positions: (N,) those that will be asked for.
        features: (N, F), if they are known already.
    """

    def __init__(self, host: Host, data: DeviceImages, positions: Int64Array, features: Tensor | None = None) -> None:
        self.row = np.full(data.n_images, -1, np.int64)
        self.row[positions] = np.arange(len(positions))
        self.features = _features(host, data, positions) if features is None else features

    def __getitem__(self, positions: Int64Array) -> Tensor:
        """(...,) positions -> (..., F)."""
        return self.features[torch.from_numpy(self.row[positions])]


def all_features(host: Host, data: DeviceImages, folder: Path | None) -> FeatureCache:
    """The features of all images; kept in ``folder``, where hosts with the same body find them again.

    Args:
        host: in evaluation mode.
        data: the images.
        folder: of feature files, each named by data and body; without one nothing is kept.
    """
    positions = np.arange(data.n_images)
    if folder is None:
        return FeatureCache(host, data, positions)
    path = folder / f"features-{digest_json([data.digest, body_digest(host)])[:16]}.safetensors"
    if path.exists():
        return FeatureCache(host, data, positions, load_tensors(path)[0]["features"])
    cache = FeatureCache(host, data, positions)
    save_tensors(path, {"features": cache.features}, {})
    return cache


def body_digest(host: Host) -> str:
    """SHA-256, in hex, of all that features depend on."""
    return digest_tensors({**host.body.state_dict(), **host.norms.state_dict(prefix="norms.")})


@torch.no_grad()
def _features(host: Host, data: DeviceImages, positions: Int64Array) -> Tensor:
    blocks = [positions[i : i + ROWS] for i in range(0, len(positions), ROWS)]
    return torch.cat([host.features(data.tensor(block)) for block in blocks])
