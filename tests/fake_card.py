"""A graphics card that is not there: torch's fake tensors know devices and shapes, and refuse to mix devices, without values.

Torch knows the card for as long as a process lives, and counts on it then, so tests of it run in processes of their own
(``tests/test_fake_card.py``) and are skipped elsewhere.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses import FakeTensorMode
from torch.utils import backend_registration
from torchrec import KeyedJaggedTensor

from persona.torch_device import is_record
from recsys.data.batches import Batch

# Not CUDA by name: gradients would ask for a driver. Registered on import, for autograd counts devices once, at its first use.
WANTED = "PERSONA_FAKE_CARD"
if WANTED in os.environ:
    backend_registration._setup_privateuseone_for_python_backend("card")
CARD = torch.device("card", 0) if WANTED in os.environ else torch.device("meta")


class FakeCard:
    """Modules that lie on the card, and batches that lie on the CPU, none of them with values."""

    def __init__(self, mode: FakeTensorMode) -> None:
        self.mode = mode

    def holds(self, module: nn.Module) -> nn.Module:
        """``module`` with all parameters and buffers on the card."""
        for child in module.modules():
            for name, parameter in list(child.named_parameters(recurse=False)):
                empty = torch.empty(parameter.shape, dtype=parameter.dtype, device=CARD)
                setattr(child, name, nn.Parameter(empty, parameter.requires_grad))
            for name, buffer in list(child.named_buffers(recurse=False)):
                setattr(child, name, torch.empty(buffer.shape, dtype=buffer.dtype, device=CARD))
        return module

    def fake(self, value: Any) -> Any:
        """A batch without values, on the CPU as before."""
        if isinstance(value, Tensor):
            return self.mode.from_tensor(value)
        if isinstance(value, Batch):
            jagged = value.features
            return Batch._carrying(
                self.fake(value.context),
                self.fake(value.candidates),
                KeyedJaggedTensor(
                    keys=jagged.keys(),
                    values=self.fake(jagged.values()),
                    lengths=self.fake(jagged.lengths()),
                    stride=jagged.stride(),
                    length_per_key=jagged.length_per_key(),
                    offset_per_key=jagged.offset_per_key(),
                ),
            )
        if isinstance(value, tuple):
            return tuple(map(self.fake, value))
        if is_record(value):
            return type(value)(**{f.name: self.fake(getattr(value, f.name)) for f in fields(value)})
        return value


@contextmanager
def fake_card() -> Iterator[FakeCard]:
    """Within this block torch computes without values; a tensor with values that takes part fails it."""
    if WANTED not in os.environ:
        pytest.skip("a card that is not there needs a process of its own: tests/test_fake_card.py")
    with FakeTensorMode(allow_non_fake_inputs=False) as mode, enable_python_dispatcher():
        yield FakeCard(mode)
