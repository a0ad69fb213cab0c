"""Objectives: what an epoch is, for ``persona.training.loop.fit``.

``ImageObjective`` trains images of all devices mixed: hosts. ``DeviceObjective`` trains windows of devices, each under the
edit that its own images ask for: editors, and hosts together with them.

Shapes: N images, B devices, n images of a window, C channels, H height, W width, F features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from persona.errors import DataError, check_each
from persona.torch_device import moved
from vision.data.images import DeviceImages
from vision.evaluation import Evaluation
from vision.features import ROWS, FeatureCache
from vision.personalised import Personalised

Int64Array = NDArray[np.int64]


@dataclass(frozen=True)
class LossConfig:
    """How a batch is made and judged.

    Attributes:
        batch_size: images of a batch, for hosts.
        devices: B, windows of a batch, for editors.
        context: n, images of a window; shorter ones are drawn, too, so that an editor knows few images as well.
        steps: batches of an epoch of an editor.
        monitor: metric that selects the epoch; larger is better.

    Raises:
        ConfigError: a setting is out of range.
    """

    batch_size: int = 128
    devices: int = 16
    context: int = 20
    steps: int = 50
    monitor: str = "accuracy"

    def __post_init__(self) -> None:
        check_each(self, ("batch_size", "devices", "context", "steps"), 1)


@dataclass(frozen=True)
class ImageBatch:
    """Labels (N,) of images (N, C, H, W) uint8, or of their features (N, F) where the body does not learn."""

    labels: Tensor
    images: Tensor | None
    features: Tensor | None


@dataclass(frozen=True)
class DeviceBatch:
    """Windows of B devices: labels (B, n), images (B, n, C, H, W) and features (B, n, F), each where it is needed."""

    labels: Tensor
    images: Tensor | None
    features: Tensor | None


@dataclass(eq=False, repr=False)
class _Objective:
    """A model, the devices it learns from, and devices held out that select the epoch.

    Attributes:
        model: host, or host and editor.
        data: the images.
        devices: that train.
        validation: devices that select the epoch.
        config: sizes, steps, monitor.
        seed: of all that is drawn.
        cache: features without an edit, where the body does not learn.
    """

    model: Personalised
    data: DeviceImages
    devices: Int64Array
    validation: Evaluation
    config: LossConfig
    seed: int
    cache: FeatureCache | None = None

    @property
    def monitor(self) -> str:
        """Larger is better."""
        return self.config.monitor

    def validate(self) -> dict[str, float]:
        """The metrics of the protocol."""
        positions, logits = batched_logits(self.model, self.validation, self.cache)
        return self.validation.judge(logits, positions).summary


@dataclass(eq=False, repr=False)
class ImageObjective(_Objective):
    """Images of all devices, in a new order every epoch, for a host without an editor."""

    def __post_init__(self) -> None:
        self.positions = self.data.positions_of(self.devices)

    def __len__(self) -> int:
        """Batches of an epoch."""
        full, rest = divmod(len(self.positions), self.config.batch_size)
        return full + (rest > 1)

    def batches(self, epoch: int) -> Iterator[ImageBatch]:
        """All images once; a last batch of a single one is left out, for batch norms need two."""
        order = np.random.default_rng([self.seed, epoch]).permutation(self.positions)
        for start in range(0, len(order), self.config.batch_size):
            rows = order[start : start + self.config.batch_size]
            if len(rows) > 1:
                yield ImageBatch(
                    self.data.label_tensor(rows),
                    self.data.tensor(rows) if self.cache is None else None,
                    None if self.cache is None else self.cache[rows],
                )

    def loss(self, batch: ImageBatch) -> Tensor:
        """Mean cross-entropy."""
        return functional.cross_entropy(self.model(batch.images, batch.features).float(), batch.labels)


@dataclass(eq=False, repr=False)
class DeviceObjective(_Objective):
    """Windows of devices: what an editor sees of a device, and what its edit is judged by.

    Half of the batches have windows of ``context`` images, the others shorter ones. A window's images are drawn from
    consecutive ones of the stream, as a device sees them. Features of a fixed host are computed if they are not given.

    Raises:
        DataError: no device has an image.
    """

    def __post_init__(self) -> None:
        data, devices = self.data, self.devices
        if not len(devices):
            raise DataError("there are no devices to learn from: the data has too few for this protocol")
        self.counts = (data.offsets[1:] - data.offsets[:-1])[devices]
        if not self.model.fixed_host:
            self.cache = None
        elif self.cache is None:
            known = np.concatenate([data.positions_of(devices), data.positions_of(self.validation.devices)])
            self.cache = FeatureCache(self.model.host.eval(), data, np.unique(known))

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self.config.steps

    def batches(self, epoch: int) -> Iterator[DeviceBatch]:
        """Windows of random devices at random places of their streams."""
        rng = np.random.default_rng([self.seed, epoch])
        for step in range(self.config.steps):
            wanted = self.config.context if step % 2 == 0 else int(rng.integers(1, self.config.context + 1))
            length = min(wanted, int(self.counts.max()))
            pool = np.flatnonzero(self.counts >= length)
            chosen = rng.choice(pool, self.config.devices, replace=len(pool) < self.config.devices)
            start = self.data.offsets[self.devices[chosen]] + rng.integers(0, self.counts[chosen] - length + 1)
            yield self.batch(start[:, None] + np.arange(length))

    def batch(self, positions: Int64Array) -> DeviceBatch:
        """The windows at ``positions`` (B, n)."""
        return device_batch(self.model, self.data, positions, self.cache)

    def loss(self, batch: DeviceBatch) -> Tensor:
        """Mean cross-entropy of all images of all windows."""
        logits = self.model(batch.images, batch.features).float()
        return functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten())


Part: TypeAlias = ImageObjective | DeviceObjective


class Mixture:
    """Several objectives as one, such as the devices of folds, each judged over a host that has not seen them.

    An epoch takes the same share of the batches of each part, in random order, and is about as long as one part's.

    Args:
        parts: whose batches are trained.
        validators: whose validation is averaged to select the epoch.
        seed: of the order.
    """

    def __init__(self, parts: Sequence[Part], validators: Sequence[Part], seed: int) -> None:
        self.parts, self.validators, self.seed = list(parts), list(validators), seed

    @property
    def monitor(self) -> str:
        """Larger is better."""
        return self.validators[0].monitor

    def batches(self, epoch: int) -> Iterator[tuple[Part, Any]]:
        """Each batch with its part."""
        batches = [part.batches(epoch) for part in self.parts]
        shares = [-(-len(part) // len(self.parts)) for part in self.parts]
        order = np.random.default_rng([self.seed, epoch, 47]).permutation(np.repeat(np.arange(len(shares)), shares))
        for index in order.tolist():
            yield self.parts[index], next(batches[index])

    def loss(self, batch: tuple[Part, Any]) -> Tensor:
        """Mean cross-entropy of a part's batch."""
        part, own = batch
        return part.loss(own)

    def validate(self) -> dict[str, float]:
        """The mean of every metric over the validators."""
        found = [validator.validate() for validator in self.validators]
        return {name: float(np.mean([metrics[name] for metrics in found])) for name in found[0]}


