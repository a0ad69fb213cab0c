"""What a version of a classifier leaves to be compared by: metrics of every device, and what it sees in a few streams."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from persona.comparison import Measured
from persona.storage import digest_json
from pipelines import snapshots
from pipelines.snapshots import INPUT, ITEM, RANK, TITLE, UNIT, Snapshot
from vision.baselines import Problem
from vision.classifier import Classifier
from vision.images import DeviceImages

# Metrics that decide; the rest is in the run.
METRICS = ("accuracy", "logloss")
PROTOCOL = "stream"
# Devices whose answers are kept.
ASKED = 50


def of_release(problem: Problem, measured: Measured, classifier: Classifier) -> Snapshot:
    """The snapshot of a bundle on the test devices of its problem.

    Args:
        problem: the devices.
        measured: what the bundle achieved on them.
        classifier: the bundle.
    """
    data, devices = problem.data, measured.units
    groups = [data.groups[d] for d in devices]
    known = len(set(groups)) > 1 and all(groups)
    return snapshots.measured(
        "device",
        PROTOCOL,
        digest_json([data.digest, problem.test.context, problem.test.step, devices.tolist()]),
        units=[data.device_ids[d] for d in devices],
        metrics={f"{PROTOCOL}/{name}": measured.per_unit[name] for name in METRICS if name in measured.per_unit},
        segments=groups if known else snapshots.activity_segments(np.diff(data.offsets)[devices]),
        prototypes=_prototypes(classifier, data, devices.tolist()),
        answers=_answers(classifier, data, devices.tolist()),
    )


def _first_images(classifier: Classifier, data: DeviceImages, device: int) -> Any:
    """What is known of a device when its first answer is due."""
    start = int(data.offsets[device])
    return data.pixels[start : min(start + classifier.context_images, int(data.offsets[device + 1]))]


def _prototypes(classifier: Classifier, data: DeviceImages, devices: list[int]) -> list[int] | None:
    """The prototype nearest to the first images of each device; None without a bank."""
    if classifier.server is None:
        return None
    codes = (classifier.codes(_first_images(classifier, data, device)) for device in devices)
    return [int(classifier.server.assign(code)[0]) for code in codes]


def _answers(classifier: Classifier, data: DeviceImages, devices: list[int]) -> list[dict[str, Any]]:
    """The classes seen in the first images of a few devices, the most frequent first."""
    chosen = np.unique(np.linspace(0, len(devices) - 1, min(ASKED, len(devices))).astype(np.int64))
    rows = []
    for device in (devices[i] for i in chosen):
        images = _first_images(classifier, data, device)
        seen = Counter(classifier.classify(images).classes).most_common()
        asked = f"the first {len(images)} images"
        rows += [
            {UNIT: data.device_ids[device], INPUT: asked, RANK: rank, ITEM: name, TITLE: name}
            for rank, (name, _) in enumerate(seen, start=1)
        ]
    return rows
