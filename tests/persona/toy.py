"""A small host and helpers for the tests of the method."""

import torch
from torch import Tensor, nn

from persona.adaptive import AdaptiveLayers
from persona.editor import EditorConfig, ParameterEditor
from persona.edits import DenseEdit, Edit, LayerSpec

HOST = "a" * 64
SPECS = (LayerSpec("0", 6, 5), LayerSpec("2", 3, 6))


def mlp(bias: bool = True, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 6, bias=bias), nn.Tanh(), nn.Linear(6, 3, bias=bias))


def random_edit(batch: int, seed: int = 0, scale: float = 0.3, specs: tuple[LayerSpec, ...] = SPECS) -> Edit:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return scale * torch.randn(*shape, generator=generator)

    return Edit(
        {
            s.name: DenseEdit(
                bias=draw(batch, s.out_features) if s.bias else None,
                weight=draw(batch, s.in_features, s.out_features),
            )
            for s in specs
        },
        HOST,
    )


def editor_for(module: nn.Module, names: tuple[str, ...] = ("0", "2"), **settings: object) -> ParameterEditor:
    layers = AdaptiveLayers(module, names)
    config = EditorConfig(context_dim=4, width=8, **settings)  # type: ignore[arg-type]
    return ParameterEditor(config, layers.specs, layers.weight_scales(), HOST)


def contexts(batch: int, length: int = 7, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random context embeddings of all lengths from 0 on."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.arange(batch) % (length + 1)
    return torch.randn(batch, length, 4, generator=generator), lengths
