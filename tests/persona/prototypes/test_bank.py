import dataclasses

import pytest
import torch

from persona.bounds import Bound
from persona.errors import ConfigError, FormatError, MismatchError
from persona.prototypes import load_bank, same_prototypes, save_bank
from persona.prototypes.algebra import to_dtype
from persona.storage import load_tensors, read_json, save_tensors, write_json
from tests.persona.prototypes.world import by_head, editor, metric, partition


def _bank(head="full"):
    return partition(head).bank


@by_head
def test_round_trip(tmp_path, head):
    bank = _bank(head)
    save_bank(tmp_path / "bank", bank)
    loaded = load_bank(tmp_path / "bank", bank.host)
    assert loaded.version == bank.version
    assert same_prototypes(loaded, bank)
    assert torch.equal(loaded.centres, bank.centres)
    assert torch.equal(loaded.basis.directions.flat(), bank.basis.directions.flat())
    assert loaded.metadata == bank.metadata


def test_the_version_is_that_of_everything_in_it():
    bank = _bank()
    moved = bank.prototypes.map(lambda t: t + 1e-6)
    changes = [
        {"prototypes": moved},
        {"centres": bank.centres + 1e-12},
        {"members": bank.members + 1},
        {"origin": bank.origin + 1},
        {"idle": bank.idle + 1},
        {"basis": dataclasses.replace(bank.basis, directions=bank.basis.directions * -1.0)},
        {"bound": Bound("clip", 1.0)},
        {"bound": Bound("tanh", 0.5)},
        {"weight_scales": bank.weight_scales * 2},
        {"editor": "e" * 64},
        {"parent": "f" * 64},
        {"metadata": {"kind": "other"}},
    ]
    versions = {dataclasses.replace(bank, **change).version for change in changes}
    assert len(versions | {bank.version}) == len(changes) + 1
    assert dataclasses.replace(bank).version == bank.version


def test_a_prototype_is_bounded_when_it_is_applied():
    bank = _bank()
    expected = editor().bounded(bank.prototypes[1])
    torch.testing.assert_close(bank.prototype(1).flat(), expected.flat())
    rows = bank.prototype(torch.tensor([1, 0, 1]))
    assert torch.equal(rows.flat()[0], rows.flat()[2])
    torch.testing.assert_close(rows.flat()[:1], expected.flat())


def test_what_a_bank_refuses():
    bank = _bank()
    with pytest.raises(ConfigError, match="1 to 256"):
        dataclasses.replace(bank, prototypes=bank.prototypes[torch.arange(257) % 4])
    with pytest.raises(MismatchError, match="agree"):
        dataclasses.replace(bank, members=bank.members[:2])
    with pytest.raises(MismatchError, match="editor"):
        bank.check(metric("low_rank"))
    dataclasses.replace(bank).check(metric())
    with pytest.raises(MismatchError, match="host"):
        dataclasses.replace(
            bank, prototypes=dataclasses.replace(bank.prototypes, host="b" * 64), basis=bank.basis
        ).check(metric())


def test_banks_of_other_hosts_are_refused(tmp_path):
    save_bank(tmp_path, _bank())
    with pytest.raises(MismatchError, match="was made for the host aaaaaaaaaaaa, not for bbbbbbbbbbbb"):
        load_bank(tmp_path, "b" * 64)


@pytest.mark.parametrize("file", ["prototypes.safetensors", "basis.safetensors", "bank.safetensors", "bank.json"])
@pytest.mark.parametrize("damage", ["missing", "cut", "bit", "exchanged"])
def test_damage_is_noticed(tmp_path, file, damage):
    save_bank(tmp_path / "a", _bank())
    path = tmp_path / "a" / file
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "bit":
        # The last byte that is a number: of a tensor, or of the version in the JSON file.
        at = len(data) - 2 if file != "bank.json" else data.index(b'"version"') + 14
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    else:
        save_bank(tmp_path / "b", partition(k=3).bank)
        path.write_bytes((tmp_path / "b" / file).read_bytes())
    with pytest.raises(FormatError):
        load_bank(tmp_path / "a")


@pytest.mark.parametrize("key", ["host", "bound", "editor", "parent", "metadata", "version", "format"])
def test_a_header_that_lacks_a_part_is_refused(tmp_path, key):
    save_bank(tmp_path, _bank())
    header = read_json(tmp_path / "bank.json")
    del header[key]
    write_json(tmp_path / "bank.json", header)
    with pytest.raises(FormatError):
        load_bank(tmp_path)


@pytest.mark.parametrize("name", ["energy", "centres", "extra"])
def test_other_tensors_than_a_banks_are_refused(tmp_path, name):
    save_bank(tmp_path, _bank())
    tensors, _ = load_tensors(tmp_path / "bank.safetensors")
    if name == "extra":
        tensors[name] = torch.zeros(1)
    else:
        del tensors[name]
    save_tensors(tmp_path / "bank.safetensors", tensors, {})
    with pytest.raises(FormatError):
        load_bank(tmp_path)


def test_another_release_is_named(tmp_path):
    save_bank(tmp_path, _bank())
    write_json(tmp_path / "bank.json", read_json(tmp_path / "bank.json") | {"format_version": 2})
    with pytest.raises(FormatError, match="version 2"):
        load_bank(tmp_path)
    write_json(tmp_path / "bank.json", [])
    with pytest.raises(FormatError):
        load_bank(tmp_path)


def test_prototypes_with_factors_of_their_own_are_written_out():
    bank = _bank()
    own = dataclasses.replace(bank, prototypes=to_dtype(bank.prototypes.low_rank(2), torch.float32))
    torch.testing.assert_close(own.prototypes.flat(), bank.prototypes.low_rank(2).flat(), rtol=1e-5, atol=1e-6)