def device_batch(
    model: Personalised, data: DeviceImages, positions: Int64Array, cache: FeatureCache | None
) -> DeviceBatch:
    """The windows at ``positions`` (B, n), with images only where features do not suffice."""
    needed = cache is None or (model.editor is not None and not model.host.shared_features)
    flat = positions.reshape(-1)
    return DeviceBatch(
        labels=data.label_tensor(flat).reshape(positions.shape),
        images=data.tensor(flat).reshape(*positions.shape, *data.image_shape) if needed else None,
        features=None if cache is None else cache[positions],
    )


@torch.no_grad()
def batched_logits(
    model: Personalised, evaluation: Evaluation, cache: FeatureCache | None = None
) -> tuple[Int64Array, Tensor]:
    """What ``evaluation.run`` asks of a model, many devices at a time.

    Returns:
        Positions (P,) of the classified images, ascending, and their logits (P, K).
    """
    groups: dict[tuple[int, int], list[Int64Array]] = {}
    for device in evaluation.devices.tolist():
        for own, new in evaluation.windows(device):
            groups.setdefault((len(own), new), []).append(own)
    positions: list[Int64Array] = []
    parts: list[Tensor] = []
    for (length, new), windows in groups.items():
        size = max(1, ROWS // length)
        for start in range(0, len(windows), size):
            block = np.stack(windows[start : start + size])
            batch = moved(device_batch(model, evaluation.data, block, cache), model.host.device)
            logits = model(batch.images, batch.features).cpu()
            positions.append(block[:, -new:].reshape(-1))
            parts.append(logits[:, -new:].flatten(0, 1))
    flat = np.concatenate(positions)
    order = np.argsort(flat)
    return flat[order], torch.cat(parts)[torch.from_numpy(order)]
