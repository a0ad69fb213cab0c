import pytest
import torch

from persona.errors import FormatError
from persona.storage import (
    atomic_file,
    atomic_folder,
    digest_tensors,
    load_tensors,
    read_json,
    save_tensors,
    write_json,
)


def test_digest_depends_on_names_types_shapes_and_values_only():
    a = {"w": torch.arange(6.0), "b": torch.zeros(2)}
    assert digest_tensors(a) == digest_tensors(dict(reversed(a.items())))
    assert len(digest_tensors(a)) == 64
    others = [
        {"v": a["w"], "b": a["b"]},
        {"w": a["w"].double(), "b": a["b"]},
        {"w": a["w"].reshape(2, 3), "b": a["b"]},
        {"w": a["w"] + torch.eye(6)[5] * 1e-6, "b": a["b"]},
    ]
    digests = {digest_tensors(x) for x in others}
    assert len(digests) == 4
    assert digest_tensors(a) not in digests
    assert digest_tensors({"w": torch.arange(12.0)[::2]}) == digest_tensors({"w": torch.arange(12.0)[::2].clone()})


def test_tensors_and_header_round_trip(tmp_path):
    save_tensors(tmp_path / "x.safetensors", {"a": torch.eye(3)}, {"n": 1, "text": "é"})
    tensors, header = load_tensors(tmp_path / "x.safetensors")
    assert torch.equal(tensors["a"], torch.eye(3))
    assert header == {"n": 1, "text": "é"}


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(ZeroDivisionError), atomic_file(path) as temporary:
        1 / temporary.write_text("")
    assert read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_folders_are_replaced_whole_or_not_at_all(tmp_path):
    target = tmp_path / "folder"
    for text in ("one", "two"):
        with atomic_folder(target) as folder:
            (folder / text).touch()
    assert [p.name for p in target.iterdir()] == ["two"]
    with pytest.raises(FileNotFoundError), atomic_folder(target) as folder:
        (folder / "missing" / "three").touch()
    assert [p.name for p in target.iterdir()] == ["two"]
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_unreadable_files_say_so(tmp_path):
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(FormatError, match=r"bad\.json is not valid JSON"):
        read_json(tmp_path / "bad.json")
    with pytest.raises(FormatError, match=r"none\.json cannot be read"):
        read_json(tmp_path / "none.json")
    (tmp_path / "bad.safetensors").write_bytes(b"junk")
    with pytest.raises(FormatError, match=r"bad\.safetensors"):
        load_tensors(tmp_path / "bad.safetensors")
