"""What decides whether a refined bank of a classifier is served reads no test device."""

from persona.prototypes import HeadMetric, RefineConfig, refine
from pipelines.steps import vision_streams
from tests.vision.common import TINY, toy_images
from vision.config import VisionConfig
from vision.prototypes import window_codes, window_statistics
from vision.task import VISION

DATA = toy_images(devices=12, per_device=6, classes=3, size=16)
CONFIG = VisionConfig(**TINY, host="compact", mode="held_back", prototypes=2)


class Unreadable:
    """In place of a part that must not be read."""

    def __getattr__(self, name):
        raise AssertionError(f"a decision read {name} of the test part")


def test_a_refined_bank_is_judged_on_devices_that_validate():
    problem = VISION.problem(DATA, CONFIG)
    problem.__dict__["test"] = Unreadable()
    model = VISION.model(VISION.train_configured(problem)[1])
    fitted = VISION.fit_bank(problem, model, VISION.bank_config(problem), lambda note: None)
    parent = VISION.release(problem, model, {}).with_bank(fitted.bank)
    deployed = problem.evaluation(problem.split.test)
    statistics = window_statistics(parent.server, *window_codes(model, deployed))
    seen = vision_streams._shown(problem, parent, statistics)
    assert seen.window == {"devices": len(problem.split.test), "windows": len(seen.codes)}
    assert set(seen.names) == {DATA.device_ids[device] for device in problem.split.test}
    refined = refine(fitted.bank, HeadMetric(model.editor), statistics, RefineConfig(min_users=1)).bank
    found = vision_streams._on_validation(problem, parent, parent.with_bank(refined))
    expected = {f"validation prototype/{m}_vs_{other}" for m in VISION.compared for other in ("host", "parent")}
    assert set(found.changes) == expected
    assert "validation prototype/accuracy" in found.summary
