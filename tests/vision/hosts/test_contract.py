"""What every classifier keeps."""

import pytest
import torch
from torch import nn

from persona.edits import Edit
from persona.errors import MismatchError
from tests.contract import HostContract, cases
from tests.vision.hosts.common import (
    CASES,
    CLASSES,
    DEVICES,
    EACH,
    fresh_host,
    pictures,
    random_edit,
    small_config,
    small_host,
)
from vision.hosts import Host, make_host
from vision.hosts.norms import own_statistics

# Convolutions of other batch sizes add in another order: float32 rounding of logits of order 1.
CLOSE = {"rtol": 1e-3, "atol": 1e-4}


case = cases(CASES)


@pytest.fixture
def host(case) -> Host:
    return small_host(*case)


class TestClassifiers(HostContract):
    devices, close, moved, rate, steps = DEVICES, CLOSE, 1e-3, 1e-3, 2
    make, edit = staticmethod(fresh_host), staticmethod(random_edit)

    def answer(self, host, edit=None, rows=slice(None)):
        return host(pictures(DEVICES, EACH)[rows], edit)

    def loss(self, host, step):
        return nn.functional.cross_entropy(host(pictures(8, seed=step)), torch.arange(8) % CLASSES)

    def device_inputs(self):
        return [(pictures(2, seed=seed),) for seed in (0, 1)]

    def device_outputs(self, host, inputs, edit):
        return host(*inputs, edit)


@torch.no_grad()
def logits(host: Host, images: torch.Tensor, edit: Edit | None = None) -> torch.Tensor:
    return host(images, edit)


def test_shapes(host):
    images = pictures(DEVICES, EACH)
    features = host.features(images)
    assert features.shape == (DEVICES, EACH, host.feature_dim)
    assert host.features(images.flatten(0, 1)).shape == (DEVICES * EACH, host.feature_dim)
    assert host.classify(features).shape == (DEVICES, EACH, CLASSES)
    assert host.context_features(features).shape == (DEVICES, EACH, host.context_dim)


def test_images_differ(host):
    """Guards the other tests: equalities between constant logits would prove nothing."""
    out = logits(host, pictures(8))
    assert out.std(dim=0).min() > 1e-3
    assert out.std(dim=1).min() > 1e-3


def test_images_of_one_device_need_no_dimension_of_devices(host):
    images, edit = pictures(DEVICES, EACH), random_edit(host, DEVICES)
    batched = logits(host, images, edit)
    for i in range(DEVICES):
        torch.testing.assert_close(batched[i], logits(host, images[i], edit[i]), **CLOSE)


def test_one_edit_an_image(host):
    images, edit = pictures(DEVICES), random_edit(host, DEVICES)
    rows = logits(host, images, edit)
    for i in range(DEVICES):
        torch.testing.assert_close(rows[i : i + 1], logits(host, images[i : i + 1], edit[i]), **CLOSE)


def test_devices_and_rows_are_classified_alike(host):
    images = pictures(DEVICES, EACH)
    flat = logits(host, images.flatten(0, 1))
    torch.testing.assert_close(logits(host, images).flatten(0, 1), flat, **CLOSE)
    torch.testing.assert_close(logits(host, images.float()), logits(host, images))
    order = torch.tensor([5, 0, 3, 1, 4, 2])
    torch.testing.assert_close(logits(host, images.flatten(0, 1)[order]), flat[order], **CLOSE)


def test_shared_features_do_not_depend_on_the_edit(host):
    images, edit = pictures(DEVICES, EACH), random_edit(host, DEVICES)
    with torch.no_grad():
        same = torch.equal(host.features(images, edit), host.features(images))
    assert same == host.shared_features


def test_the_context_is_of_the_host_without_an_edit(host):
    with torch.no_grad():
        features = host.features(pictures(DEVICES, EACH))
        context = host.context_features(features)
        belief = host.classify(features).softmax(-1)
    assert torch.equal(context[..., : host.feature_dim], features)
    assert torch.equal(context[..., host.feature_dim :], belief)


def test_own_statistics_are_those_of_each_device(host):
    images = pictures(DEVICES, EACH)
    with torch.no_grad(), own_statistics(prior=4.0):
        together = host(images)
        alone = torch.stack([host(images[i : i + 1])[0] for i in range(DEVICES)])
        rows = torch.stack([host(images[i]) for i in range(DEVICES)])
    torch.testing.assert_close(together, alone, **CLOSE)
    torch.testing.assert_close(together, rows, **CLOSE)
    assert not torch.allclose(together, logits(host, images), **CLOSE)


def test_a_large_prior_is_the_host(host):
    images = pictures(DEVICES, EACH)
    with torch.no_grad(), own_statistics(prior=1e9):
        torch.testing.assert_close(host(images), logits(host, images), **CLOSE)


def test_the_unit_of_a_bound_is_never_zero(host):
    """Fresh shifts are: an edit in units of them could not move."""
    assert (host.weight_scales() > 0).all()


def test_other_images_and_edits_are_refused(host):
    with pytest.raises(MismatchError, match="3 channels, but the host reads 1"):
        host.features(pictures(2, channels=3))
    if not host.shared_features:
        with pytest.raises(MismatchError, match="the edit is for 2 devices, but the images are of 3"):
            host(pictures(DEVICES, EACH), random_edit(host, 2))


def test_a_state_dict_serves_every_choice_of_adaptive_layers():
    source = small_host("mobilenet_v3_small", "classifier")
    for adaptive in ("norms", "all"):
        other = fresh_host("mobilenet_v3_small", adaptive, seed=1)
        other.load_state_dict(source.state_dict())
        assert torch.equal(logits(other, pictures(4)), logits(source, pictures(4)))


def test_colour_images():
    torch.manual_seed(0)
    host = make_host(small_config(channels=3)).eval()
    assert host.features(pictures(2, channels=3)).shape == (2, host.feature_dim)
