"""Tent: minimise the entropy of predictions by back-propagation into the affine parameters of the norms.

Source: Wang et al., "Tent: Fully Test-Time Adaptation by Entropy Minimization", ICLR'21: one step of Adam a window, whose
logits are those of the pass before the step; normalised by the window's statistics, here mixed with the running ones as in
``batch_norm`` for small windows. A device starts from the host.
"""

from __future__ import annotations

import copy
import time
from itertools import product

import torch
from torch import Tensor

from vision.evaluation import Window
from vision.hosts import Host
from vision.hosts.norms import own_statistics
from vision.methods.folds import choose
from vision.methods.problem import Problem, Trained

RATES = (1e-4, 1e-3)
PRIORS = (16.0, 64.0, 256.0)


class Tent:
    """The host, adapted anew to every device.

    Args:
        host: where every device starts; left as it is.
        rate: of Adam.
        prior: how many images the running statistics weigh.
    """

    def __init__(self, host: Host, rate: float, prior: float) -> None:
        self.host, self.rate, self.prior = copy.deepcopy(host).eval().requires_grad_(False), rate, prior
        self.initial = copy.deepcopy(self.host.norms.state_dict())
        self.host.norms.requires_grad_(True)
        self.start(-1)

    def start(self, device: int) -> None:
        """Back to the host, with a fresh optimiser."""
        self.host.norms.load_state_dict(self.initial)
        self.optimizer = torch.optim.Adam(self.host.norms.parameters(), lr=self.rate)

    @torch.enable_grad()
    def predict(self, window: Window) -> Tensor:
        """Logits (m, K), then one step on the whole window."""
        with own_statistics(self.prior):
            logits: Tensor = self.host(window.images)
        entropy = -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()
        self.optimizer.zero_grad()
        entropy.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return logits.detach()[-window.new :]


def train_tent(problem: Problem) -> Trained:
    """Rate and statistics chosen on the validation devices."""
    host = problem.base_host()
    started = time.perf_counter()
    rate, prior = choose(problem, product(RATES, PRIORS), lambda host, choice: Tent(host, *choice))
    return Trained(
        Tent(host, rate, prior),
        forward_passes=problem.window_passes,
        backward_passes=problem.window_passes,
        chosen={"rate": rate, "prior": prior},
        seconds=time.perf_counter() - started,
    )
