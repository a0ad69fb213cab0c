"""Small hosts of every kind and preset, and what their tests ask them."""

import torch
from torch import nn

from persona.edits import Edit
from recsys.data.batches import Context
from recsys.hosts import Host, HostConfig, make_host

ITEMS = 40
HISTORIES = [[3], [7, 1, 30, 2, 2], [], list(range(1, 8)), [40, 39]]
CASES = [(kind, preset) for preset in ("paper", "modern") for kind in ("din", "gru4rec", "sasrec")]
SMALL = {"dim": 8, "max_length": 7}


def small_config(kind: str, preset: str) -> HostConfig:
    return HostConfig.preset(kind, preset, ITEMS, **SMALL)


def small_host(kind: str, preset: str, seed: int = 0) -> Host:
    """In evaluation mode, like a trained one: embeddings large enough to leave the linear range, biases not zero."""
    torch.manual_seed(seed)
    host = make_host(small_config(kind, preset)).eval()
    host.embedding.embeddings["item"].weight.data.mul_(40)
    for layer in host.modules():
        if isinstance(layer, nn.Linear) and layer.bias is not None:
            layer.bias.data.normal_(0.0, 0.3)
    return host


def context(histories: list[list[int]] | None = None, length: int = SMALL["max_length"]) -> Context:
    return Context.from_lists(HISTORIES if histories is None else histories, length)


def candidates(rows: int = len(HISTORIES), width: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, ITEMS + 1, (rows, width), generator=torch.Generator().manual_seed(seed))


def random_edit(host: Host, batch: int, scale: float = 0.3, seed: int = 0) -> Edit:
    entries = sum(spec.parameters for spec in host.adaptive.specs)
    flat = torch.randn(batch, entries, generator=torch.Generator().manual_seed(seed))
    return Edit.from_flat(scale * flat, host.adaptive.specs)
