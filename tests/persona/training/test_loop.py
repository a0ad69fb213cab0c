import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from persona.errors import ConfigError, MismatchError
from persona.training import checkpoints
from persona.training.checkpoints import CHECKPOINT
from persona.training.loop import fit
from persona.training.objective import FitConfig


class Regression:
    """y = 2x learned by a module with dropout, so that every source of randomness takes part."""

    monitor = "score"

    def __init__(self, module, seed=0, values=None):
        self.module, self.seed, self.values = module, seed, values

    def batches(self, epoch):
        generator = torch.Generator().manual_seed(self.seed * 1000 + epoch)
        for _ in range(4):
            yield torch.randn(16, 3, generator=generator)

    def loss(self, batch):
        return (self.module(batch) - 2 * batch).square().mean()

    def validate(self):
        if self.values is not None:
            return {"score": self.values.pop(0)}
        x = torch.linspace(-1, 1, 12).reshape(4, 3)
        return {"score": -float((self.module(x) - 2 * x).square().mean())}


def module(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.2), nn.Linear(8, 3))


def train(folder=None, epochs=6, **kwargs):
    net = module()
    result = fit(net, net.parameters(), Regression(net), FitConfig(epochs=epochs, **kwargs), folder=folder)
    return net, result


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_training_is_deterministic_and_learns():
    (a, first), (b, second) = train(), train()
    assert same(a, b)
    assert first == second
    assert first.history[-1]["loss"] < first.history[0]["loss"]
    assert not same(a, train(seed=1)[0])


def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
    whole, expected = train()
    _, half = train(tmp_path, epochs=2)
    seen = []
    net = module(seed=9)  # whatever it starts from, the checkpoint counts
    result = fit(net, net.parameters(), Regression(net), FitConfig(epochs=6), folder=tmp_path, on_epoch=seen.append)
    assert same(net, whole)
    assert result == expected
    assert seen == expected.history
    assert result.seconds > half.seconds > 0, "the time before the resume counts"


