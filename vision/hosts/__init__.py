"""The hosts: one contract (``Host``); four kinds of torchvision, a compact one for small images, EfficientNet-Lite0.

Example::

    host = make_host(HostConfig("mobilenet_v3_small", n_classes=10, channels=1, size=28)).eval()
    features = host.features(images)
    logits = host.classify(features, edit)
"""

from vision.hosts.base import Host
from vision.hosts.config import ADAPTIVE, KINDS, HostConfig


def make_host(config: HostConfig, weights: str | None = None) -> Host:
    """The host of ``config``, initialised from torch's generator, or with given weights."""
    return Host(config, weights)


__all__ = ["ADAPTIVE", "KINDS", "Host", "HostConfig", "make_host"]
