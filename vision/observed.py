"""What a classifier, or a version of its bank, did on the test devices: metrics of every device, and what it sees in a few streams."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from persona.comparison import Measured, labelled
from persona.task import Observed
from vision.data.images import DeviceImages
from vision.data.protocols import PROTOCOL
from vision.methods import Problem
from vision.serving.release import Release
from vision.task import VISION

# Devices whose answers are kept.
ASKED = 50


def observe(problem: Problem, measured: Mapping[str, Measured], release: Release, level: str) -> Observed:
    """A version on the test devices of its problem.

    Args:
        problem: the devices.
        measured: what the version achieved on them at one or more levels; a key is put behind the protocol in the names of
            the metrics (``stream prototype/accuracy``), an empty one adds nothing.
        release: the version itself.
        level: at which it answers.
    """
    data, evaluation = problem.data, problem.test
    devices = evaluation.devices
    groups = [data.groups[d] for d in devices]
    return Observed(
        [data.digest, evaluation.context, evaluation.step, devices.tolist()],
        [data.device_ids[d] for d in devices],
        labelled(PROTOCOL, measured, VISION.compared),
        np.diff(data.offsets)[devices],
        groups if len(set(groups)) > 1 and all(groups) else None,
        _prototypes(release, data, devices.tolist()),
        _answers(release, data, devices.tolist(), level),
    )


def _first_images(release: Release, data: DeviceImages, device: int) -> NDArray[np.uint8]:
    """What is known of a device when its first answer is due."""
    start = int(data.offsets[device])
    return data.pixels[start : min(start + release.context_images, int(data.offsets[device + 1]))]


def _prototypes(release: Release, data: DeviceImages, devices: list[int]) -> list[int] | None:
    """The prototype nearest to the first images of each device; None without a bank."""
    if release.server is None:
        return None
    codes = (release.codes(_first_images(release, data, device)) for device in devices)
    return [int(release.server.assign(code)[0]) for code in codes]


def _answers(
    release: Release, data: DeviceImages, devices: list[int], level: str
) -> list[tuple[str, str, int, str, str]]:
    """The classes seen in the first images of a few devices, the most frequent first."""
    chosen = np.unique(np.linspace(0, len(devices) - 1, min(ASKED, len(devices))).astype(np.int64))
    rows, answering = [], release.classifier()
    for device in (devices[i] for i in chosen):
        images = _first_images(release, data, device)
        seen = Counter(answering.classify(images, level=level).classes).most_common()
        asked = f"the first {len(images)} images"
        rows += [(data.device_ids[device], asked, rank, name, name) for rank, (name, _) in enumerate(seen, start=1)]
    return rows
