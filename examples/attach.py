"""Persona on a module of your own, in fifteen lines. The toy: 400 devices of four hidden groups, each with a map of its own.

python examples/attach.py
"""

import tempfile
from typing import Any

from persona import Attached, FitConfig, attach, runtime

runtime.configure()  # before torch, as in every program that may share its machine

import torch  # noqa: E402
from torch import nn  # noqa: E402

# What the groups make of their inputs; nobody is told who is in which.
MAPS = torch.randn(4, 4, 2, generator=torch.Generator().manual_seed(0))


def devices(count: int, seed: int) -> tuple[torch.Tensor, ...]:
    """Contexts (B, 16, 6), the last inputs and outputs of each device; its next input (B, 4) and output (B, 2); its group."""
    group = torch.arange(count) % len(MAPS)
    x = torch.randn(count, 17, 4, generator=torch.Generator().manual_seed(seed))
    y = x @ MAPS[group]
    return torch.cat([x, y], dim=2)[:, :16], x[:, 16], y[:, 16], group


def story(model: nn.Module, folder: str) -> tuple[Any, ...]:
    """From a trained module to one that is edited, grouped, refined, kept and loaded."""
    past, x, y, group = devices(400, seed=1)
    batches = [devices(128, seed)[:3] for seed in range(10, 27)]
    persona = attach(model, ["0", "2"], past, width=16)  # two layers by name, and an example of a context
    persona.fit(batches[1:], nn.functional.mse_loss, validation=batches[:1], config=FitConfig(30, learning_rate=1e-2))
    host = nn.functional.mse_loss(model(x), y)
    with persona.applied(persona.edit(past)):
        edited = nn.functional.mse_loss(model(x), y)
    persona.fit_prototypes(past, k=4)
    found = persona.assign(past)
    moved = persona.refine(devices(400, seed=2)[0], users=torch.arange(400))
    persona.save(folder)
    persona = Attached.load(folder, model)
    return host.item(), edited.item(), found, group, moved, persona


def trained_model() -> nn.Module:
    """A host that fits all devices at once."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for i in range(100):
        _, x, y, _ = devices(128, seed=100 + i)
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
    return model


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        host, edited, found, group, *_ = story(trained_model(), place)
    pairs = len(set(zip(found.tolist(), group.tolist(), strict=True)))
    print(f"mean square error of the host {host:.3f}, edited {edited:.3f}")
    print(f"pairs of a prototype and a hidden group among 400 devices: {pairs}; four mean that they are the same")
