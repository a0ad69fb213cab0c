import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from persona.answering import NO_BANK, NO_EDITOR
from persona.bundles import EDITOR
from persona.errors import ConfigError, DataError, FormatError, MismatchError
from persona.prototypes import receive
from persona.storage import save_tensors
from persona.wire import LEVELS
from tests.vision.common import awake_release, toy_images
from vision.config import VisionConfig
from vision.methods import Problem
from vision.personalised import Personalised
from vision.prototypes import window_codes, window_statistics
from vision.serving.bundle import HEADER
from vision.serving.classifier import Classifier
from vision.serving.graphs import TABLES
from vision.serving.release import Release

DATA = toy_images(devices=12, per_device=6, classes=3, size=16)
SHAPE = DATA.image_shape
SHOWN = DATA.pixels[:5]


@pytest.fixture(scope="module", params=["classifier", "all"])
def release(request):
    """A host and an editor that is awake, with a bank of its own edits."""
    return awake_release(DATA, adaptive=request.param).compile()


@pytest.fixture(scope="module")
def classifier(release):
    return release.classifier()


def test_levels_answer_differently_and_the_bundle_keeps_them(release, classifier, tmp_path):
    release.save(tmp_path / "bundle")
    loaded = Classifier.load(tmp_path / "bundle")
    assert loaded.context_images == 3
    seen = {}
    for level in LEVELS:
        answer = classifier.classify(SHOWN, level=level)
        assert loaded.classify(SHOWN, level=level) == answer
        assert (answer.level, answer.fallback, len(answer.classes)) == (level, "", 5)
        assert np.allclose(np.sum(answer.probabilities, 1), 1, atol=1e-5)
        assert answer.prototype is not None, "the nearest one is told of at every level"
        assert (answer.edit_norm > 0) == (level != "host")
        seen[level] = np.array(answer.probabilities)
    assert not np.allclose(seen["host"], seen["prototype"])
    assert not np.allclose(seen["prototype"], seen["edit"])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("shown", [1, 2, 5])
def test_what_is_measured_is_what_is_released(release, classifier, level, shown):
    model, images = release.model, DATA.tensor(np.arange(shown))
    with torch.no_grad():
        codes = model.codes(model.host.features(images)[-3:].unsqueeze(0))
        edit = release.server.edit(codes, "full" if level == "edit" else level)
        expected = model.host(images, edit).softmax(-1)
        nearest = int(release.server.assign(codes)[0])
    answer = classifier.classify(DATA.pixels[:shown], level=level)
    torch.testing.assert_close(torch.tensor(answer.probabilities), expected, rtol=1e-4, atol=1e-5)
    assert answer.edit_norm == pytest.approx(float(edit.norm()), rel=1e-4)
    assert (answer.level, answer.prototype) == (level, nearest)


def test_the_edit_reads_as_many_images_as_it_is_told(classifier):
    answer, whole = classifier.classify(SHOWN), classifier.classify(SHOWN, context=5)
    assert whole.edit_norm != answer.edit_norm


def test_devices_read_whole_edits(release, classifier):
    unbounded = classifier.contexts(SHOWN).unbounded[0]
    received = receive(release.bank, classifier.model.full_message(unbounded), "full")
    with torch.no_grad():
        expected = release.server.edit(release.codes(SHOWN[-3:]).clone(), "full")
    assert torch.allclose(received.flat(), expected.flat(), atol=1e-4)


def test_what_cannot_be_answered_falls_back_and_says_why(release):
    host = Release(Personalised(release.model.host), DATA.class_names, SHAPE)
    answer = host.classifier().classify(SHOWN)
    assert (answer.level, answer.fallback) == ("host", NO_EDITOR)
    with pytest.raises(ConfigError, match="makes no codes"):
        host.codes(SHOWN)
    alone = Release(release.model, DATA.class_names, SHAPE).classifier()
    answer = alone.classify(SHOWN, level="basis")
    assert (answer.level, answer.fallback) == ("host", NO_BANK)
    assert answer.classes == alone.classify(SHOWN, level="host").classes


def test_another_bank_takes_the_graphs_along(release):
    other = release.with_bank(replace(release.bank, parent=release.bank.version))
    assert {name for name, data in other.compiled.items() if data != release.compiled[name]} == {TABLES}
    assert other.classifier().bank == other.bank.version != release.bank.version


def test_images_that_do_not_fit(classifier):
    with pytest.raises(MismatchError, match="but the host reads 16 x 16, 1 channel"):
        classifier.classify(np.zeros((2, 8, 8, 1), np.uint8))
    with pytest.raises(MismatchError, match="float64"):
        classifier.classify(np.zeros((2, 16, 16, 1)))
    with pytest.raises(DataError, match="not \\(0, 16, 16, 1\\)"):
        classifier.classify(SHOWN[:0])
    with pytest.raises(ConfigError, match="did you mean 'prototype'"):
        classifier.classify(SHOWN, level="prototypes")
    with pytest.raises(ConfigError, match="at least one image"):
        classifier.classify(SHOWN, context=0)


def test_files_are_read_and_broken_ones_named(classifier, tmp_path):
    Image.fromarray(SHOWN[0][..., 0]).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"broken")
    pixels, kept, skipped = classifier.read([tmp_path / "a.png", tmp_path / "b.png"])
    assert np.array_equal(pixels, SHOWN[:1])
    assert kept == [tmp_path / "a.png"]
    assert skipped == [f"{tmp_path / 'b.png'}: it is no image that can be read"]
    with pytest.raises(DataError, match="none of the 1 image"):
        classifier.read([tmp_path / "b.png"])


def test_damaged_and_foreign_bundles_are_refused(release, tmp_path):
    with pytest.raises(DataError, match="holds no bundle"):
        Release.load(tmp_path)
    release.save(tmp_path / "b")
    header = json.loads((tmp_path / "b" / HEADER).read_text())

    def changed(**values):
        (tmp_path / "b" / HEADER).write_text(json.dumps(header | values))

    changed(version=9)
    with pytest.raises(FormatError, match="version 9"):
        Release.load(tmp_path / "b")
    changed(host=header["host"] | {"kind": "resnet81"})
    with pytest.raises(FormatError, match="make no model"):
        Release.load(tmp_path / "b")
    changed(bank_version="0" * 64)
    with pytest.raises(MismatchError, match="was released with 000000000000"):
        Release.load(tmp_path / "b")
    changed()
    state = release.model.editor.state_dict()
    save_tensors(tmp_path / "b" / EDITOR, state, {"host": "another"})
    with pytest.raises(MismatchError, match="another host"):
        Release.load(tmp_path / "b")
    first = next(iter(state))
    save_tensors(tmp_path / "b" / EDITOR, state | {first: state[first] + 1}, {"host": release.host_digest})
    with pytest.raises(FormatError, match="its digest differs"):
        Release.load(tmp_path / "b")


def test_a_window_of_devices_without_labels(release):
    problem = Problem(DATA, VisionConfig(host="compact", context_images=3, step=3, validation_share=0.2))
    evaluation = problem.evaluation(problem.split.test)
    codes, owners = window_codes(release.model, evaluation)
    assert codes.shape[0] == len(owners) == 2 * len(evaluation.devices)
    statistics = window_statistics(release.server, codes, owners)
    assert statistics.by_user()[0].tolist() == evaluation.devices.tolist()
    assert float(statistics.counts.sum()) == len(owners)
