"""The state of a training between two steps, in one safetensors file: what replicas of a module have alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from persona.storage import load_tensors, save_tensors

CHECKPOINT = "checkpoint.safetensors"
FORMAT = "checkpoint"


@dataclass(frozen=True)
class Checkpoint:
    """What was kept.

    Attributes:
        tensors: of several kinds, each by name; kinds are those that were saved, those without a tensor may be missing.
        header: plain values.
    """

    tensors: Mapping[str, Mapping[str, Tensor]]
    header: Mapping[str, Any]

    def of(self, kind: str) -> dict[str, Tensor]:
        """The tensors of a kind."""
        return dict(self.tensors.get(kind, {}))


def flatten(groups: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors named ``kind/name``."""
    return {f"{kind}/{name}": tensor for kind, named in groups.items() for name, tensor in named.items()}


def unflatten(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Inverse of ``flatten``."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition("/")
        groups.setdefault(kind, {})[rest] = tensor
    return groups


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write ``path``, which appears at once or not at all."""
    save_tensors(path, flatten(checkpoint.tensors), {"format": FORMAT, **checkpoint.header})


def load(path: Path) -> Checkpoint:
    """Read what ``save`` wrote.

    Raises:
        FormatError: the file is damaged.
    """
    tensors, header = load_tensors(path)
    return Checkpoint(unflatten(tensors), header)


def optimizer_tensors(optimizer: Any) -> dict[str, Tensor]:
    """The state of a torch optimizer as tensors named ``index/name``."""
    import torch

    state = optimizer.state_dict()["state"]
    return {f"{index}/{name}": torch.as_tensor(t) for index, own in state.items() for name, t in own.items()}


def restore_optimizer(optimizer: Any, tensors: Mapping[str, Tensor]) -> None:
    """Inverse of ``optimizer_tensors``, for an optimizer of the same parameters."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, rest = name.partition("/")
        state.setdefault(int(index), {})[rest] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def missing(names: Iterable[str], tensors: Mapping[str, Tensor]) -> list[str]:
    """Those of ``names`` that have no tensor."""
    return sorted(set(names) - tensors.keys())
