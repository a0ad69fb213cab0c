"""T3A: classify by prototypes of the classes that grow with what the device sees, without back-propagation.

Source: Iwasawa and Matsuo, "Test-Time Classifier Adjustment Module for Model-Agnostic Domain Generalization", NeurIPS'21,
algorithm 1. Letters: D the width of the last layer's input, K classes, S supports, m new images.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn
from torch.nn import functional

from vision.evaluation import Window
from vision.hosts import Host
from vision.methods.folds import choose
from vision.methods.problem import Problem, Trained

# M, the supports of a class that are kept, those of lowest entropy; 0 keeps all.
SUPPORTS = (1, 5, 20, 50, 0)


class T3A:
    """The host with its last layer replaced by the normalised sum of each class's supports."""

    def __init__(self, host: Host, keep: int) -> None:
        last = host.head[-1]
        assert isinstance(last, nn.Linear)
        self.host, self.keep, self.last = host, keep, last
        self.start(-1)

    @torch.no_grad()
    def start(self, device: int) -> None:
        """The last layer's own weights are the first supports."""
        weight = self.last.weight
        self.supports = weight.new_empty(0, self.last.in_features)
        self.labels = weight.new_empty(0, dtype=torch.int64)
        self.entropy = weight.new_empty(0)
        self._add(self.last.weight)

    @torch.no_grad()
    def predict(self, window: Window) -> Tensor:
        """Logits (m, K) after the new images have become supports."""
        known = window.features
        features = self.host.features(window.images[-window.new :]) if known is None else known[-window.new :]
        z: Tensor = self.host.head[:-1](features)
        self._add(z)
        return z @ self._prototypes().T

    def _add(self, z: Tensor) -> None:
        """Take features (m, D) as supports of the classes that the host puts them into."""
        logits = self.last(z)
        entropy = -(logits.softmax(1) * logits.log_softmax(1)).sum(1)
        self.supports = torch.cat([self.supports, functional.normalize(z, dim=1)])
        self.labels = torch.cat([self.labels, logits.argmax(1)])
        self.entropy = torch.cat([self.entropy, entropy])

    def _prototypes(self) -> Tensor:
        """(K, D) of length 1; zero for a class without supports."""
        sums = torch.zeros_like(self.last.weight)
        for label in range(self.last.out_features):
            own = torch.nonzero(self.labels == label)[:, 0]
            if self.keep:
                own = own[self.entropy[own].argsort(stable=True)[: self.keep]]
            sums[label] = self.supports[own].sum(0)
        return functional.normalize(sums, dim=1)


def train_t3a(problem: Problem) -> Trained:
    """M chosen on the validation devices."""
    host = problem.base_host()
    started = time.perf_counter()
    keep = choose(problem, SUPPORTS, T3A)
    seconds = time.perf_counter() - started
    return Trained(T3A(host, keep), chosen={"supports": keep}, seconds=seconds, keeps_body=True)
