"""LAME: correct the host's beliefs so that similar images of a window get similar ones, without back-propagation.

Source: Boudiaf et al., "Parameter-free Online Test-time Adaptation", CVPR'22: the fixed point of

    z_i <- softmax(log p_i + sum_j w_ij z_j),

where w_ij is 1 if image j is among the k nearest neighbours of image i by the cosine of their features.
Shapes: n images of a window, m new ones, F features, K classes.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor
from torch.nn import functional

from vision.evaluation import Window
from vision.hosts import Host
from vision.methods.folds import choose
from vision.methods.problem import Problem, Trained

NEIGHBOURS = (1, 3, 5)
MAX_STEPS = 100
TOLERANCE = 1e-8
SMALLEST = 1e-10


class Lame:
    """The host with corrected beliefs; ``neighbours`` is k."""

    def __init__(self, host: Host, neighbours: int) -> None:
        self.host, self.neighbours = host, neighbours

    def start(self, device: int) -> None:
        """Nothing is remembered of a device."""

    @torch.no_grad()
    def predict(self, window: Window) -> Tensor:
        """Logarithms (m, K) of the corrected beliefs."""
        features = self.host.features(window.images) if window.features is None else window.features
        beliefs = self.host.classify(features).softmax(1)
        return corrected(beliefs, affinity(features, self.neighbours)).log()[-window.new :]


def affinity(features: Tensor, neighbours: int) -> Tensor:
    """(n, F) -> (n, n), 1 where the column is among the row's nearest neighbours."""
    unit = functional.normalize(features, dim=1)
    similarity = (unit @ unit.T).fill_diagonal_(float("-inf"))
    nearest = similarity.topk(min(neighbours, len(features) - 1), dim=1).indices
    return torch.zeros_like(similarity).scatter_(1, nearest, 1.0)


def corrected(beliefs: Tensor, weights: Tensor) -> Tensor:
    """The fixed point z (n, K) of beliefs p (n, K) under affinities w (n, n)."""
    unary = (beliefs + SMALLEST).log()
    z, before = beliefs, float("nan")
    for _ in range(MAX_STEPS):
        pairwise = weights @ z
        z = (unary + pairwise).softmax(1).clamp_min(SMALLEST)
        energy = float((z * (z.log() - unary - pairwise)).sum())
        if abs(energy - before) <= TOLERANCE * abs(before):
            break
        before = energy
    return z


def train_lame(problem: Problem) -> Trained:
    """The number of neighbours chosen on the validation devices."""
    host = problem.base_host()
    started = time.perf_counter()
    neighbours = choose(problem, NEIGHBOURS, Lame)
    return Trained(
        Lame(host, neighbours),
        forward_passes=problem.window_passes,
        chosen={"neighbours": neighbours},
        keeps_body=True,
        seconds=time.perf_counter() - started,
    )
