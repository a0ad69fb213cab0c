"""What hosts of both tasks keep, written once: each task's test module gives its hosts, their inputs, and how they are asked.

Shapes: B devices; an edit has batch B, or 1 for all.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from persona.edits import Edit


def cases(known: Sequence[tuple[str, ...]]) -> Any:
    """A fixture that gives every case of a task's hosts."""

    @pytest.fixture(params=known, ids="-".join)
    def case(request) -> tuple[str, ...]:
        return request.param

    return case


class HostContract:
    """Tests of a host of every ``case``; the fixtures ``case`` and ``host`` are those of the module.

    A task gives ``devices`` B; ``close``, tolerances, as products of other shapes add in another order; ``moved``, by how much a
    random edit moves every device's outputs at least; ``rate`` of learning and ``steps`` after which every tensor has moved;
    ``make(*case, seed)`` and ``edit(host, batch, seed=)``, a host of its own and a random edit; ``answer(host, edit, rows)``, the
    outputs (B, ...) for fixed inputs, of all or some devices; ``loss(host, step)``; ``device_inputs()``, those of one device,
    several times, and ``device_outputs(host, inputs, edit)``. Where not ``everywhere``, a gradient reaches some layers alone.
    """

    everywhere = True

    def test_a_zero_edit_is_no_edit_bit_for_bit(self, host):
        for batch in (1, self.devices):
            assert torch.equal(self.answer(host, Edit.zeros(host.adaptive.specs, batch)), self.answer(host))

    def test_batched_edits_equal_single_edits(self, host):
        edit = self.edit(host, self.devices)
        batched = self.answer(host, edit)
        assert (batched - self.answer(host)).abs().flatten(1).amax(dim=1).min() > self.moved
        for i in range(self.devices):
            alone = self.answer(host, edit[i], rows=slice(i, i + 1))
            torch.testing.assert_close(batched[i : i + 1], alone, **self.close)

    def test_an_edit_equals_changed_weights(self, host):
        edit, changed = self.edit(host, 1), copy.deepcopy(host)
        for name, layer in changed.adaptive.layers.items():
            change = edit.layers[name].dense()
            layer.weight.data += change.weight[0].T
            if change.bias is not None:
                layer.bias.data += change.bias[0]
        assert not torch.equal(self.answer(changed), self.answer(host))
        torch.testing.assert_close(self.answer(host, edit), self.answer(changed), **self.close)

    def test_shared_and_adaptive_parameters_are_all_parameters(self, host):
        shared, adaptive = ({id(p) for p in part} for part in (host.shared_parameters(), host.adaptive_parameters()))
        assert not shared & adaptive
        assert shared | adaptive == {id(p) for p in host.parameters()}
        assert len(adaptive) == sum(1 + spec.bias for spec in host.adaptive.specs)

    def test_the_gradient_reaches_an_edit(self, host):
        flat = torch.zeros(self.devices, sum(s.parameters for s in host.adaptive.specs), requires_grad=True)
        self.answer(host, Edit.from_flat(flat, host.adaptive.specs)).square().sum().backward()
        host.zero_grad()
        assert (flat.grad.abs().sum(dim=1) > 0).all()
        for name, layer in Edit.from_flat(flat.grad, host.adaptive.specs).layers.items():
            reached = layer.dense().weight.abs().amax(dim=(1, 2)) > 0
            assert reached.all() if self.everywhere else reached.any(), name

    def test_every_parameter_learns(self, case):
        host = self.make(*case).train()
        before = copy.deepcopy(host.state_dict())
        optimiser = torch.optim.Adam(host.parameters(), self.rate)
        for step in range(self.steps):
            optimiser.zero_grad()
            self.loss(host, step).backward()
            assert [name for name, p in host.named_parameters() if p.grad is None] == []
            optimiser.step()
        assert [name for name, tensor in host.state_dict().items() if torch.equal(tensor, before[name])] == []

    def test_a_seed_determines_the_host_and_a_state_dict_carries_it(self, case):
        first, again, other = self.make(*case), self.make(*case), self.make(*case, seed=1)
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
        assert not torch.equal(self.answer(first), self.answer(other))
        other.load_state_dict(first.state_dict())
        assert torch.equal(self.answer(other), self.answer(first))

    @pytest.mark.filterwarnings("ignore:The tensor attributes")  # torch.nn.GRU renews its list of weights
    def test_a_device_model_exports(self, host):
        outputs = self.device_outputs

        class Device(nn.Module):
            """One device: its inputs and its edit in, outputs out."""

            def __init__(self) -> None:
                super().__init__()
                self.host = host

            def forward(self, flat: Tensor, *inputs: Tensor) -> Tensor:
                return outputs(self.host, inputs, Edit.from_flat(flat, self.host.adaptive.specs))

        device = Device()
        given = [(self.edit(host, 1, seed=seed).flat(), *inputs) for seed, inputs in enumerate(self.device_inputs())]
        with torch.no_grad():
            exported = torch.export.export(device, given[0]).module()
            for arguments in given:
                torch.testing.assert_close(exported(*arguments), device(*arguments), **self.close)
