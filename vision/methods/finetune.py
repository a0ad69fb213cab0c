"""Fine-tuning: for everybody on the editor's devices, or for each device on its own labels as an upper bound."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from persona.methods import adaptive_bytes, all_bytes
from persona.training.objective import FitResult
from vision.data.images import DeviceImages
from vision.evaluation import Evaluation, Window
from vision.features import FeatureCache
from vision.hosts import Host
from vision.methods.folds import Fold, choose, finetuned, population_folds
from vision.methods.problem import Problem, Trained
from vision.personalised import Personalised

FOLDS = 5
STEPS = 10
# At most half way: further on, a population that is like the host's own is harmed.
SHARES = (0.0, 0.25, 0.5)
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)


def finetune_all(problem: Problem) -> Trained:
    """Every parameter of the host, the same for every device, on all devices that host and editor of ``persona_joint`` learn from."""
    model = Personalised(problem.base_host())
    started = time.perf_counter()
    result = problem.train("finetune_everything", model, model.parameters(), problem.everything, keep_start=True)
    return Trained(model, all_bytes(model.host), result=result, seconds=time.perf_counter() - started)


def finetune_adaptive(problem: Problem) -> Trained:
    """The adaptive layers alone, the same for every device, on the devices that the editor learns from."""
    started = time.perf_counter()
    host, result = finetuned(problem, "finetune_adaptive", problem.base_host(), problem.split.adapt)
    return _same_for_all(host, result, time.perf_counter() - started)


def finetune_interpolated(problem: Problem) -> Trained:
    """Between the host and its fine-tuned adaptive layers, which know more shifts but the host's populations less well.

    How far to go is chosen on populations that neither has seen, where the one at test is unknown, else on validation devices.
    Source: Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR'22.
    """
    started = time.perf_counter()
    host = problem.base_host()
    tuned, result = finetuned(problem, "finetune_adaptive", problem.base_host(), problem.split.adapt)

    def between(start: Host, end: Host) -> Callable[[float], Personalised]:
        return lambda share: Personalised(interpolated(start, end, share))

    judged = [(between(fold.host, own), problem.evaluation(fold.devices)) for fold, own in tuned_folds(problem)]
    share = preferred(problem, SHARES, judged or [(between(host, tuned), problem.validation)])
    trained = _same_for_all(interpolated(host, tuned, share), result, time.perf_counter() - started)
    trained.chosen = {"share": share}
    return trained


def tuned_folds(problem: Problem) -> Iterator[tuple[Fold, Host]]:
    """Every population left out, and the host that has not seen it with its adaptive layers fine-tuned on the others."""
    for fold in population_folds(problem):
        name = f"finetune_adaptive_without_{fold.name}"
        yield fold, finetuned(problem, name, copy.deepcopy(fold.host), fold.rest(problem.split.adapt), fold.others)[0]


def interpolated(host: Host, tuned: Host, share: float) -> Host:
    """A host whose adaptive layers lie ``share`` of the way from those of ``host`` to those of ``tuned``."""
    between = copy.deepcopy(host)
    with torch.no_grad():
        for own, other in zip(between.adaptive_parameters(), tuned.adaptive_parameters(), strict=True):
            own.lerp_(other, share)
    return between.eval()


def preferred(
    problem: Problem, shares: Iterable[float], judged: Sequence[tuple[Callable[[float], Personalised], Evaluation]]
) -> float:
    """The share whose models, one an evaluation, are best in the mean of the validation metric; the first of equals."""
    return max(shares, key=lambda share: float(np.mean([problem.score(make(share), e) for make, e in judged])))


def _same_for_all(host: Host, result: FitResult, seconds: float) -> Trained:
    model = Personalised(host, fixed_host=True).eval()
    return Trained(model, adaptive_bytes(host), result=result, seconds=seconds, keeps_body=host.shared_features)


class DeviceFinetuning:
    """An upper bound that no device can reach by itself: it learns from labels.

    It is given the windows that all methods are given, with their labels. Each image is classified by a copy of the host whose
    adaptive layers took ``STEPS`` steps of Adam on the other folds of its window.

    Args:
        host: where every copy starts.
        data: images and labels.
        rate: of Adam.
        known: features of the host, where edits leave them as they are.
    """

    def __init__(self, host: Host, data: DeviceImages, rate: float, known: FeatureCache | None = None) -> None:
        self.host, self.data, self.rate, self.known = host, data, rate, known

    def start(self, device: int) -> None:
        """Nothing is remembered of a device: every window starts at the host."""

    def predict(self, window: Window) -> Tensor:
        """Logits (m, K), each from a copy that has not seen the image's label."""
        positions, new = window.positions, window.new
        # At random: where images come class after class, every fold would leave out whole classes.
        fold = np.random.default_rng([71, *positions[:1].tolist()]).permutation(len(positions)) % FOLDS
        parts = []
        for k in np.unique(fold[-new:]):
            own = np.flatnonzero(fold == k)
            own = own[own >= len(positions) - new]
            tuned = self._tuned(positions[fold != k])
            with torch.no_grad():
                parts.append((own, self._logits(tuned, positions[own])))
        order = np.argsort(np.concatenate([own for own, _ in parts]))
        return torch.cat([logits for _, logits in parts])[torch.from_numpy(order)]

    def _tuned(self, positions: NDArray[np.int64]) -> Host:
        tuned = copy.deepcopy(self.host).eval()
        if not len(positions):
            return tuned
        labels = self.data.label_tensor(positions).to(tuned.device)
        optimizer = torch.optim.Adam(tuned.adaptive_parameters(), lr=self.rate)
        for _ in range(STEPS):
            optimizer.zero_grad()
            functional.cross_entropy(self._logits(tuned, positions), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return tuned

    def _logits(self, host: Host, positions: NDArray[np.int64]) -> Tensor:
        if self.known is not None:
            return host.classify(self.known[positions].to(host.device))
        logits: Tensor = host(self.data.tensor(positions).to(host.device))
        return logits


def finetune_device(problem: Problem) -> Trained:
    """Each device by itself, on its own labels: the upper bound of what personalisation could give."""
    started = time.perf_counter()

    def make(host: Host, rate: float) -> DeviceFinetuning:
        known = problem.features_of(host) if host.shared_features else None
        return DeviceFinetuning(host, problem.data, rate, known)

    rate = choose(problem, RATES, make)
    return Trained(
        make(problem.base_host(), rate),
        forward_passes=1.0 + STEPS,
        backward_passes=float(STEPS),
        chosen={"rate": rate},
        seconds=time.perf_counter() - started,
    )
