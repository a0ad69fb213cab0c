"""A trainable prototype is the prototype, with gradients."""

import pytest
import torch

from persona.prototypes.trainable import TrainablePrototype
from tests.persona.prototypes.world import HEADS, partition


def trainable(head: str, index: int = 1) -> TrainablePrototype:
    bank = partition(head).bank
    return TrainablePrototype(bank.prototypes[index], bank.bound, bank.weight_scales)


@pytest.mark.parametrize("head", HEADS)
def test_it_starts_as_the_prototype(head):
    bank, module = partition(head).bank, trainable(head)
    assert torch.allclose(module().flat(), bank.prototype(1).dense().flat(), atol=1e-6)
    assert torch.allclose(module.unbounded().flat(), bank.prototypes[1].flat(), atol=1e-6)
    assert (module.unbounded().specs, module.unbounded().host) == (bank.prototypes.specs, bank.host)


@pytest.mark.parametrize("head", HEADS)
def test_every_number_of_it_learns_and_the_bank_does_not_change(head):
    bank, module = partition(head).bank, trainable(head)
    before = bank.prototypes.flat().clone()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module().flat().square().sum().backward()
    assert module.flat.grad is not None
    assert bool((module.flat.grad[module.flat.abs() > 1e-3] != 0).all())
    optimizer.step()
    assert float(module().detach().norm()) < float(bank.prototype(1).norm())
    assert torch.equal(bank.prototypes.flat(), before)
