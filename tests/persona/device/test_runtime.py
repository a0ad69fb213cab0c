"""A device answers as torch does, takes nothing that could harm it, and comes back as it was."""

import json
import shutil
import struct
import threading

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given
from hypothesis import strategies as st

from persona.device import Device, DeviceBundle
from persona.device.bank import pack_bank, read_bank
from persona.device.state import EDIT, PROTOTYPE, StateFolder
from persona.edit_format import encode_edit
from persona.edits import Edit
from persona.errors import ConfigError, DataError, FormatError, MismatchError, PersonaError
from persona.export import write_device_bundle
from persona.prototypes import save_bank
from persona.wire import MESSAGE_LEVELS
from tests.persona.device.world import X, device_model, edit, make_bundle, message, under
from tests.persona.prototypes.world import by_head, editor, partition
from tests.persona.toy import HOST, SPECS, random_edit


def _answer(device):
    return device.run({"x": X}).arrays["y"]


@by_head
@pytest.mark.parametrize("level", MESSAGE_LEVELS[1:])
def test_answers_are_those_of_torch(bundles, head, level):
    device = Device(bundles[head])
    assert np.allclose(_answer(device), under(None), atol=1e-5)
    assert device.level == "host"
    received = device.receive(message(level, head), level)
    assert (received.level, received.kept, received.size) == (level, False, len(message(level, head)))
    assert np.allclose(_answer(device), under(edit(level, head)), atol=1e-5)
    assert not np.allclose(_answer(device), under(None), atol=1e-3)
    assert np.allclose(device.run({"x": X}, plain=True).arrays["y"], under(None), atol=1e-5)
    device.receive(b"", "host")
    assert np.array_equal(_answer(device), _answer(Device(bundles[head])))


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
@pytest.mark.parametrize("rank", [0, 1, 3])
def test_every_encoding_of_an_edit_is_read(bundles, precision, rank):
    from persona.edit_format import decode_edit

    full = random_edit(1, seed=3)
    data = encode_edit(full.low_rank(rank) if rank else full, precision)
    device = Device(bundles["full"])
    device.receive(data, "full")
    assert np.allclose(_answer(device), under(editor().bounded(decode_edit(data))), atol=1e-5)


@pytest.mark.parametrize("kind", ["tanh", "clip", "frobenius", "none"])
def test_every_bound_is_the_one_of_the_method(tmp_path, folders, kind):
    from persona.bounds import Bound

    folder = tmp_path / "bundle"
    shutil.copytree(folders["full"], folder)
    header = json.loads((folder / "device.json").read_text())
    scales = torch.tensor(header["bound"]["scales"])
    header["bound"] |= {"kind": kind, "tau": 0.5}
    header["bank_version"] = ""
    (folder / "device.json").write_text(json.dumps(header))
    device = Device(DeviceBundle.load(folder))
    wide = random_edit(1, seed=3, scale=0.2)
    device.receive(encode_edit(wide), "full")
    assert np.allclose(_answer(device), under(Bound(kind, 0.5).apply(wide, scales)), atol=1e-5)


