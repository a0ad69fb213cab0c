"""Exported classifiers answer as torch does, with and without an edit, and read the context that the cloud wants."""

import numpy as np
import pytest
import torch

from persona.device import Device, DeviceBundle
from persona.edit_format import encode_edit
from persona.editor import EditorConfig
from persona.errors import DataError, MismatchError
from tests.vision.hosts.common import CLASSES, SIZE, fresh_host, pictures, random_edit
from vision.contexts import ContextReader
from vision.device.classifier import DeviceClassifier
from vision.device.export import export_classifier
from vision.personalised import Personalised, make_editor

NAMES = [f"c{i}" for i in range(CLASSES)]
SHAPE = (1, SIZE, SIZE)


def _personalised(kind, adaptive):
    host = fresh_host(kind, adaptive)
    reader = ContextReader("pooled", host)
    editor = make_editor(host, EditorConfig(context_dim=reader.dim, width=8, head="low_rank", bound="frobenius"))
    return Personalised(host, reader, editor).eval()


@pytest.fixture(
    scope="module",
    params=[
        ("mobilenet_v3_small", "all"),
        pytest.param(("resnet18", "all"), marks=pytest.mark.slow),
        pytest.param(("mobilenet_v3_small", "classifier"), marks=pytest.mark.slow),
    ],
    ids="-".join,
)
def pair(request, tmp_path_factory):
    model = _personalised(*request.param)
    folder = tmp_path_factory.mktemp("device") / "bundle"
    export_classifier(model, NAMES, SHAPE, folder)
    return model, folder


@torch.no_grad()
def test_logits_are_those_of_torch_under_any_edit(pair):
    model, folder = pair
    images = pictures(4, seed=3)
    bundle = DeviceBundle.load(folder)
    for precision in ("host", "float32", "float16", "int8"):
        device, edit = Device(bundle), None
        if precision != "host":
            edit = random_edit(model.host, 1, scale=0.01)
            edit = type(edit)(edit.layers, bundle.host)
            data = encode_edit(edit, precision)
            from persona.edit_format import decode_edit

            edit = model.editor.bounded(decode_edit(data))
            device.receive(data, "full")
        wanted = model.host(images, edit).numpy()
        for row, image in enumerate(images.numpy()):
            got = device.run({"images": image[None]}).arrays["logits"][0]
            assert np.abs(got - wanted[row]).max() <= 1e-5 * max(1.0, np.abs(wanted).max())


@torch.no_grad()
def test_the_context_is_what_the_cloud_reads(pair):
    model, folder = pair
    images = pictures(3, seed=4)
    classifier = DeviceClassifier.load(folder)
    wanted = model.host.context_features(model.host.features(images)).numpy()
    assert np.allclose(classifier.context(images.numpy()), wanted, atol=1e-4)
    label = classifier.classify(images.numpy()[0])
    assert label.level == "host"
    assert label.name == NAMES[int(model.host(images[:1]).argmax())]
    assert label.probabilities.sum() == pytest.approx(1.0, abs=1e-5)


def test_images_that_do_not_fit_are_refused(pair):
    classifier = DeviceClassifier.load(pair[1])
    for wrong in (np.zeros((3, SIZE, SIZE), np.uint8), np.zeros(SHAPE, np.float32)):
        with pytest.raises(DataError, match="convert it"):
            classifier.classify(wrong)
    with pytest.raises(DataError, match="at least one image"):
        classifier.context([])


def test_bundles_of_other_tasks_are_refused(pair):
    from recsys.device.recommender import DeviceRecommender

    with pytest.raises(MismatchError, match="not for recommendation"):
        DeviceRecommender.load(pair[1])
