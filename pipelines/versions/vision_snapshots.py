"""What a version of a classifier, or of its bank, leaves to be compared by: metrics of every device, and what it sees in a few
streams.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from persona.comparison import Measured, metric_name
from persona.storage import digest_json
from pipelines.versions import snapshots
from pipelines.versions.snapshots import INPUT, ITEM, RANK, TITLE, UNIT, Snapshot
from vision.data.images import DeviceImages
from vision.data.protocols import PROTOCOL
from vision.evaluation import Evaluated
from vision.methods import Problem
from vision.objectives import batched_logits
from vision.prototypes import ServedAtLevel
from vision.serving.release import Release

# Metrics that decide; the rest is in the run.
METRICS = ("accuracy", "logloss")
# The level at which prototypes alone answer, and its name behind the protocol.
PROTOTYPE = "prototype"
# Devices whose answers are kept.
ASKED = 50


def of_release(problem: Problem, measured: Measured, classifier: Release) -> Snapshot:
    """The snapshot of a bundle on the test devices of its problem.

    Args:
        problem: the devices.
        measured: what the bundle achieved on them with whole edits.
        classifier: the bundle; with a bank, what its prototypes alone achieve is measured, too.
    """
    levels = {"": measured.per_unit}
    if classifier.server is not None:
        levels[PROTOTYPE] = at_levels(problem, classifier, (PROTOTYPE,))[PROTOTYPE].per_device
    return taken(problem, levels, classifier)


def at_levels(problem: Problem, classifier: Release, levels: Sequence[str]) -> dict[str, Evaluated]:
    """What the prototypes of a classifier achieve on the test devices of its problem, by serving level."""
    assert classifier.server is not None
    found = {}
    for level in levels:
        served = ServedAtLevel(classifier.model, classifier.server, level)
        positions, logits = batched_logits(served, problem.test, problem.features_of(classifier.model.host))
        found[level] = problem.test.judge(logits, positions)
    return found


def taken(
    problem: Problem, measured: Mapping[str, Mapping[str, Any]], classifier: Release, *, level: str = "edit"
) -> Snapshot:
    """The snapshot of a version.

    Args:
        problem: the test devices.
        measured: (U,) values of every test device a metric, at one or more levels; a key is put behind the protocol in the
            names of the metrics (``stream prototype/accuracy``), an empty one adds nothing.
        classifier: the version itself.
        level: at which it answers.
    """
    data, devices = problem.data, problem.test.devices
    groups = [data.groups[d] for d in devices]
    known = len(set(groups)) > 1 and all(groups)
    metrics = {
        metric_name(f"{PROTOCOL} {label}".strip(), name): values[name]
        for label, values in measured.items()
        for name in METRICS
        if name in values
    }
    return snapshots.measured(
        "device",
        PROTOCOL,
        digest_json([data.digest, problem.test.context, problem.test.step, devices.tolist()]),
        units=[data.device_ids[d] for d in devices],
        metrics=metrics,
        segments=groups if known else snapshots.activity_segments(np.diff(data.offsets)[devices]),
        prototypes=_prototypes(classifier, data, devices.tolist()),
        answers=_answers(classifier, data, devices.tolist(), level),
    )


def _first_images(classifier: Release, data: DeviceImages, device: int) -> Any:
    """What is known of a device when its first answer is due."""
    start = int(data.offsets[device])
    return data.pixels[start : min(start + classifier.context_images, int(data.offsets[device + 1]))]


def _prototypes(classifier: Release, data: DeviceImages, devices: list[int]) -> list[int] | None:
    """The prototype nearest to the first images of each device; None without a bank."""
    if classifier.server is None:
        return None
    codes = (classifier.codes(_first_images(classifier, data, device)) for device in devices)
    return [int(classifier.server.assign(code)[0]) for code in codes]


def _answers(classifier: Release, data: DeviceImages, devices: list[int], level: str) -> list[dict[str, Any]]:
    """The classes seen in the first images of a few devices, the most frequent first."""
    chosen = np.unique(np.linspace(0, len(devices) - 1, min(ASKED, len(devices))).astype(np.int64))
    rows, answering = [], classifier.classifier()
    for device in (devices[i] for i in chosen):
        images = _first_images(classifier, data, device)
        seen = Counter(answering.classify(images, level=level).classes).most_common()
        asked = f"the first {len(images)} images"
        rows += [
            {UNIT: data.device_ids[device], INPUT: asked, RANK: rank, ITEM: name, TITLE: name}
            for rank, (name, _) in enumerate(seen, start=1)
        ]
    return rows