def _changed(data, change):
    """An encoded edit with other arrays or another header."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["persona"])
    arrays = safetensors.numpy.load(data)
    change(arrays, header)
    return safetensors.numpy.save(arrays, metadata={"persona": json.dumps(header)})


def _set(name, value):
    def change(arrays, header):
        arrays[name] = value(arrays[name])

    return change


HOSTILE = {
    "not a number": _set("0/weight", lambda a: a * np.nan),
    "infinite": _set("2/bias", lambda a: a + np.inf),
    "beyond float32": _set("0/weight", lambda a: (a.astype(np.float64) * 1e300).astype(np.float64)),
    "a bias outside of the region": _set("2/bias", lambda a: a + 1e6),
    "another shape": _set("0/weight", lambda a: a[:, :-1]),
    "two devices": _set("0/weight", lambda a: np.repeat(a, 2, 0)),
    "transposed": _set("0/weight", lambda a: np.ascontiguousarray(a.transpose(0, 2, 1))),
    "whole numbers": _set("0/weight", lambda a: a.astype(np.int64)),
    "int8 without a scale": _set("0/weight", lambda a: a.astype(np.int8)),
    "a layer missing": lambda arrays, header: arrays.pop("0/weight"),
    "a layer unknown": lambda arrays, header: header["layers"].update({"9": "dense"}),
    "layers of no kind": lambda arrays, header: header.update(layers={"0": "magic", "2": "dense"}),
    "layers no mapping": lambda arrays, header: header.update(layers=[1, 2]),
    "another host": lambda arrays, header: header.update(host="b" * 64),
    "no host": lambda arrays, header: header.pop("host"),
    "another version": lambda arrays, header: header.update(version=99),
    "another format": lambda arrays, header: header.update(format="bank"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_edit_changes_nothing(bundles, tmp_path, name):
    device = Device(bundles["full"], tmp_path)
    device.receive(message("basis"), "basis")
    before, kept = _answer(device), StateFolder(tmp_path).recall(EDIT)
    with pytest.raises(PersonaError) as refused:
        device.receive(_changed(message("full"), HOSTILE[name]), "full")
    assert isinstance(refused.value, MismatchError if "host" in name else FormatError)
    assert np.array_equal(_answer(device), before)
    assert device.level == "basis"
    assert StateFolder(tmp_path).recall(EDIT) == kept


def test_a_change_of_nothing_is_accepted(bundles):
    """The helper above makes messages that fail for the reason they name, and for no other."""
    device = Device(bundles["full"])
    device.receive(_changed(message("full"), lambda arrays, header: None), "full")
    assert device.level == "full"


def test_every_truncation_and_oversize_is_refused(bundles):
    device = Device(bundles["full"])
    for level in MESSAGE_LEVELS[1:]:
        data = message(level)
        for cut in {*range(min(len(data), 60)), len(data) // 2, len(data) - 1}:
            with pytest.raises(FormatError):
                device.receive(data[:cut] if cut or level != "prototype" else b"", level)
        with pytest.raises(FormatError):
            device.receive(data + b"x", level)
    with pytest.raises(FormatError, match="more than any edit"):
        device.receive(bytes(1 << 20), "full")
    with pytest.raises(FormatError, match="is not in this bank"):
        device.receive(b"\xff", "prototype")
    with pytest.raises(ConfigError, match="unknown serving level"):
        device.receive(b"", "prototpye")
    assert device.level == "host"


def test_a_scale_that_is_not_finite_is_refused(bundles):
    import zlib

    data = message("basis")
    for scale in (float("nan"), float("inf"), 3e38):
        body = data[:12] + struct.pack("<f", scale) + data[16:-4]
        device = Device(bundles["full"])
        # A tanh keeps weights of any size inside the bound; the biases give a hostile scale away.
        with pytest.raises(FormatError, match=r"not finite|beyond"):
            device.receive(body + struct.pack("<I", zlib.crc32(body)), "basis")


@given(data=st.binary(max_size=300), level=st.sampled_from(MESSAGE_LEVELS[1:]))
def test_any_bytes_are_refused_with_a_sentence(bundles, data, level):
    device = Device(bundles["full"])
    if level == "prototype" and len(data) == 1 and data[0] < len(bundles["full"].bank):
        return
    with pytest.raises(PersonaError):
        device.receive(data, level)


@given(place=st.integers(0, 10_000), bit=st.integers(0, 7), level=st.sampled_from(["basis", "full"]))
def test_a_flipped_bit_is_refused_or_harmless(bundles, place, bit, level):
    data = bytearray(message(level))
    data[place % len(data)] ^= 1 << bit
    device = Device(bundles["full"])
    try:
        device.receive(bytes(data), level)
    except PersonaError:
        assert device.level == "host"
    assert np.isfinite(_answer(device)).all()


@by_head
@pytest.mark.parametrize("level", MESSAGE_LEVELS[1:])
def test_a_restart_changes_nothing(bundles, tmp_path, head, level):
    device = Device(bundles[head], tmp_path)
    assert device.receive(message(level, head), level).kept
    again = Device(bundles[head], tmp_path)
    assert (again.level, again.notes) == (level, [])
    assert np.array_equal(_answer(again), _answer(device))
    again.receive(b"", "host")
    assert Device(bundles[head], tmp_path).level == "host"


def test_levels_fall_back_from_edit_to_prototype_to_host(bundles, tmp_path):
    state = StateFolder(tmp_path)
    device = Device(bundles["full"], tmp_path)
    device.receive(message("basis"), "basis")
    index = message("basis")[10]
    whole = state.path(EDIT).read_bytes()
    for broken in (whole[: len(whole) // 2], b"", whole[:-1] + bytes([whole[-1] ^ 1])):
        state.path(EDIT).write_bytes(broken)
        again = Device(bundles["full"], tmp_path)
        assert again.level == "prototype"
        assert len(again.notes) == 1
        assert np.allclose(_answer(again), under(partition().bank.prototype(index)), atol=1e-5)
    state.path(PROTOTYPE).write_bytes(b"half")
    again = Device(bundles["full"], tmp_path)
    assert (again.level, len(again.notes)) == ("host", 2)
    assert np.allclose(_answer(again), under(None), atol=1e-5)


def test_a_crash_while_writing_leaves_the_last_good_edit(bundles, tmp_path, monkeypatch):
    device = Device(bundles["full"], tmp_path)
    device.receive(message("full", seed=1), "full")
    before = _answer(device)
    monkeypatch.setattr("pathlib.Path.replace", lambda self, target: (_ for _ in ()).throw(OSError(28, "disk full")))
    received = device.receive(message("full", seed=2), "full")
    assert not received.kept
    assert "disk full" in device.notes[-1]
    assert not np.array_equal(_answer(device), before)
    monkeypatch.undo()
    assert np.array_equal(_answer(Device(bundles["full"], tmp_path)), before)
    assert [path.name for path in tmp_path.iterdir()] == ["edit.safetensors"]


def test_what_was_kept_for_another_host_or_bank_is_not_used(bundles, folders, tmp_path):
    for level in ("prototype", "basis"):
        Device(bundles["full"], tmp_path / level).receive(message(level), level)
        other = Device(bundles["low_rank"], tmp_path / level)  # the same host with another bank
        assert other.level == "host"
        assert len(other.notes) == 2
    moved = tmp_path / "bundle"
    shutil.copytree(folders["full"], moved)
    state = StateFolder(tmp_path / "prototype")
    from dataclasses import replace

    state.keep(EDIT, replace(state.recall(EDIT), host="b" * 64))
    state.path(PROTOTYPE).unlink()
    assert Device(bundles["full"], tmp_path / "prototype").level == "host"


def test_a_new_bank_is_installed_kept_and_used(bundles, tmp_path):
    other = partition(k=3).bank
    save_bank(tmp_path / "new", other)
    device = Device(bundles["full"], tmp_path / "state")
    device.receive(message("prototype"), "prototype")
    device.install_bank(tmp_path / "new")
    assert device.bank.version == other.version
    with pytest.raises(MismatchError, match="fetch that bank"):
        device.receive(message("basis"), "basis")
    device.receive(b"\x02", "prototype")
    again = Device(bundles["full"], tmp_path / "state")
    assert again.bank.version == other.version
    assert np.allclose(_answer(again), under(other.prototype(2)), atol=1e-5)
    kept = StateFolder(tmp_path / "state").banks()
    assert len(kept) == 1
    (kept[0] / "bank.json").write_text("{")
    fallen = Device(bundles["full"], tmp_path / "state")
    assert fallen.bank.version == partition().bank.version
    assert (fallen.level, len(fallen.notes)) == ("host", 3)


def test_a_damaged_bank_is_not_installed(bundles, folders, tmp_path):
    broken = tmp_path / "new"
    shutil.copytree(folders["full"] / "bank", broken)
    (broken / "basis.safetensors").write_bytes(b"")
    device = Device(bundles["full"], tmp_path / "state")
    with pytest.raises(FormatError):
        device.install_bank(broken)
    assert device.bank.version == partition().bank.version
    assert not StateFolder(tmp_path / "state").banks()


def test_a_bundle_without_a_bank_takes_full_edits_alone(folders, tmp_path):
    shutil.copytree(folders["full"], tmp_path / "bundle")
    path = tmp_path / "bundle" / "device.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"bank_version": ""}))
    device = Device(DeviceBundle.load(tmp_path / "bundle"))
    with pytest.raises(FormatError, match="ask for 'full'"):
        device.receive(b"\x00", "prototype")
    device.receive(message("full"), "full")
    assert device.level == "full"


def test_input_that_does_not_fit_is_refused(bundles):
    device = Device(bundles["full"])
    for wrong in ({}, {"x": X.astype(np.int64)}, {"x": X[:, :3]}, {"y": X}):
        with pytest.raises(DataError, match="it reads x float32"):
            device.run(wrong)
    huge = np.full((1, 5), 3e38, dtype=np.float32)
    assert device.run({"x": huge}).level == "host"


def test_threads_see_one_edit_or_the_other(bundles):
    device = Device(bundles["full"])
    messages = [message("full", seed=s) for s in (1, 2)]
    device.receive(messages[0], "full")
    wanted = [under(edit("full", seed=s)) for s in (1, 2)]
    stop, wrong = threading.Event(), []

    def ask():
        while not stop.is_set():
            got = _answer(device)
            if not any(np.allclose(got, w, atol=1e-5) for w in wanted):
                wrong.append(got)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for turn in range(100):
        device.receive(messages[turn % 2], "full")
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_zero_edit_is_the_host_to_the_bit(bundles):
    device = Device(bundles["full"])
    before = _answer(device)
    device.receive(encode_edit(Edit.zeros(SPECS, host=HOST)), "full")
    assert np.array_equal(_answer(device), before)


def test_bundles_are_made_where_nothing_was(tmp_path):
    assert (make_bundle(tmp_path / "deep" / "bundle") / "device.json").is_file()


def test_weights_may_be_constants_of_the_graph(tmp_path):
    write_device_bundle(device_model(constant=True), tmp_path / "bundle")
    bundle = DeviceBundle.load(tmp_path / "bundle")
    assert [entry.name for entry in bundle.plain.session.get_inputs()] == ["x"]
    device = Device(bundle, tmp_path / "state")
    assert np.allclose(_answer(device), under(None), atol=1e-5)
    for seed in (1, 2):
        device.receive(message("full", seed=seed), "full")
        assert np.allclose(_answer(device), under(edit("full", seed=seed)), atol=1e-5)
    assert np.allclose(device.run({"x": X}, plain=True).arrays["y"], under(None), atol=1e-5)
    assert np.allclose(_answer(Device(bundle, tmp_path / "state")), under(edit("full", seed=2)), atol=1e-5)


def test_a_bank_from_the_cloud_is_kept_and_used(bundles, tmp_path):
    other = partition(k=3).bank
    save_bank(tmp_path / "new", other)
    message_of_bank = pack_bank(read_bank(tmp_path / "new"))
    device = Device(bundles["full"], tmp_path / "state")
    assert device.receive_bank(message_of_bank) == other.version
    device.receive(b"\x02", "prototype")
    again = Device(bundles["full"], tmp_path / "state")
    assert (again.bank.version, again.level) == (other.version, "prototype")
    flipped = bytearray(message_of_bank)
    flipped[-1] ^= 1
    with pytest.raises(FormatError, match="changed or damaged"):
        again.receive_bank(bytes(flipped))
    assert again.bank.version == other.version


def test_a_bank_that_cannot_be_kept_is_used_all_the_same(bundles, tmp_path):
    save_bank(tmp_path / "new", partition(k=3).bank)
    (tmp_path / "state").write_text("a file where the folder should be")
    device = Device(bundles["full"], tmp_path / "state")
    device.install_bank(tmp_path / "new")
    assert device.bank.version == partition(k=3).bank.version
    assert "could not be kept" in device.notes[-1]
