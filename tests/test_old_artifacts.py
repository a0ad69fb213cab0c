"""What earlier releases wrote is read by today's code: see tests/fixtures/README.md."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import recsys.serving.release
import vision.serving.release
from persona.device import Device, DeviceBundle
from persona.prototypes import HeadMetric, Lineage, UserStatistics, load_bank, load_statistics, merge_statistics, refine
from persona.prototypes.plan import RefineConfig
from persona.storage import digest_tensors
from persona.training.loop import fit
from persona.training.objective import FitConfig
from recsys.data.sequences import SequenceData
from recsys.serving.recommender import Recommender
from vision.serving.classifier import Classifier

RELEASES = [Path(__file__).parent / "fixtures" / "v0.1"]
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(params=RELEASES, ids=lambda folder: folder.name)
def release(request) -> Path:
    return request.param


def expected(release: Path, name: str) -> Any:
    return json.loads((release / "expected.json").read_text(encoding="utf-8"))[name]


def numbers(hexed: list[str]) -> np.ndarray:
    return np.array([float.fromhex(text) for text in hexed])


RELEASES_OF = {"recommender": recsys.serving.release.Release, "classifier": vision.serving.release.Release}


@pytest.mark.parametrize("kind", RELEASES_OF)
def test_a_bundle_holds_the_same_bits(release, kind):
    made, wanted = RELEASES_OF[kind].load(release / kind), expected(release, kind)
    assert made.host_digest == made.model.host.digest() == wanted["host"]
    assert digest_tensors(made.model.editor.state_dict()) == wanted["editor"]
    assert made.bank.version == wanted["bank"]
    made.bank.check(HeadMetric(made.model.editor))


def check_ranking(items: list[str], scores: list[float], wanted: dict[str, Any]) -> None:
    """The same items with the same scores, best first; items of equal scores may change places."""
    np.testing.assert_allclose(scores, numbers(wanted["scores"]), **CLOSE)
    told = dict(zip(wanted["items"], numbers(wanted["scores"]), strict=True))
    assert sorted(items) == sorted(told)
    np.testing.assert_allclose(scores, [told[item] for item in items], **CLOSE)


@pytest.mark.parametrize("compiled", ["then", "now"])
def test_a_recommender_answers_as_before(release, compiled):
    folder = release / "recommender"
    made = Recommender.load(folder)
    if compiled == "now":
        made = recsys.serving.release.Release.load(folder).compile().recommender()
    for wanted in expected(release, "recommender")["answers"]:
        answer = made.recommend(wanted["history"], len(wanted["items"]) or 20, level=wanted["level"])
        assert answer.level == wanted["used"]
        check_ranking([item.item_id for item in answer.items], [item.score for item in answer.items], wanted)


def test_a_classifier_answers_as_before(release):
    made = Classifier.load(release / "classifier")
    for wanted in expected(release, "classifier")["answers"]:
        images = np.load(release / "pictures" / f"{wanted['seed']}.npy")
        answer = made.classify(images, level=wanted["level"])
        assert (answer.level, list(answer.classes)) == (wanted["used"], wanted["classes"])
        found = np.asarray(answer.probabilities).reshape(-1)
        np.testing.assert_allclose(found, numbers(wanted["probabilities"]), **CLOSE)


def test_device_folders_answer_as_before(release):
    device = Device(DeviceBundle.load(release / "device-recommender"))
    wanted = expected(release, "device-recommender")
    outputs = device.run({"items": np.array([[7, 1, 20, 2, 0]]), "lengths": np.array([4])})
    assert device.bundle.host == wanted["host"]
    np.testing.assert_allclose(outputs.arrays["scores"][0, 1:], numbers(wanted["scores"]), **CLOSE)
    device = Device(DeviceBundle.load(release / "device-classifier"))
    wanted = expected(release, "device-classifier")
    images = np.load(release / "pictures" / "3.npy")[:1].transpose(0, 3, 1, 2)
    outputs = device.run({"images": np.ascontiguousarray(images)})
    assert device.bundle.host == wanted["host"]
    np.testing.assert_allclose(outputs.arrays["logits"].reshape(-1), numbers(wanted["logits"]), **CLOSE)


def statistics_digest(statistics: UserStatistics) -> str:
    return digest_tensors({name: getattr(statistics, name) for name in ("users", "prototypes", "counts", "sums")})


def test_a_lineage_is_read_to_the_bit_and_goes_on(release, tmp_path):
    wanted, host = expected(release, "lineage"), expected(release, "recommender")["host"]
    root = shutil.copytree(release / "lineage", tmp_path / "lineage")
    lineage = Lineage(root, host)
    assert lineage.head == wanted["head"]
    assert [record.version for record in lineage.history()] == wanted["history"]
    for version, digest in zip(wanted["history"], wanted["statistics"], strict=True):
        assert lineage.load(version).version == load_bank(root / version / "bank", host).version == version
        assert statistics_digest(lineage.statistics(version)) == digest
    metric = HeadMetric(RELEASES_OF["recommender"].load(release / "recommender").model.editor)
    again = refine(
        lineage.load(wanted["history"][0]), metric, lineage.statistics(wanted["history"][1]), RefineConfig(min_users=2)
    )
    torch.testing.assert_close(again.bank.prototypes.flat(), lineage.load().prototypes.flat())
    assert lineage.restore(wanted["history"][0]).version == lineage.head


def test_a_shard_of_statistics_is_read_to_the_bit(release):
    path, wanted = release / "statistics" / "shard.safetensors", expected(release, "statistics")
    stored = load_statistics(path)
    assert (stored.bank, stored.host, stored.window) == (wanted["bank"], wanted["host"], {"first": 1, "last": 9})
    assert statistics_digest(stored.statistics) == wanted["digest"]
    bank = load_bank(release / "recommender" / "bank", wanted["host"])
    assert statistics_digest(merge_statistics([path], bank)[0]) == wanted["digest"]


class Line:
    """The objective of the checkpoint: a line through points."""

    monitor = "quality"

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def batches(self, epoch: int) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(epoch)
        return [torch.randn(16, 3, generator=generator) for _ in range(4)]

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        return (self.module(batch) - batch.sum(1, keepdim=True)).square().mean()

    def validate(self) -> dict[str, float]:
        return {"quality": -float(self.loss(self.batches(1000)[0]))}


def test_a_training_is_taken_up_where_it_was(release, tmp_path):
    folder = shutil.copytree(release / "checkpoint", tmp_path / "checkpoint")
    module = nn.Linear(3, 1)
    result = fit(module, module.parameters(), Line(module), FitConfig(epochs=4, learning_rate=0.05), folder=folder)
    assert result.epochs == 4
    found = torch.cat([p.detach().flatten() for p in module.parameters()])
    np.testing.assert_allclose(found, numbers(expected(release, "checkpoint")), **CLOSE)


def test_a_prepared_log_is_read_to_the_bit(release):
    prepared, wanted = SequenceData.load(release / "prepared"), expected(release, "prepared")
    assert prepared.digest == wanted["digest"]
    assert prepared.items.tolist() == wanted["items"]
    assert prepared.times.tolist() == wanted["times"]


def test_all_fixtures_are_small():
    files = [path for path in (Path(__file__).parent / "fixtures").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 1_500_000
