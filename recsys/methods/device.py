"""Fine-tuning on the device itself: a few gradient steps on its own recent events, anew for every refresh.

The device has what an editor would be given, its last T items, and nothing else: every item but the first is a target, and the
items before it are the history. Its adaptive layers take so many steps of gradient descent from the host's; the learning
rate is chosen on validation rows. All devices of a batch are tuned at once, as the gradient of one stacked edit.

Shapes: B devices, T context length, P = T - 1 targets a device, N negatives.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from persona.edits import DenseEdit, Edit, LayerSpec
from persona.training.objective import FitResult
from recsys.data.batches import Context, valid_positions
from recsys.hosts import Host
from recsys.methods.problem import Problem, Trained
from recsys.objectives import LossConfig, batch_loss
from recsys.personalised import Personalised

RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
BYTES = 0  # nothing travels
# Events (B x T) worked on at once: activations and edits of a block stay near 100 MB.
BLOCK = 1 << 11
REDRAWS = 8
# More negatives than this would be work for a server, and the activations of a block some gigabytes.
MOST_NEGATIVES = 32


class SharedByRows(DenseEdit):
    """A dense edit whose every device owns the same number of consecutive rows of the input."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(B R, ..., in) -> (B R, ..., out), the edit of device b on the rows b R .. b R + R - 1."""
        folded = x.reshape(self.batch_size, -1, x.shape[-1])
        return super().linear(folded, weight, bias).reshape(*x.shape[:-1], weight.shape[0])


class TunedOnDevice(Personalised):
    """A host whose adaptive layers every device tunes on its own context.

    Args:
        host: what the devices start from.
        loss: the loss and its number of negatives, of which at most ``MOST_NEGATIVES`` are taken.
        steps: of gradient descent.
        learning_rate: of gradient descent.
        seed: of the negatives.
    """

    def __init__(self, host: Host, loss: LossConfig, steps: int, learning_rate: float, seed: int) -> None:
        super().__init__(host)
        self.loss, self.steps, self.learning_rate, self.seed = loss, steps, learning_rate, seed
        self.negatives = min(loss.negatives, MOST_NEGATIVES)
        self.eval()

    def edit(self, context: Context) -> Edit:
        """The tuned layers minus the host's, for every row of a context; nothing changes below two items."""
        generator = torch.Generator().manual_seed(self.seed)
        size = max(1, BLOCK // context.items.shape[1])
        blocks = torch.split(torch.arange(len(context), device=context.items.device), size)
        return Edit.cat(self._tune(context.index_select(rows), generator) for rows in blocks)

    def _tune(self, context: Context, generator: torch.Generator) -> Edit:
        specs = self.host.adaptive.specs
        flat = Edit.zeros(specs, len(context)).flat().to(self.host.device)
        past, targets = _targets(context)
        counts = (targets > 0).sum(1)
        if not counts.any():
            return Edit.from_flat(flat, specs)
        state = self.host.encode(past)
        for _ in range(self.steps):
            negatives = _negatives(context, targets.shape[1], self.negatives, self.host.config.n_items, generator)
            candidates = torch.cat([targets.unsqueeze(2), negatives], dim=2).flatten(0, 1)
            valid = targets.flatten() > 0
            with torch.enable_grad():
                leaf = flat.detach().requires_grad_()
                logits = self.host.score(state, candidates, _shared(leaf, specs))[valid]
                loss = batch_loss(self.loss, logits[:, 0], logits[:, 1:], self.host.config.n_items)
                # The sum over rows: no device's gradient depends on how many others there are.
                [gradient] = torch.autograd.grad(loss * len(logits), leaf)
            flat = flat - self.learning_rate * gradient / counts.clamp_min(1).unsqueeze(1)
        return Edit.from_flat(flat, specs)


def finetune_device_1(problem: Problem) -> Trained:
    """One gradient step a refresh."""
    return _finetune_device(problem, 1)


def finetune_device_10(problem: Problem) -> Trained:
    """Ten gradient steps a refresh."""
    return _finetune_device(problem, 10)


def _finetune_device(problem: Problem, steps: int) -> Trained:
    host, config = problem.base_host(), problem.config
    started = time.perf_counter()
    values = {}
    for rate in RATES:
        model = TunedOnDevice(host, config.loss_config(), steps, rate, config.seed)
        values[rate] = problem.score(model)
    best = max(values, key=lambda rate: values[rate])
    model = TunedOnDevice(host, config.loss_config(), steps, best, config.seed)
    result = FitResult(best_value=values[best], seconds=time.perf_counter() - started)
    return Trained(model, BYTES, result, chosen={"learning_rate": best})


def _targets(context: Context) -> tuple[Context, Tensor]:
    """Contexts (B P, T) that end before each item but the first, and those items (B, P), 0 where there is none."""
    rows, length = context.items.shape
    ends = torch.arange(1, length, device=context.items.device).expand(rows, -1)
    targets = torch.where(ends < context.lengths.unsqueeze(1), context.items[:, 1:], 0)
    lengths = torch.where(targets > 0, ends, 0).flatten()
    items = context.items.repeat_interleave(length - 1, dim=0)
    return Context(torch.where(valid_positions(lengths, length), items, 0), lengths), targets


def _negatives(context: Context, targets: int, count: int, n_items: int, generator: torch.Generator) -> Tensor:
    """(B, P, N) uniform items; one that the device has just touched is drawn again, but not for ever."""
    shape = (len(context), targets * count)

    def draw() -> Tensor:
        return torch.randint(1, n_items + 1, shape, generator=generator).to(context.items.device)

    drawn = draw()
    for _ in range(REDRAWS):
        touched = (drawn.unsqueeze(2) == context.items.unsqueeze(1)).any(2)
        if not touched.any():
            break
        drawn = torch.where(touched, draw(), drawn)
    return drawn.view(len(context), targets, count)


def _shared(flat: Tensor, specs: tuple[LayerSpec, ...]) -> Edit:
    dense = Edit.from_flat(flat, specs).dense()
    return Edit(
        {name: SharedByRows(bias=layer.bias, weight=layer.dense().weight) for name, layer in dense.layers.items()}
    )
