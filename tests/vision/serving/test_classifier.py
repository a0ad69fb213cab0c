import json

import numpy as np
import pytest
import torch
from PIL import Image

from persona.errors import ConfigError, DataError, FormatError, MismatchError
from persona.prototypes import fit_bank
from persona.storage import save_tensors
from tests.vision.common import toy_images
from vision.config import VisionConfig
from vision.methods import Problem
from vision.personalised import Personalised
from vision.prototypes import window_codes, window_statistics
from vision.serving.bundle import EDITOR, HEADER
from vision.serving.classifier import LEVELS, NO_BANK, NO_EDITOR, NOT_FINITE, Classifier

DATA = toy_images(devices=12, per_device=6, classes=3, size=16)
SHAPE = DATA.image_shape
SHOWN = DATA.pixels[:5]


@pytest.fixture(scope="module", params=["classifier", "all"])
def classifier(request):
    """A host and an editor that is awake, with a bank of its own edits."""
    settings = {"host": "compact", "adaptive": request.param, "epochs": 1, "context_images": 3, "step": 3}
    problem = Problem(DATA, VisionConfig.from_dict(settings | {"validation_share": 0.2, "width": 4, "rank": 2}))
    host = problem.base_host()
    model = problem.personalise(host)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.editor.heads.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.editor.host = host.digest()
    codes, _ = window_codes(model, problem.evaluation(problem.split.adapt))
    bank = fit_bank(model.editor, codes, 2).bank
    return Classifier(model, DATA.class_names, SHAPE, {"settings": problem.config.as_dict()}, bank)


def test_levels_answer_differently_and_the_bundle_keeps_them(classifier, tmp_path):
    classifier.save(tmp_path / "bundle")
    loaded = Classifier.load(tmp_path / "bundle")
    assert loaded.context_images == 3
    seen = {}
    for level in LEVELS:
        answer = classifier.classify(SHOWN, level=level)
        assert loaded.classify(SHOWN, level=level) == answer
        assert (answer.level, answer.fallback, len(answer.classes)) == (level, "", 5)
        assert np.allclose(np.sum(answer.probabilities, 1), 1, atol=1e-5)
        assert (answer.prototype is not None) == (level in ("prototype", "basis"))
        assert (answer.edit_norm > 0) == (level != "host")
        seen[level] = np.array(answer.probabilities)
    assert not np.allclose(seen["host"], seen["prototype"])
    assert not np.allclose(seen["prototype"], seen["edit"])


def test_the_edit_is_that_of_the_evaluation(classifier):
    model = classifier.model
    images = DATA.tensor(np.arange(5))
    with torch.no_grad():
        features = model.host.features(images).unsqueeze(0)
        expected = model.host(images.unsqueeze(0), model.edit(features[:, -3:])).softmax(-1)[0]
    answer = classifier.classify(SHOWN)
    torch.testing.assert_close(torch.tensor(answer.probabilities), expected, rtol=1e-4, atol=1e-5)
    whole = classifier.classify(SHOWN, context=5)
    assert whole.edit_norm != answer.edit_norm


def test_what_cannot_be_answered_falls_back_and_says_why(classifier):
    host = Classifier(Personalised(classifier.model.host), DATA.class_names, SHAPE)
    assert (host.classify(SHOWN).level, host.classify(SHOWN).fallback) == ("host", NO_EDITOR)
    with pytest.raises(ConfigError, match="makes no codes"):
        host.codes(SHOWN)
    alone = Classifier(classifier.model, DATA.class_names, SHAPE)
    answer = alone.classify(SHOWN, level="basis")
    assert (answer.level, answer.fallback) == ("host", NO_BANK)
    assert answer.classes == alone.classify(SHOWN, level="host").classes


def test_an_edit_that_is_not_finite_is_never_used(classifier, tmp_path):
    classifier.save(tmp_path / "b")
    broken = Classifier.load(tmp_path / "b")
    with torch.no_grad():
        next(broken.model.editor.mlp0.parameters()).fill_(float("nan"))
    answer = broken.classify(SHOWN)
    assert (answer.level, answer.fallback) == ("host", NOT_FINITE)
    assert np.isfinite(answer.probabilities).all()


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


def test_damaged_and_foreign_bundles_are_refused(classifier, tmp_path):
    with pytest.raises(DataError, match="holds no bundle"):
        Classifier.load(tmp_path)
    classifier.save(tmp_path / "b")
    header = json.loads((tmp_path / "b" / HEADER).read_text())

    def changed(**values):
        (tmp_path / "b" / HEADER).write_text(json.dumps(header | values))

    changed(version=9)
    with pytest.raises(FormatError, match="version 9"):
        Classifier.load(tmp_path / "b")
    changed(host=header["host"] | {"kind": "resnet81"})
    with pytest.raises(FormatError, match="make no model"):
        Classifier.load(tmp_path / "b")
    changed(bank_version="0" * 64)
    with pytest.raises(MismatchError, match="was released with 000000000000"):
        Classifier.load(tmp_path / "b")
    changed()
    state = classifier.model.editor.state_dict()
    save_tensors(tmp_path / "b" / EDITOR, state, {"host": "another"})
    with pytest.raises(MismatchError, match="another host"):
        Classifier.load(tmp_path / "b")
    first = next(iter(state))
    save_tensors(tmp_path / "b" / EDITOR, state | {first: state[first] + 1}, {"host": classifier.host_digest})
    with pytest.raises(FormatError, match="its digest differs"):
        Classifier.load(tmp_path / "b")


def test_a_window_of_devices_without_labels(classifier):
    problem = Problem(DATA, VisionConfig(host="compact", context_images=3, step=3, validation_share=0.2))
    evaluation = problem.evaluation(problem.split.test)
    codes, owners = window_codes(classifier.model, evaluation)
    assert codes.shape[0] == len(owners) == 2 * len(evaluation.devices)
    statistics = window_statistics(classifier.server, codes, owners)
    assert statistics.by_user()[0].tolist() == evaluation.devices.tolist()
    assert float(statistics.counts.sum()) == len(owners)
