"""Features of a host's images without an edit, computed once: shared layers are fixed after pre-training.

On the CPU, bodies for large images run as compiled graphs, which take a quarter of the time.

Letters: N images, P positions asked for, n images of a window, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from persona.storage import digest_json, digest_tensors, load_tensors, save_tensors
from persona.torch_device import CPU, moved
from vision.data.images import DeviceImages
from vision.hosts import Host
from vision.hosts.graph import CompiledBody
from vision.hosts.norms import own_statistics

# Images in one forward pass that needs no gradient: of small images, and of larger ones, whose activations are large.
ROWS, ROWS_LARGE = 256, 25

Int64Array = NDArray[np.int64]
Compute = Callable[[Int64Array], Tensor]


class Images(Protocol):
    """Whatever has images at positions; see ``DeviceImages``."""

    def tensor(self, positions: NDArray[np.integer]) -> Tensor:
        """(P, C, H, W) uint8."""


class FeatureCache:
    """Features of a fixed host's images without an edit, computed once; kept on the CPU.

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


def all_features(
    host: Host, data: DeviceImages, folder: Path | None, images: Images | None = None, variant: str = ""
) -> FeatureCache:
    """The features of all images; kept in ``folder``, where hosts with the same body find them again.

    Args:
        host: in evaluation mode.
        data: says which images there are.
        folder: of feature files, each named by data and body; without one nothing is kept.
        images: what is looked at in their places; the data's own by default.
        variant: names these other images.
    """
    key = [data.digest, body_digest(host), *([variant] if variant else [])]
    return _kept(host, data, folder, key, lambda positions: _features(host, images or data, positions))


def window_features(
    host: Host, data: DeviceImages, windows: Iterable[tuple[Int64Array, int]], prior: float, folder: Path | None
) -> FeatureCache:
    """The features of all images, each normalised by the statistics of the window in which it is new.

    Args:
        host: in evaluation mode.
        data: the images.
        windows: positions (n,) of each window, and how many at its end are new; every image is new once.
        prior: how many images the running statistics weigh.
        folder: as in ``all_features``.
    """
    known = list(windows)
    described = [[int(own[0]), len(own), int(new)] for own, new in known]
    key = [data.digest, body_digest(host), "window", prior, digest_json(described)]

    def compute(positions: Int64Array) -> Tensor:
        found = torch.empty(len(positions), host.feature_dim)
        body = CompiledBody(host, prior) if _compiles(host) else partial(features_of, host)
        for own, new in known:
            pixels = data.tensor(own)
            with torch.no_grad(), own_statistics(prior):
                features = body(pixels)
            found[torch.from_numpy(own[-new:])] = features[-new:]
        return found

    return _kept(host, data, folder, key, compute)


def features_of(host: Host, images: Tensor) -> Tensor:
    """Images (N, C, H, W) on the CPU -> the features (N, F) of a host that lies anywhere, on the CPU."""
    return host.features(moved(images, host.device)).cpu()


def body_digest(host: Host) -> str:
    """SHA-256, in hex, of all that features depend on."""
    return digest_tensors({**host.body.state_dict(), **host.norms.state_dict(prefix="norms.")})


def _kept(host: Host, data: DeviceImages, folder: Path | None, key: Sequence[object], compute: Compute) -> FeatureCache:
    """What ``compute`` makes of all positions, or what it made of them before."""
    positions = np.arange(data.n_images)
    path = None if folder is None else folder / f"features-{digest_json(list(key))[:16]}.safetensors"
    if path is not None and path.exists():
        return FeatureCache(host, data, positions, load_tensors(path)[0]["features"])
    features = compute(positions)
    if path is not None:
        save_tensors(path, {"features": features}, {})
    return FeatureCache(host, data, positions, features)


def _compiles(host: Host) -> bool:
    """Whether a compiled graph is faster: for large images on the CPU."""
    return host.device == CPU and not host.config.small


@torch.no_grad()
def _features(host: Host, data: Images, positions: Int64Array) -> Tensor:
    rows = ROWS if host.config.small else ROWS_LARGE
    run = CompiledBody(host) if _compiles(host) else partial(features_of, host)
    return torch.cat([run(data.tensor(positions[i : i + rows])) for i in range(0, len(positions), rows)])
