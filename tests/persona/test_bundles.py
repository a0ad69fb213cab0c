"""Headers of bundles: what is missing, foreign or of another version is refused in one sentence."""

import pytest
import torch
from torch import nn

from persona.bundles import BundleFormat, load_state, read_bank
from persona.errors import DataError, FormatError, MismatchError
from persona.storage import digest_tensors, save_tensors, write_json

FORMAT = BundleFormat("toy", "toy.json", {1: ("a",), 2: ("a", "b")}, "make one first")


def test_a_header_of_any_readable_version(tmp_path):
    for version, more in ((1, {}), (2, {"b": 3})):
        header = {"format": "toy", "version": version, "a": 1, **more}
        write_json(tmp_path / "toy.json", header)
        assert FORMAT.read(tmp_path) == header


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        ({"format": "toy", "version": 2, "a": 1}, "toy.json lacks 'b': release the bundle again"),
        ({"format": "toy", "version": 3}, "has format 'toy' version 3, but 'toy' version 1 or 2 is needed"),
        ({"format": "other", "version": 1}, "has format 'other'"),
        ([1, 2], "has format None"),
    ],
)
def test_other_headers_are_refused(tmp_path, header, sentence):
    write_json(tmp_path / "toy.json", header)
    with pytest.raises(FormatError, match=sentence):
        FORMAT.read(tmp_path)


def test_a_folder_without_a_header(tmp_path):
    with pytest.raises(DataError, match=r"holds no bundle \(no toy.json\): make one first"):
        FORMAT.read(tmp_path)


def test_parameters_of_another_host_or_digest_are_refused(tmp_path):
    layer, path = nn.Linear(2, 2), tmp_path / "layer.safetensors"
    digest = digest_tensors(layer.state_dict())
    save_tensors(path, layer.state_dict(), {"host": "h"})
    other = nn.Linear(2, 2)
    load_state(other, path, "h", digest)
    assert torch.equal(other.weight, layer.weight)
    with pytest.raises(MismatchError, match="another host"):
        load_state(other, path, "i", digest)
    with pytest.raises(FormatError, match="digest differs"):
        load_state(other, path, "h", "0" * 64)
    with pytest.raises(FormatError, match="does not fit"):
        load_state(nn.Linear(3, 2), path, "h", digest)


def test_a_bank_needs_an_editor(tmp_path):
    assert read_bank(tmp_path, "h", None, edited=False) is None
    with pytest.raises(FormatError, match="without an editor"):
        read_bank(tmp_path, "h", "v", edited=False)