def test_a_killed_run_resumes_to_the_same_bits(tmp_path):
    script = (
        "import os, signal, sys; sys.path.insert(0, os.getcwd())\n"
        "from tests.persona.training.test_loop import *\n"
        "net = module()\n"
        "def stop(m):\n"
        "    if m['epoch'] == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"fit(net, net.parameters(), Regression(net), FitConfig(epochs=6), folder={str(tmp_path)!r}, on_epoch=stop)\n"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, env=os.environ, check=False)
    assert done.returncode == -signal.SIGKILL
    whole, expected = train()
    resumed, result = train(tmp_path)
    assert same(resumed, whole)
    assert result == expected


@pytest.mark.parametrize("killed", [1, 2, 3, 5, 7, 8, 9])
def test_checkpoints_between_epochs_lose_no_more_than_the_steps_since(tmp_path, killed):
    """Four steps an epoch, a checkpoint every two of them."""

    class Killed(Regression):
        steps = 0

        def loss(self, batch):
            if self.steps == killed:
                raise KeyboardInterrupt
            self.steps += 1
            return super().loss(batch)

    config = FitConfig(epochs=3, checkpoint_steps=2)
    whole, expected = train(epochs=3)
    net = module()
    with pytest.raises(KeyboardInterrupt):
        fit(net, net.parameters(), Killed(net), config, folder=tmp_path)
    net, steps = module(), []
    objective = Regression(net)
    loss = objective.loss
    objective.loss = lambda batch: steps.append(1) or loss(batch)
    result = fit(net, net.parameters(), objective, config, folder=tmp_path)
    assert same(net, whole)
    assert result == expected
    assert len(steps) == 12 - killed // 2 * 2


def test_the_start_that_competes_survives_a_kill(tmp_path):
    class Killed(Regression):
        def loss(self, batch):
            raise KeyboardInterrupt

    net = module()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(KeyboardInterrupt):
        fit(net, net.parameters(), Killed(net, values=[0.9]), FitConfig(), folder=tmp_path, keep_start=True)
    net = module(seed=9)
    worse = Regression(net, values=[0.1] * 5)
    result = fit(net, net.parameters(), worse, FitConfig(epochs=5), folder=tmp_path, keep_start=True)
    assert result.best_epoch == -1
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_a_checkpoint_about_something_else_is_refused(tmp_path):
    net = module()
    fit(net, net.parameters(), Regression(net), FitConfig(epochs=1), folder=tmp_path, about={"data": "a"})
    with pytest.raises(MismatchError, match=r"other settings or data \(data a there, b now"):
        fit(net, net.parameters(), Regression(net), FitConfig(epochs=1), folder=tmp_path, about={"data": "b"})


def test_a_checkpoint_without_what_is_trained_is_refused(tmp_path):
    net = module()
    fit(net, net[0].parameters(), Regression(net), FitConfig(epochs=1), folder=tmp_path)
    path = tmp_path / CHECKPOINT
    stored = checkpoints.load(path)
    kept = {name: tensor for name, tensor in stored.of("module").items() if not name.startswith("0.")}
    checkpoints.save(path, checkpoints.Checkpoint({**stored.tensors, "module": kept}, stored.header))
    with pytest.raises(MismatchError, match=r"has no '0\.bias', which is to be trained"):
        fit(net, net[0].parameters(), Regression(net), FitConfig(epochs=2), folder=tmp_path)


def test_the_best_epoch_is_kept_and_patience_ends_the_run():
    net = module()
    values = [0.1, 0.5, 0.4, math.nan, 0.3, 0.9]
    states = []
    result = fit(
        net,
        net.parameters(),
        Regression(net, values=values),
        FitConfig(epochs=6, patience=3),
        on_epoch=lambda m: states.append({k: v.clone() for k, v in net.state_dict().items()}),
    )
    assert result.best_epoch == 1
    assert result.best_value == 0.5
    assert result.epochs == 5
    assert all(torch.equal(v, states[1][k]) for k, v in net.state_dict().items())
    assert not net.training


def test_patience_is_not_counted_before_min_epochs():
    net = module()
    values = [0.5, 0.4, 0.3, 0.2, 0.6, 0.1, 0.1]
    config = FitConfig(epochs=7, patience=2, min_epochs=4)
    assert fit(net, net.parameters(), Regression(net, values=values), config).best_epoch == 4


@pytest.mark.parametrize(
    ("values", "reference", "best", "epochs"),
    [
        ([0.3, 0.2, 0.2, 0.2, 0.6, 0.5, 0.5, 0.9], 0.4, 4, 7),  # beaten in epoch 4, then two epochs of patience
        ([0.3, 0.2, 0.2, 0.2, 0.6, 0.5, 0.5, 0.9], None, 0, 3),
        ([0.4, 0.4, 0.3, 0.2, 0.1, 0.1, 0.1, 0.1], 0.4, 0, 8),  # no better than the rival: all epochs
        ([0.5, 0.2, 0.2, 0.2, 0.6, 0.5, 0.5, 0.9], 0.4, 0, 3),
    ],
)
def test_patience_counts_from_where_the_rival_is_beaten(values, reference, best, epochs):
    net = module()
    objective = Regression(net, values=list(values))
    objective.reference = reference
    result = fit(net, net.parameters(), objective, FitConfig(epochs=8, patience=2))
    assert (result.best_epoch, result.epochs) == (best, epochs)


def test_what_starts_from_a_trained_module_has_no_rival_to_wait_for():
    net = module()
    objective = Regression(net, values=[0.3, 0.2, 0.2, 0.9])
    objective.reference = 0.4
    result = fit(net, net.parameters(), objective, FitConfig(epochs=8, patience=2), keep_start=True)
    assert (result.best_epoch, result.epochs) == (-1, 2)


def test_the_start_competes_when_asked():
    net = module()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    objective = Regression(net, values=[0.9, 0.1, 0.2, 0.3])
    result = fit(net, net.parameters(), objective, FitConfig(epochs=3), keep_start=True)
    assert result.best_epoch == -1
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_only_the_chosen_parameters_move():
    net = module()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    fit(net, net[2].parameters(), Regression(net), FitConfig(epochs=2))
    assert all(torch.equal(v, before[k]) == k.startswith("0.") for k, v in net.state_dict().items())
    assert all(p.requires_grad for p in net.parameters())


def test_other_settings_do_not_resume(tmp_path):
    train(tmp_path, epochs=1)
    with pytest.raises(MismatchError, match=r"learning_rate 0\.001 there, 0\.1 now"):
        train(tmp_path, learning_rate=0.1)
    assert (tmp_path / CHECKPOINT).exists()


def test_a_loss_that_explodes_is_named():
    class Explosive(Regression):
        def loss(self, batch):
            return super().loss(batch) * math.inf

    net = module()
    with pytest.raises(ConfigError, match="learning rate"):
        fit(net, net.parameters(), Explosive(net), FitConfig(epochs=1))


def test_no_rows_is_an_error():
    class Empty(Regression):
        def batches(self, epoch):
            return []

    net = module()
    with pytest.raises(ConfigError, match="not a single training row"):
        fit(net, net.parameters(), Empty(net), FitConfig(epochs=1))


@pytest.mark.parametrize("settings", [{"epochs": 0}, {"learning_rate": -1.0}, {"seed": -1}, {"clip": 0.0}])
def test_settings_out_of_range(settings):
    with pytest.raises(ConfigError):
        FitConfig(**settings)
