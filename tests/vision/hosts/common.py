"""Small hosts of every kind, and what their tests ask them."""

from functools import cache

import torch
from torch import nn

from persona.edits import Edit
from vision.hosts import ADAPTIVE, KINDS, Host, HostConfig, make_host

SIZE, CLASSES = 16, 5
DEVICES, EACH = 3, 2
# Every kind with everything adaptive, and every choice of adaptive layers on the lightest kind.
CASES = [(kind, "all") for kind in KINDS if kind != "efficientnet_lite0"] + [
    ("mobilenet_v3_small", choice) for choice in ADAPTIVE[:2]
]


def small_config(kind: str = "mobilenet_v3_small", adaptive: str = "all", channels: int = 1) -> HostConfig:
    return HostConfig(kind, CLASSES, channels, SIZE, adaptive)


def fresh_host(kind: str = "mobilenet_v3_small", adaptive: str = "all", seed: int = 0) -> Host:
    """In evaluation mode, with running statistics near those of the pictures: fresh ones let no signal through."""
    torch.manual_seed(seed)
    host = make_host(small_config(kind, adaptive)).train()
    for norm in host.norm_layers():
        norm.momentum = 1.0
    with torch.no_grad():
        host(pictures(8, seed=99))
    for norm in host.norm_layers():
        norm.momentum = 0.1
        norm.running_var.mul_(1.3)
    for layer in host.head.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
    return host.eval()


@cache
def small_host(kind: str = "mobilenet_v3_small", adaptive: str = "all") -> Host:
    """Shared by tests that do not change it."""
    return fresh_host(kind, adaptive)


def pictures(*shape: int, channels: int = 1, seed: int = 0) -> torch.Tensor:
    """uint8 images (*shape, C, H, W): noise on gradients, so that they differ in more than noise."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.rand(*shape, channels, 1, 1, generator=generator) * 150
    slope = torch.linspace(0, 1, SIZE) * 80 * torch.rand(*shape, channels, 1, 1, generator=generator)
    noise = torch.rand(*shape, channels, SIZE, SIZE, generator=generator) * 25
    return (base + slope + noise).to(torch.uint8)


def random_edit(host: Host, batch: int, scale: float = 0.02, seed: int = 0) -> Edit:
    entries = sum(spec.parameters for spec in host.adaptive.specs)
    flat = torch.randn(batch, entries, generator=torch.Generator().manual_seed(seed))
    return Edit.from_flat(scale * flat, host.adaptive.specs)
