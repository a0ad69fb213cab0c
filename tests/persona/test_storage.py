import os
import shutil

import pytest
import torch

from persona import storage
from persona.errors import FormatError
from persona.storage import (
    atomic_file,
    atomic_folder,
    digest_tensors,
    load_tensors,
    read_json,
    remove_folders,
    save_tensors,
    sweep,
    write_json,
)
from tests.persona.killing import kill_points


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


def _write(target, text, files=3):
    with atomic_folder(target) as folder:
        (folder / "inner").mkdir()
        for i in range(files):
            (folder / "inner" / f"{i}.txt").write_text(text)


def _whole(target, files=3):
    """The text that every file has, and no other than these files is there."""
    found = sorted(target.rglob("*.txt"))
    assert [path.name for path in found] == [f"{i}.txt" for i in range(files)]
    (text,) = {path.read_text() for path in found}
    return text


def test_a_killed_write_leaves_the_old_folder_or_the_new_one_whole(tmp_path):
    target, seen = tmp_path / "folder", []

    def prepare():
        shutil.rmtree(tmp_path)
        _write(target, "old")

    for _ in kill_points(prepare, lambda: _write(target, "new")):
        seen.append(_whole(target))
        write_json(tmp_path / "next.json", 1)  # the next write beside it sweeps what was left
        assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "next.json"]
        assert _whole(target) == seen[-1]
    assert len(seen) > 8
    assert seen == sorted(seen, reverse=True)
    assert set(seen) == {"old", "new"}


def test_a_killed_write_leaves_the_old_file_or_the_new_one(tmp_path):
    path = tmp_path / "x.json"
    killed = kill_points(lambda: write_json(path, "old"), lambda: write_json(path, "new"))
    seen = [read_json(path) for _ in killed]
    assert seen == sorted(seen, reverse=True)
    assert set(seen) == {"old", "new"}
    write_json(path, "old")
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_folders_are_removed_each_at_once_and_in_turn(tmp_path):
    folders = [tmp_path / name for name in "abc"]

    def prepare():
        for folder in folders:
            _write(folder, "old")

    for _ in kill_points(prepare, lambda: remove_folders(folders)):
        left = [folder for folder in folders if folder.exists()]
        assert left == folders[len(folders) - len(left) :]
        assert all(_whole(folder) == "old" for folder in left)
        sweep(tmp_path)
        assert sorted(tmp_path.iterdir()) == left
    assert not left


def test_where_the_system_cannot_exchange_a_folder_comes_back(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "_RENAME_EXCHANGE", 1 << 20)  # flags that no system knows
    target = tmp_path / "folder"

    def prepare():
        shutil.rmtree(tmp_path)
        _write(target, "old")

    seen, missing = [], 0
    for _ in kill_points(prepare, lambda: _write(target, "new")):
        missing += not target.exists()
        sweep(tmp_path)
        seen.append(_whole(target))
        assert [p.name for p in tmp_path.iterdir()] == ["folder"]
    assert missing == 1
    assert set(seen) == {"old", "new"}


def test_what_another_process_is_writing_stays(tmp_path):
    with atomic_folder(tmp_path / "a") as folder:
        (folder / "x").touch()
        child = os.fork()
        if not child:
            sweep(tmp_path)
            os._exit(0)
        os.waitpid(child, 0)
        write_json(tmp_path / "b.json", 1)
        assert (folder / "x").exists()
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["x"]


def test_a_file_and_a_link_are_replaced_by_a_folder(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere")
    for name in ("file", "link"):
        _write(tmp_path / name, "new")
        assert _whole(tmp_path / name) == "new"
        assert not (tmp_path / name).is_symlink()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["elsewhere", "file", "link"]
    assert not list((tmp_path / "elsewhere").iterdir())
