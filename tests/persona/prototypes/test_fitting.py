"""The recipe of a bank, judged by how near prototypes come to the edits of four groups of users."""

from dataclasses import replace

import pytest
import torch

from persona.errors import ConfigError, FormatError
from persona.prototypes import Assigner, BankConfig, Contexts, fit_editor_bank
from persona.prototypes.fitted_format import load_fitted, save_fitted
from tests.persona.prototypes.world import codes, editor, metric, users

Z, OWNERS = codes(240, groups=4), users(240, 30)
CONTEXTS = Contexts(Z, OWNERS, OWNERS + 7, [f"u{owner}" for owner in OWNERS.tolist()])


def score(level, bank):
    """The better, the nearer to what the editor would apply."""
    if bank is None:
        return {"host": 0.0, "edit": 1.0}[level]
    if level == "basis":
        return 0.99
    nearest, zero = Assigner(metric(), bank.prototypes)(Z), metric().energies(Z).sum()
    return 1.0 - float(nearest.distances.square().sum() / zero)


def fitted(tuning=None, **settings):
    return fit_editor_bank(editor(), CONTEXTS, BankConfig(**settings), score, tuning=tuning)


def better(bank):
    """Training that moves the first prototype alone, and judges that like it."""
    return (
        lambda index, start: start * (1.0 if index else 1.0001),
        lambda index, prototype, editor: float(prototype.norm()[0]),
    )


def test_k_is_the_smallest_that_gives_away_no_more_than_is_tolerated():
    found = fitted(max_k=16)
    assert len(found.bank) == found.choice.k == 4
    assert len(fitted(max_k=16, tolerance=1.0).bank) == 1
    assert found.levels == {"host": 0.0, "prototype": score("prototype", found.bank), "basis": 0.99, "edit": 1.0}
    assert set(found.partition.statistics.users.tolist()) == {owner + 7 for owner in OWNERS.tolist()}


def test_a_given_k_is_not_chosen():
    found = fitted(k=3)
    assert (len(found.bank), found.choice, found.specialised) == (3, None, None)


def test_specialised_prototypes_are_kept_only_if_they_help_everybody():
    harmful = fitted(better, k=4)
    assert harmful.specialised.chosen[0].prototype
    assert harmful.bank is harmful.partition.bank
    assert fitted(better, k=4, specialise=False).specialised is None

    def praised(level, bank):
        return 2.0 if bank is not None and bank.parent else score(level, bank)

    helpful = fit_editor_bank(editor(), CONTEXTS, BankConfig(k=4), praised, tuning=better)
    assert helpful.bank.parent == helpful.partition.bank.version
    assert helpful.levels["prototype"] == 2.0


def test_a_kept_bank_is_read_to_the_same_bits(tmp_path):
    def praised(level, bank):
        return 2.0 if bank is not None and bank.parent else score(level, bank)

    for name, one in {
        "plain": fitted(max_k=4),
        "trained": fit_editor_bank(editor(), CONTEXTS, BankConfig(k=4), praised, tuning=better),
        "refused": fitted(better, k=4),
    }.items():
        save_fitted(tmp_path / name, one)
        other = load_fitted(tmp_path / name, CONTEXTS)
        assert (other.bank.version, other.levels, other.choice) == (one.bank.version, one.levels, one.choice)
        assert other.partition.bank.version == one.partition.bank.version
        assert torch.equal(other.partition.labels, one.partition.labels)
        for part in ("users", "prototypes", "counts", "sums"):
            assert torch.equal(getattr(other.partition.statistics, part), getattr(one.partition.statistics, part))
        reports = [None if f.specialised is None else f.specialised.report() for f in (one, other)]
        assert reports[0] == reports[1]


def test_a_damaged_bank_is_refused(tmp_path):
    save_fitted(tmp_path / "bank", fitted(k=2))
    (tmp_path / "bank" / "labels.safetensors").write_bytes(b"")
    with pytest.raises(FormatError):
        load_fitted(tmp_path / "bank", CONTEXTS)


def test_settings_are_named_where_they_are_wrong():
    with pytest.raises(ConfigError, match="tolerance"):
        replace(BankConfig(), tolerance=-1.0)
