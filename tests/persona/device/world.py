"""A small host exported as a device bundle, and what its tests ask it."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from persona.adaptive import AdaptiveLayers
from persona.device import RequestPolicy
from persona.edits import Edit
from persona.export import DeviceModel, write_device_bundle
from persona.prototypes import Server
from tests.persona.prototypes.world import codes, editor, partition
from tests.persona.toy import HOST, mlp

X = np.linspace(-1, 1, 5, dtype=np.float32)[None]


class Outputs(nn.Module):
    """Graphs have a tuple of outputs."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.inner(x),)


def policy() -> RequestPolicy:
    return RequestPolicy(np.zeros(3, dtype=np.float32), np.eye(3, dtype=np.float32), 0.5, 0.1)


def device_model(head: str = "full", **changes: object) -> DeviceModel:
    inner = mlp()
    made = {
        "task": "toy",
        "module": Outputs(inner),
        "layers": AdaptiveLayers(inner, ("0", "2")),
        "host": HOST,
        "data": {"x": torch.from_numpy(X)},
        "outputs": ("y",),
        "bound": editor(head).bound,
        "scales": editor(head).weight_scales,
        "bank": partition(head).bank,
        "policy": policy(),
        "settings": {"size": 5},
        "files": {"words.txt": b"one two"},
    }
    return DeviceModel(**{**made, **changes})  # type: ignore[arg-type]


def make_bundle(folder: Path, head: str = "full") -> Path:
    write_device_bundle(device_model(head), folder)
    return folder


def under(edit: Edit | None) -> np.ndarray:
    """What torch computes for ``X`` under an edit."""
    model = device_model(bank=None, policy=None)
    with torch.no_grad(), model.layers.applied(edit):
        return model.module(torch.from_numpy(X))[0].numpy()


def message(level: str, head: str = "full", seed: int = 5) -> bytes:
    return Server(editor(head), partition(head).bank).messages(codes(1, seed), level)[0]


def edit(level: str, head: str = "full", seed: int = 5) -> Edit:
    """What a torch device would apply after ``message``."""
    from persona.prototypes import receive

    return receive(partition(head).bank, message(level, head, seed), level)
