"""What `evaluate` reports as `persona` is, to the bit, what `release` packs: the bundle is measured again."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.steps import bank
from pipelines.steps.evaluate import evaluate
from pipelines.steps.release import release
from pipelines.steps.workspace import Workspace
from recsys import methods as recsys_methods
from recsys import prototypes as recsys_prototypes
from recsys.serving.release import Release as RecommenderRelease
from recsys.task import RECSYS
from tests.recsys.toy import SMALL, walks
from tests.vision.common import toy_images
from tests.vision.methods.test_folds import CONFIG
from vision import methods as vision_methods
from vision import prototypes as vision_prototypes
from vision.serving.release import Release as ClassifierRelease
from vision.task import VISION

pytestmark = pytest.mark.usefixtures("workplace")

# What two epochs teach is below any list of best-sellers: that gate has tests of its own.
TASK = replace(RECSYS, rivals=())


def check(measured, evaluated, per_unit):
    """The same metrics of every unit, bit for bit."""
    assert measured.summary | evaluated.summary == measured.summary
    assert per_unit.keys() == measured.per_unit.keys()
    for name, values in per_unit.items():
        np.testing.assert_array_equal(values, measured.per_unit[name])


@pytest.mark.parametrize("mode", ["auto", "joint"])
def test_a_recommender_is_released_as_it_was_evaluated(mode, monkeypatch):
    monkeypatch.setattr(recsys_prototypes, "MIN_JUDGES", 2)
    epochs = 8 if mode == "joint" else SMALL.epochs  # after less, what is learned together is below its host
    config, work = replace(SMALL, protocol="time", mode=mode, epochs=epochs), Workspace(Path("work"))
    walks(users=80, events=14).save(work.prepared)
    [comparison] = evaluate(TASK, config, work, methods=["persona"])
    [measured] = comparison.of("persona")
    made = bank.prototypes(TASK, config, work)
    released = release(TASK, config, work)
    assert released.bank == made[-1].version
    assert len(list(work.cells.glob("*/editor-*/banks/*"))) == 1, "the step took the bank that was evaluated"
    bundle, problem = RecommenderRelease.load(work.bundle), recsys_methods.Problem(work.data(TASK), config)
    with problem.reporting():
        again = problem.test.run(recsys_prototypes.ServedAtLevel(bundle.model, bundle.server, "basis"))
    check(measured, again, again.per_user)


def test_a_classifier_is_released_as_it_was_evaluated():
    config, work = replace(CONFIG, shifts=0), Workspace(Path("work"))
    toy_images(devices=24, per_device=4, classes=5, size=16).save(work.prepared)
    [comparison] = evaluate(VISION, config, work, methods=["persona"])
    [measured] = comparison.of("persona")
    made = bank.prototypes(VISION, config, work)[-1]
    released = release(VISION, config, work)
    assert released.bank == made.version
    assert len(list(work.cells.glob("*/editor-*/banks/*"))) == 1, "the step took the bank that was evaluated"
    bundle, problem = ClassifierRelease.load(work.bundle), vision_methods.Problem(work.data(VISION), config)
    with problem.reporting():
        again = problem.test.run(vision_prototypes.ServedAtLevel(bundle.model, bundle.server, "basis"))
    again.summary.pop("ms_per_image")
    check(measured, again, again.per_device)
