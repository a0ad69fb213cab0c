"""A device's bank says what the cloud's bank says."""

import shutil

import numpy as np
import pytest
import torch

from persona.arrays import arrays_to_bytes
from persona.device.bank import FILES, DeviceBank, check_version, pack_bank, read_bank, unpack_bank
from persona.errors import FormatError, MismatchError
from persona.prototypes import receive, save_bank
from persona.storage import read_json, write_json
from tests.persona.device.world import message
from tests.persona.prototypes.world import by_head, codes, partition


def _flat(changes):
    return np.concatenate([np.append(c.weight.ravel(), [] if c.bias is None else c.bias) for c in changes.values()])


@by_head
def test_prototypes_are_those_of_the_cloud(bundles, head):
    bank, own = partition(head).bank, bundles[head].bank
    assert own.version == bank.version
    assert len(own) == len(bank)
    for j in range(len(bank)):
        bounded = own.region.bounded(own.prototype(j))
        assert np.allclose(_flat(bounded), bank.prototype(j).flat()[0].numpy(), atol=1e-6)
    with pytest.raises(FormatError, match="is not in this bank"):
        own.prototype(len(bank))


@by_head
def test_messages_mean_what_the_cloud_means(bundles, head):
    bank, own = partition(head).bank, bundles[head].bank
    for seed in range(5):
        data = message("basis", head, seed)
        index, changes = own.with_remainder(data)
        assert index == data[10]
        wanted = receive(bank, data, "basis").flat()[0].numpy()
        assert np.allclose(_flat(own.region.bounded(changes)), wanted, atol=1e-6)


def test_a_message_about_another_bank_is_refused(bundles):
    other = partition(k=3).bank
    from persona.prototypes.message import encode_remainders

    data = encode_remainders(other, torch.tensor([1]), torch.ones(1, 2))[0]
    with pytest.raises(MismatchError, match="fetch that bank"):
        bundles["full"].bank.with_remainder(data)


def test_more_directions_than_the_bank_has_are_refused(bundles):
    import struct
    import zlib

    own = bundles["full"].bank
    prefix = bytes.fromhex(own.version[:16])
    body = struct.pack("<cB8sBBf", b"P", 1, prefix, 0, 200, 0.1) + bytes(200)
    with pytest.raises(FormatError, match="more than the bank has"):
        own.with_remainder(body + struct.pack("<I", zlib.crc32(body)))


@pytest.mark.parametrize("name", FILES)
def test_every_damaged_file_is_noticed(bundles, folders, tmp_path, name):
    bundle = bundles["full"]
    folder = tmp_path / "bank"

    def load():
        return DeviceBank.load(folder, bundle.layers, bundle.host, bundle.region)

    shutil.copytree(folders["full"] / "bank", folder)
    whole = (folder / name).read_bytes()
    load()
    for broken in (whole[: len(whole) // 2], b"", whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]):
        (folder / name).write_bytes(broken)
        with pytest.raises(FormatError):
            load()
    (folder / name).unlink()
    with pytest.raises(FormatError, match=r"cannot be read"):
        load()


def test_a_bank_of_another_host_is_refused(bundles, folders, tmp_path):
    bundle, folder = bundles["full"], tmp_path / "bank"
    shutil.copytree(folders["full"] / "bank", folder)
    with pytest.raises(MismatchError, match="fetch the bank of this host"):
        DeviceBank.load(folder, bundle.layers, "b" * 64, bundle.region)


def test_settings_count_for_the_version(bundles, folders, tmp_path):
    bundle, folder = bundles["full"], tmp_path / "bank"
    shutil.copytree(folders["full"] / "bank", folder)
    header = read_json(folder / "bank.json")
    write_json(folder / "bank.json", header | {"bound": {"kind": "none", "tau": 1.0}})
    with pytest.raises(FormatError, match="changed or damaged"):
        DeviceBank.load(folder, bundle.layers, bundle.host, bundle.region)


def test_the_world_has_remaining_edits():
    assert len(partition().bank.basis) > 4
    assert codes(1, 5).abs().max() < 1


def test_a_bank_travels_as_one_message(tmp_path):
    save_bank(tmp_path / "bank", partition().bank)
    files = read_bank(tmp_path / "bank")
    assert unpack_bank(pack_bank(files)) == files
    check_version(files, partition().bank.version, "this bank")
    with pytest.raises(FormatError, match="changed or damaged"):
        check_version(files, partition(k=3).bank.version, "this bank")


@pytest.mark.parametrize("damage", [b"", b"nonsense", "cut", "other"])
def test_messages_that_hold_no_bank_are_refused(tmp_path, damage):
    save_bank(tmp_path / "bank", partition().bank)
    whole = pack_bank(read_bank(tmp_path / "bank"))
    other = arrays_to_bytes({"bank.json": np.zeros(3, np.uint8)}, {"format": "prototype bank files", "version": 1})
    with pytest.raises(FormatError, match="fetch it again"):
        unpack_bank({"cut": whole[:-1], "other": other}.get(damage, damage))
