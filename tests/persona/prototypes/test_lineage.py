import dataclasses
import json

import pytest
import torch

from persona.errors import ConfigError, FormatError, MismatchError
from persona.prototypes import Lineage, RefineConfig, refine, same_prototypes
from tests.persona.prototypes.world import codes, metric, partition, users, window
from tests.persona.toy import HOST

CONFIG = RefineConfig(min_users=2, eta=0.5)


def _refined(bank, seed):
    part = dataclasses.replace(partition(), bank=bank)
    stats = window(part, torch.tanh(codes(100, seed, groups=4) + 0.1 * seed), users(100, 20, seed))
    return refine(bank, metric(), stats, CONFIG), stats


@pytest.fixture
def lineage(tmp_path):
    """A first version and two refinements, the head on the last."""
    made = Lineage(tmp_path / "prototypes", HOST)
    part = partition()
    made.save(part.bank, part.statistics)
    bank = part.bank
    for seed in (1, 2):
        found, stats = _refined(bank, seed)
        made.save(found.bank, stats, found.report())
        bank = found.bank
    return made


def test_history_tells_what_each_version_is(lineage):
    history = lineage.history()
    assert [r.kind for r in history] == ["fit", "refine", "refine"]
    assert [r.parent for r in history] == ["", history[0].version, history[1].version]
    assert [r.prototypes for r in history] == [4, 4, 4]
    assert history[1].report["moved_users"] >= 0
    assert sum(history[2].report["contexts"]) == 100
    assert lineage.head == history[2].version
    assert lineage.record() == history[2]


def test_versions_come_back_as_they_were(lineage):
    part, history = partition(), lineage.history()
    loaded = lineage.load(history[0].version)
    assert same_prototypes(loaded, part.bank)
    stats = lineage.statistics(history[0].version)
    assert torch.equal(stats.sums, part.statistics.sums)
    assert torch.equal(stats.users, part.statistics.users)
    assert stats.k == 4
    again = refine(loaded, metric(), lineage.statistics(history[1].version), CONFIG)
    assert again.bank.version == history[1].version


def test_restoring_moves_the_head_and_keeps_everything(lineage):
    first, _, last = lineage.history()
    assert same_prototypes(lineage.restore(first.version), partition().bank)
    assert lineage.head == first.version == lineage.load().version
    assert len(lineage.history()) == 3
    branch, stats = _refined(lineage.load(), 7)
    lineage.save(branch.bank, stats)
    assert [r.parent for r in lineage.history()].count(first.version) == 2
    assert lineage.restore(last.version).version == lineage.head == last.version


def test_an_empty_lineage(tmp_path):
    empty = Lineage(tmp_path / "none", HOST)
    assert empty.history() == []
    assert empty.head == ""
    with pytest.raises(ConfigError, match="no version"):
        empty.load()


def test_a_version_without_statistics_says_so(tmp_path):
    made = Lineage(tmp_path, HOST)
    made.save(partition().bank)
    assert made.statistics() is None


def test_saving_twice_is_saving_once(lineage):
    found, stats = _refined(partition().bank, 1)
    lineage.save(found.bank, stats, found.report())
    assert len(lineage.history()) == 3
    assert lineage.head == found.bank.version


def test_foreign_banks_are_refused(lineage, tmp_path):
    bank = partition().bank
    foreign = dataclasses.replace(bank, prototypes=dataclasses.replace(bank.prototypes, host="b" * 64))
    with pytest.raises(MismatchError, match="was made for the host bbbbbbbbbbbb"):
        lineage.save(foreign)
    with pytest.raises(MismatchError, match="parent"):
        lineage.save(dataclasses.replace(bank, parent="c" * 64))
    with pytest.raises(MismatchError, match="aaaaaaaaaaaa"):
        Lineage(lineage.root, "b" * 64).load()
    assert len(lineage.history()) == 3


def test_unknown_versions_are_refused(lineage):
    for call in (lineage.load, lineage.restore, lineage.record, lineage.statistics):
        with pytest.raises(ConfigError, match="no version 'dddddddddddd'"):
            call("d" * 64)


def test_exchanged_folders_are_refused(lineage):
    a, b, _ = (lineage.root / r.version for r in lineage.history())
    a.rename(a.with_name("x"))
    b.rename(a)
    a.with_name("x").rename(b)
    with pytest.raises(FormatError, match="put the folders back"):
        lineage.load(a.name)
    with pytest.raises(FormatError, match="put the folders back"):
        lineage.history()


@pytest.mark.parametrize("file", ["bank/prototypes.safetensors", "bank/bank.json", "bank/basis.safetensors"])
def test_damaged_versions_are_not_restored(lineage, file):
    first, _, last = lineage.history()
    path = lineage.root / first.version / file
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(FormatError):
        lineage.restore(first.version)
    assert lineage.head == last.version


def test_damaged_records_statistics_and_heads_are_named(lineage):
    version = lineage.history()[1].version
    folder = lineage.root / version
    (folder / "statistics.safetensors").write_bytes(b"nothing")
    with pytest.raises(FormatError, match=r"statistics\.safetensors"):
        lineage.statistics(version)
    (folder / "record.json").write_text(json.dumps({"version": version}))
    with pytest.raises(FormatError, match=r"record\.json"):
        lineage.history()
    (lineage.root / "head.json").write_text('{"version": "../../etc"}')
    with pytest.raises(FormatError, match="names no version"):
        lineage.load()


def test_statistics_that_lack_a_part_are_named(lineage):
    from persona.storage import load_tensors, save_tensors

    path = lineage.root / lineage.head / "statistics.safetensors"
    tensors, header = load_tensors(path)
    del tensors["sums"]
    save_tensors(path, tensors, header)
    with pytest.raises(FormatError, match="lacks a part"):
        lineage.statistics()


def test_a_lost_parent_is_named(lineage):
    first = lineage.history()[0].version
    (lineage.root / first).rename(lineage.root / "elsewhere")
    with pytest.raises(FormatError, match=f"comes from {first[:12]}, which is missing"):
        lineage.history()


def test_devices_get_no_personal_data(lineage):
    names = {p.name for p in (lineage.root / lineage.head / "bank").iterdir()}
    assert names == {"bank.json", "bank.safetensors", "basis.safetensors", "prototypes.safetensors"}
