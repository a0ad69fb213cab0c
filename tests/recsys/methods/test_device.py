from dataclasses import replace

import pytest
import torch

from persona.edits import Edit
from recsys.data.batches import Context
from recsys.methods import Problem
from recsys.methods import device as tuning
from recsys.methods.device import TunedOnDevice
from recsys.objectives import LossConfig
from tests.recsys.toy import ITEMS, SMALL, personalised, walks

HISTORIES = [[3, 4, 5, 6, 7], [9, 11, 13], [2], [], [20, 25, 30, 5, 10]]


@pytest.fixture
def context():
    return Context.from_lists(HISTORIES, 5)


def tuned(kind="gru4rec", steps=1, rate=0.1, loss="bce"):
    return TunedOnDevice(personalised(kind, editor=False).host, LossConfig(loss, negatives=3), steps, rate, seed=0)


@pytest.mark.parametrize("kind", ["gru4rec", "sasrec", "din"])
def test_a_step_is_the_gradient_of_the_devices_own_mean_loss(kind, context, monkeypatch):
    """The oracle trains a copy of the host for one device by itself, with an ordinary backward pass."""
    monkeypatch.setattr(tuning, "_negatives", fixed_negatives)
    model = tuned(kind)
    found = model.edit(context)
    for row, history in enumerate(HISTORIES):
        host = personalised(kind, editor=False).host
        start = [p.detach().clone() for p in host.adaptive_parameters()]
        losses = []
        for end in range(1, len(history)):
            past = Context.from_lists([history[:end]], 5)
            logits = host.score(host.encode(past), torch.tensor([[history[end], 1, 8, 12]]))
            target = torch.tensor([[1.0, 0, 0, 0]])
            losses.append(torch.nn.functional.binary_cross_entropy_with_logits(logits, target))
        if losses:
            torch.stack(losses).mean().backward()
        for old, layer in zip(start, host.adaptive_parameters(), strict=True):
            with torch.no_grad():
                layer.sub_(0.0 if layer.grad is None else 0.1 * layer.grad)
            layer.grad = None
            assert layer.shape == old.shape
        expected = Edit.from_flat(flat_change(host, start), host.adaptive.specs)
        torch.testing.assert_close(found[row].flat(), expected.flat(), atol=1e-6, rtol=1e-4)
    assert (found.norm()[[2, 3]] == 0).all(), "without a target nothing is learned"
    assert (found.norm()[[0, 1, 4]] > 0).all()


def fixed_negatives(context, targets, count, n_items, generator):
    return torch.tensor([1, 8, 12]).expand(len(context), targets, 3)


def flat_change(host, start):
    parts = []
    for old, new in zip(start, host.adaptive_parameters(), strict=True):
        change = (new - old).detach()
        parts.append(change.T.flatten() if change.ndim == 2 else change)
    return torch.cat(parts)[None]


def test_a_device_does_not_depend_on_the_others_of_its_batch(context, monkeypatch):
    monkeypatch.setattr(tuning, "_negatives", fixed_negatives)
    whole = tuned(steps=3).edit(context).flat()
    for row in range(len(context)):
        alone = tuned(steps=3).edit(context.index_select(torch.tensor([row]))).flat()
        torch.testing.assert_close(alone[0], whole[row], atol=1e-6, rtol=1e-4)
    monkeypatch.setattr(tuning, "BLOCK", 10)  # two devices at a time
    torch.testing.assert_close(tuned(steps=3).edit(context).flat(), whole, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("loss", ["bce", "sampled_softmax", "gbce"])
def test_more_steps_fit_the_devices_own_events_better(loss, context):
    def own_margin(steps):
        model = tuned(steps=steps, rate=0.3, loss=loss)
        edit = model.edit(context)[0]
        past = Context.from_lists([HISTORIES[0][:-1]], 5)
        scores = model.host.score(model.host.encode(past), torch.arange(1, ITEMS + 1)[None], edit)[0]
        return float(scores[HISTORIES[0][-1] - 1] - scores.mean())

    assert own_margin(0) < own_margin(60)


def test_the_host_is_left_alone_and_gradients_are_not_kept(context):
    model = tuned(steps=2)
    before = {name: tensor.clone() for name, tensor in model.host.state_dict().items()}
    with torch.no_grad():
        edit = model.edit(context)
    assert not edit.flat().requires_grad
    assert all(torch.equal(before[name], tensor) for name, tensor in model.host.state_dict().items())
    assert all(p.grad is None for p in model.host.parameters())
    torch.testing.assert_close(model.edit(context).flat(), edit.flat(), rtol=0, atol=0)


def test_negatives_are_items_that_the_device_has_not_just_touched(context):
    generator = torch.Generator().manual_seed(0)
    drawn = tuning._negatives(context, 4, 50, ITEMS, generator)
    assert drawn.shape == (5, 4, 50)
    assert (drawn.min(), drawn.max()) == (1, ITEMS)
    for row, history in enumerate(HISTORIES):
        assert not set(drawn[row].flatten().tolist()) & set(history)


def test_the_learning_rate_is_chosen_on_validation_rows(monkeypatch):
    monkeypatch.setattr(tuning, "RATES", (0.1, 50.0))
    problem = Problem(walks(), replace(SMALL, epochs=1))
    trained = tuning.finetune_device_1(problem)
    values = {}
    for rate in (0.1, 50.0):
        model = TunedOnDevice(problem.base_host(), SMALL.loss_config(), 1, rate, SMALL.seed)
        values[rate] = problem.validation.run(model).summary["uauc"]
    assert values[0.1] != values[50.0]
    assert trained.chosen == {"learning_rate": max(values, key=lambda rate: values[rate])}
    assert trained.result.best_value == max(values.values())
    assert "test" not in vars(problem)
