import pytest
import torch

from persona.editor import ParameterEditor
from persona.edits import FactoredEdit
from persona.errors import DataError, MismatchError
from persona.prototypes import adjusted_rand_index, fit_bank, fit_distinct
from persona.prototypes.assign import Assigner
from tests.persona.prototypes.world import by_head, codes, editor, metric, users
from tests.persona.toy import editor_for, mlp


@by_head
@pytest.mark.parametrize("space", ["edits", "codes"])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_prototype_is_the_mean_edit_of_its_members(head, space, weighted):
    z = codes(200, groups=4, spread=0.3)
    w = torch.rand(200, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) if weighted else None
    part = fit_bank(editor(head), z, 4, space=space, weights=w)
    flat, total = editor(head).unbounded(z).flat(), torch.ones(200, dtype=torch.float64) if w is None else w
    for j in range(4):
        mine = part.labels == j
        mean = (total[mine].unsqueeze(1) * flat[mine]).sum(0) / total[mine].sum()
        torch.testing.assert_close(part.bank.prototypes[j].flat()[0].double(), mean, rtol=1e-5, atol=1e-6)
        assert float(part.bank.members[j]) == pytest.approx(float(total[mine].sum()))


@by_head
def test_groups_are_found_and_assigned_back(head):
    part = fit_bank(editor(head), codes(300, groups=5), 5)
    assert adjusted_rand_index(part.labels, torch.arange(300) % 5) == 1.0
    assert part.converged
    again = Assigner(metric(head), part.bank.prototypes)(codes(300, groups=5)).prototypes
    assert torch.equal(again, part.labels)


def test_low_rank_heads_keep_prototypes_factored():
    layers = fit_bank(editor("low_rank"), codes(50), 3).bank.prototypes.layers
    assert all(isinstance(layer, FactoredEdit) for layer in layers.values())


def test_a_bank_knows_where_it_comes_from():
    bank = fit_bank(editor(), codes(50), 3, seed=4).bank
    assert (bank.host, bank.editor, bank.parent) == (editor().host, metric().editor, "")
    assert bank.metadata == {"kind": "fit", "k": 3, "seed": 4, "space": "edits"}
    assert bank.origin.tolist() == [-1, -1, -1]
    assert bank.version == fit_bank(metric(), codes(50), 3, seed=4).bank.version
    assert bank.version != fit_bank(editor(), codes(50), 3, seed=5).bank.version


def test_one_prototype_is_the_mean_and_the_basis_that_of_all_edits():
    z = codes(80)
    bank = fit_bank(editor(), z, 1, basis_size=3).bank
    flat = editor().unbounded(z).flat()
    torch.testing.assert_close(bank.prototypes.flat()[0].double(), flat.mean(0), rtol=1e-5, atol=1e-6)
    values = torch.linalg.svdvals(flat - flat.mean(0)).square()
    torch.testing.assert_close(bank.basis.energy, (values / values.sum())[:3], rtol=1e-6, atol=1e-9)


def test_statistics_are_kept_only_for_known_users():
    z = codes(60)
    assert fit_bank(editor(), z, 2).statistics is None
    part = fit_bank(editor(), z, 2, users=users(60, 7))
    assert float(part.statistics.counts.sum()) == 60
    torch.testing.assert_close(part.bank.centres, fit_bank(editor(), z, 2).bank.centres, rtol=1e-12, atol=1e-12)


def test_an_untrained_editor_has_a_single_edit():
    ed: ParameterEditor = editor_for(mlp())
    with pytest.raises(DataError, match="distinct edits"):
        fit_bank(ed, codes(20).float(), 2)


def test_what_is_refused():
    with pytest.raises(DataError, match="as many users"):
        fit_bank(editor(), codes(20), 2, users=users(19, 3))
    with pytest.raises(MismatchError, match="shape"):
        fit_bank(editor(), codes(20).flatten(1), 2)


def test_as_many_prototypes_as_there_are_distinct_edits():
    same = codes(1).expand(40, -1, -1)
    assert len(fit_distinct(editor(), same, 8).bank) == 1
    assert len(fit_distinct(editor(), torch.cat([same, codes(1, 1).expand(40, -1, -1)]), 8).bank) == 2
    assert len(fit_distinct(editor(), codes(40), 8).bank) == 8
    with pytest.raises(DataError):
        fit_distinct(editor(), codes(0), 2)
