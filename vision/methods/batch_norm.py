"""BN statistics: normalise by the device's own images, mixed with the running statistics.

Source: Schneider et al., "Improving robustness against common corruptions by covariate shift adaptation", NeurIPS'20: the
running statistics weigh as much as N images.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from vision.evaluation import Window
from vision.features import FeatureCache
from vision.hosts import Host
from vision.hosts.norms import own_statistics
from vision.methods.folds import choose
from vision.methods.problem import Problem, Trained

PRIORS = (1.0, 16.0, 64.0, 256.0)
# Where the body is given, all images pass it once a prior: a single one, Schneider et al.'s for small windows.
GIVEN_PRIORS = (16.0,)


class BatchNorm:
    """The host with statistics of the window.

    Args:
        host: the host.
        prior: N.
        known: features of all images under the statistics of their windows, where they are known already.
    """

    def __init__(self, host: Host, prior: float, known: FeatureCache | None = None) -> None:
        self.host, self.prior, self.known = host, prior, known

    def start(self, device: int) -> None:
        """Nothing is remembered of a device."""

    @torch.no_grad()
    def predict(self, window: Window) -> Tensor:
        """Logits (m, K)."""
        if self.known is not None:
            return self.host.classify(self.known[window.positions[-window.new :]].to(self.host.device))
        with own_statistics(self.prior):
            logits: Tensor = self.host(window.images)
        return logits[-window.new :]


def train_batch_norm(problem: Problem) -> Trained:
    """N chosen on the validation devices. Where the body is given, its features are computed once a prior."""
    started = time.perf_counter()

    def make(host: Host, prior: float) -> BatchNorm:
        return BatchNorm(host, prior, problem.features_under(prior) if problem.given_body else None)

    prior = choose(problem, GIVEN_PRIORS if problem.given_body else PRIORS, make)
    return Trained(
        make(problem.base_host(), prior),
        forward_passes=problem.window_passes,
        chosen={"prior": prior},
        seconds=time.perf_counter() - started,
    )
