"""What a device bundle holds, and what is said where something of it is wrong."""

import json
import shutil

import numpy as np
import pytest

from persona.device import DeviceBundle
from persona.errors import ConfigError, DataError, FormatError, MismatchError
from persona.export import write_device_bundle
from persona.prototypes import PrototypeBank
from tests.persona.device.world import device_model, edit
from tests.persona.prototypes.world import partition


@pytest.fixture
def folder(folders, tmp_path):
    return shutil.copytree(folders["full"], tmp_path / "bundle")


def _rewrite(folder, **changes):
    path = folder / "device.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_bundle_says_what_it_is(bundles):
    bundle = bundles["full"]
    assert (bundle.task, bundle.settings, bundle.files["words.txt"]) == ("toy", {"size": 5}, b"one two")
    assert bundle.policy.threshold == 0.5
    assert bundle.edit_bytes == 4 * (5 * 6 + 6 + 6 * 3 + 3)
    bundle.expect("toy")
    with pytest.raises(MismatchError, match="is a bundle for toy, not for cooking"):
        bundle.expect("cooking")


def test_the_region_trusts_what_the_editor_makes_and_little_more(bundles):
    region = bundles["full"].region
    largest = max(float(edit("full", seed=s).norm()) for s in range(20))
    assert largest < region.largest < 20 * largest


@pytest.mark.parametrize("name", ["graph.onnx", "adaptive.safetensors", "policy.safetensors", "words.txt"])
def test_every_damaged_file_is_named(folder, name):
    whole = (folder / name).read_bytes()
    for broken in (whole[:-1], b"", whole[:-1] + bytes([whole[-1] ^ 1])):
        (folder / name).write_bytes(broken)
        with pytest.raises(FormatError, match=rf"{name} is damaged"):
            DeviceBundle.load(folder)
    (folder / name).unlink()
    with pytest.raises(FormatError, match=rf"{name} cannot be read"):
        DeviceBundle.load(folder)


def test_a_damaged_header_is_refused(folder):
    whole = (folder / "device.json").read_text()
    (folder / "device.json").write_text(whole[: len(whole) // 2])
    with pytest.raises(FormatError, match="not valid JSON"):
        DeviceBundle.load(folder)
    (folder / "device.json").unlink()
    with pytest.raises(DataError, match="persona export"):
        DeviceBundle.load(folder)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"version": 2}, "update the device's release"),
        ({"format": "x"}, "has format 'x'"),
        ({"layers": [{"name": "0"}]}, "is damaged"),
        ({"layers": 3}, "is damaged"),
        ({"bound": {"kind": "tanh"}}, "is damaged"),
        ({"files": {}}, "does not list its files"),
        ({"files": []}, "does not list its files"),
    ],
)
def test_a_header_of_another_make_is_refused(folder, changes, sentence):
    _rewrite(folder, **changes)
    with pytest.raises(FormatError, match=sentence):
        DeviceBundle.load(folder)


def test_parts_of_other_bundles_are_refused(folder, folders):
    _rewrite(folder, bank_version="0" * 64)
    with pytest.raises(MismatchError, match="bank of another bundle"):
        DeviceBundle.load(folder)
    _rewrite(folder, host="b" * 64)
    with pytest.raises(MismatchError, match="belongs to another host"):
        DeviceBundle.load(folder)


def test_a_header_cannot_reach_outside_of_its_folder(folder):
    digests = json.loads((folder / "device.json").read_text())["files"]
    _rewrite(folder, files=digests | {"../secret": "0" * 64})
    with pytest.raises(FormatError, match="outside of its folder"):
        DeviceBundle.load(folder)


def test_a_graph_of_another_runtime_says_so(folder):
    _rewrite(folder, graph="executorch")
    with pytest.raises(DataError, match="--format onnx"):
        DeviceBundle.load(folder)


def test_an_export_that_cannot_be_made_leaves_nothing(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'onnx'"):
        write_device_bundle(device_model(), tmp_path / "bundle", "onx")
    with pytest.raises(MismatchError, match="belongs to another host"):
        write_device_bundle(device_model(host="b" * 64), tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


def test_executorch_is_asked_for_where_it_is_missing(tmp_path, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "executorch" else find(name))
    with pytest.raises(ConfigError, match="pip install executorch"):
        write_device_bundle(device_model(), tmp_path / "bundle", "executorch")
    assert not list(tmp_path.iterdir())


def test_the_bank_travels_as_it_is(folders):
    from persona.prototypes import load_bank

    bank = load_bank(folders["full"] / "bank")
    assert isinstance(bank, PrototypeBank)
    assert bank.version == partition().bank.version


def test_weights_are_those_of_the_host(bundles):
    model = device_model(bank=None, policy=None)
    for name, layer in model.layers.layers.items():
        assert np.array_equal(bundles["full"].weights[f"{name}.weight"], layer.weight.detach().numpy().T)
        assert np.array_equal(bundles["full"].weights[f"{name}.bias"], layer.bias.detach().numpy())
