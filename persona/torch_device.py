"""Where torch computes: the setting ``device`` resolved in one place, and the way of tensors there and back.

Data, banks and whatever is written to disk stay on the CPU. A model lies where the setting says; batches follow it when they
are handed to it (``moved``), and what it answers comes back.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from persona.errors import ConfigError

CPU = torch.device("cpu")

T = TypeVar("T")
Net = TypeVar("Net", bound=nn.Module)


def resolve(name: str, hindrance: str = "") -> torch.device:
    """The device that a setting names.

    Args:
        name: ``auto`` (a graphics card where there is one that can be used, else the CPU), ``cpu``, ``cuda`` or ``cuda:1``.
        hindrance: why a card cannot be used for the work at hand, as a clause; empty where it can.

    Raises:
        ConfigError: a card is asked for that is not there or cannot be used.
    """
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and (hindrance or not cards)):
        return CPU
    if hindrance:
        raise ConfigError(f"device is {name}, but {hindrance}: give --device cpu")
    device = torch.device("cuda" if name == "auto" else name)
    if (device.index or 0) >= cards:
        found = f"only {cards} graphics card(s)" if cards else "no graphics card that it can use"
        raise ConfigError(f"device is {name}, but torch finds {found}: give --device cpu, or see `persona doctor`")
    _prepare()
    return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)


def _prepare() -> None:
    """Have cards repeat what they compute where they can, in full float32.

    Not every kernel has a form that repeats its bits: those that have none warn, where on the CPU they would be refused.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False


def device_of(model: object) -> torch.device:
    """Where a model lies: its host's device, or its own; the CPU for what knows of none."""
    device = getattr(getattr(model, "host", model), "device", CPU)
    return device if isinstance(device, torch.device) else CPU


def moved(value: T, device: torch.device) -> T:
    """``value``, which was made on the CPU, on ``device``: tensors, what has a ``to`` of its own, and records (frozen
    dataclasses) that hold them.

    Everything else, such as arrays of positions and objectives, stays what it is.
    """
    return value if device == CPU else _moved(value, device)


def is_record(value: Any) -> bool:
    """Whether ``value`` is of a frozen dataclass, as batches are and objectives are not."""
    return (
        is_dataclass(value) and not isinstance(value, type) and bool(vars(type(value))["__dataclass_params__"].frozen)
    )


def _moved(value: Any, device: torch.device) -> Any:
    if hasattr(value, "to"):
        return value.to(device)
    if isinstance(value, tuple):
        return tuple(_moved(part, device) for part in value)
    if isinstance(value, Mapping):
        return {name: _moved(part, device) for name, part in value.items()}
    if is_record(value):
        return type(value)(**{f.name: _moved(getattr(value, f.name), device) for f in fields(value)})
    return value


def on_cpu(module: Net) -> Net:
    """``module`` itself where it lies on the CPU, else a copy there."""
    there = next((tensor.device for tensor in (*module.parameters(), *module.buffers())), CPU)
    return module if there.type != "cuda" else copy.deepcopy(module).cpu()


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Matrix products and convolutions in ``precision`` inside the block: nothing changes with ``float32``."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def generators(device: torch.device) -> dict[str, Tensor]:
    """The states of torch's generators that a model on ``device`` draws from, on the CPU."""
    states = {"generator": torch.get_rng_state()}
    return states if device.type != "cuda" else states | {"generator_cuda": torch.cuda.get_rng_state(device)}


def set_generators(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Go on drawing where ``generators`` was called; a state of another kind of device is left out."""
    torch.set_rng_state(states["generator"])
    if device.type == "cuda" and "generator_cuda" in states:
        torch.cuda.set_rng_state(states["generator_cuda"], device)
