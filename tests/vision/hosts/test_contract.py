"""What every host keeps."""

import copy

import pytest
import torch
from torch import nn

from persona.edits import Edit
from persona.errors import MismatchError
from tests.vision.hosts.common import (
    CASES,
    CLASSES,
    DEVICES,
    EACH,
    SIZE,
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


@pytest.fixture(params=CASES, ids="-".join)
def host(request) -> Host:
    return small_host(*request.param)


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


@pytest.mark.parametrize("batch", [1, DEVICES])
def test_a_zero_edit_is_no_edit_bit_for_bit(host, batch):
    images, zero = pictures(DEVICES, EACH), Edit.zeros(host.adaptive.specs, batch)
    assert torch.equal(logits(host, images, zero), logits(host, images))


def test_batched_edits_equal_single_edits(host):
    images, edit = pictures(DEVICES, EACH), random_edit(host, DEVICES)
    batched = logits(host, images, edit)
    assert (batched - logits(host, images)).abs().amax(dim=(1, 2)).min() > 1e-3
    for i in range(DEVICES):
        torch.testing.assert_close(batched[i], logits(host, images[i], edit[i]), **CLOSE)
        torch.testing.assert_close(batched[i : i + 1], logits(host, images[i : i + 1], edit[i]), **CLOSE)


def test_one_edit_an_image(host):
    images, edit = pictures(DEVICES), random_edit(host, DEVICES)
    rows = logits(host, images, edit)
    for i in range(DEVICES):
        torch.testing.assert_close(rows[i : i + 1], logits(host, images[i : i + 1], edit[i]), **CLOSE)


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_an_edit_equals_changed_weights(case):
    host = small_host(*case)
    changed, edit, images = copy.deepcopy(host), random_edit(host, 1), pictures(4)
    for name, layer in changed.adaptive.layers.items():
        change = edit.layers[name].dense()
        layer.weight.data += change.weight[0].T
        if change.bias is not None:
            layer.bias.data += change.bias[0]
    torch.testing.assert_close(logits(host, images, edit), logits(changed, images), **CLOSE)


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


def test_shared_and_adaptive_parameters_are_all_parameters(host):
    shared, adaptive = ({id(p) for p in part} for part in (host.shared_parameters(), host.adaptive_parameters()))
    assert not shared & adaptive
    assert shared | adaptive == {id(p) for p in host.parameters()}


def test_the_gradient_reaches_an_edit(host):
    flat = torch.zeros(DEVICES, sum(s.parameters for s in host.adaptive.specs), requires_grad=True)
    host(pictures(DEVICES, EACH), Edit.from_flat(flat, host.adaptive.specs)).square().sum().backward()
    for name, layer in Edit.from_flat(flat.grad, host.adaptive.specs).layers.items():
        assert (layer.dense().weight.abs().amax(dim=(1, 2)) > 0).all(), name
    for p in host.parameters():
        p.grad = None


@pytest.mark.parametrize("case", CASES[:4], ids="-".join)
def test_every_parameter_learns(case):
    host = fresh_host(*case).train()
    before = copy.deepcopy(host.state_dict())
    optimiser = torch.optim.Adam(host.parameters(), 1e-3)
    for step in range(2):
        optimiser.zero_grad()
        out = host(pictures(8, seed=step))
        nn.functional.cross_entropy(out, torch.arange(8) % CLASSES).backward()
        optimiser.step()
    still = [name for name, tensor in host.state_dict().items() if torch.equal(tensor, before[name])]
    assert still == []


def test_the_unit_of_a_bound_is_never_zero(host):
    """Fresh shifts are: an edit in units of them could not move."""
    assert (host.weight_scales() > 0).all()


def test_other_images_and_edits_are_refused(host):
    with pytest.raises(MismatchError, match="3 channels, but the host reads 1"):
        host.features(pictures(2, channels=3))
    if not host.shared_features:
        with pytest.raises(MismatchError, match="the edit is for 2 devices, but the images are of 3"):
            host(pictures(DEVICES, EACH), random_edit(host, 2))


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_a_seed_determines_the_host(case):
    first, again, other = fresh_host(*case), fresh_host(*case), fresh_host(*case, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(logits(first, pictures(2)), logits(other, pictures(2)))


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


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_a_device_model_exports(case):
    class Device(nn.Module):
        """One device: images and an edit in, logits out."""

        def __init__(self, host: Host) -> None:
            super().__init__()
            self.host = host

        def forward(self, images, flat):
            return self.host(images, Edit.from_flat(flat, self.host.adaptive.specs))

    host = small_host(*case)
    device = Device(host)

    def arguments(seed: int) -> tuple[torch.Tensor, ...]:
        return pictures(2, seed=seed), random_edit(host, 1, seed=seed).flat()

    with torch.no_grad():
        exported = torch.export.export(device, arguments(0)).module()
        for seed in (0, 1):
            torch.testing.assert_close(exported(*arguments(seed)), device(*arguments(seed)), **CLOSE)
    assert pictures(2).shape[-1] == SIZE
