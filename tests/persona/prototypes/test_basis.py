import pytest
import torch

from persona.errors import ConfigError
from persona.prototypes.algebra import cat, to_dtype
from persona.prototypes.assign import Assigner
from persona.prototypes.basis import fit_basis
from tests.persona.prototypes.world import by_head, codes, editor, metric
from tests.persona.toy import random_edit


def _remaining(head, z, prototypes):
    """(N, P) remaining edits, written out."""
    nearest = Assigner(metric(head), prototypes)(z).prototypes
    return editor(head).unbounded(z).flat() - prototypes.flat()[nearest]


def _cases(head):
    inside = editor(head).unbounded(codes(3, 9))
    outside = cat([inside, to_dtype(random_edit(2, scale=0.4), torch.float64)])
    return {"inside": inside, "outside": outside}


@by_head
@pytest.mark.parametrize("case", ["inside", "outside"])
def test_directions_are_the_principal_ones_of_materialised_remaining_edits(head, case):
    prototypes, z = _cases(head)[case], codes(200, groups=4, spread=0.4)
    basis = fit_basis(metric(head), prototypes, z, 6)
    remaining = _remaining(head, z, prototypes)
    _, values, vectors = torch.linalg.svd(remaining, full_matrices=False)
    share = values.square() / values.square().sum()
    torch.testing.assert_close(basis.energy, share[:6], rtol=1e-8, atol=1e-10)
    cosines = (basis.directions.flat().double() * vectors[:6]).sum(1).abs()
    torch.testing.assert_close(cosines, torch.ones(6, dtype=torch.float64), rtol=0, atol=1e-5)
    torch.testing.assert_close(basis.energy.cumsum(0), share.cumsum(0)[:6], rtol=1e-8, atol=1e-10)


@by_head
@pytest.mark.parametrize("case", ["inside", "outside"])
def test_a_whole_basis_is_orthonormal_and_reaches_everything(head, case):
    prototypes, z = _cases(head)[case], codes(200)
    basis = fit_basis(metric(head), prototypes, z, 100)
    flat = basis.directions.flat().double()
    assert len(basis) <= 2 * 8 + 2
    torch.testing.assert_close(flat @ flat.T, torch.eye(len(basis), dtype=torch.float64), rtol=0, atol=1e-5)
    remaining = _remaining(head, z, prototypes)
    rest = remaining - basis.edits(remaining @ flat.T).flat()
    assert rest.norm() < 1e-4 * remaining.norm()
    assert float(basis.energy.sum()) == pytest.approx(1.0, abs=1e-8)


def test_fewer_coefficients_stand_for_the_leading_directions():
    basis = fit_basis(metric(), editor().unbounded(codes(2)), codes(50, 1), 8)
    c = torch.randn(3, 2)
    expected = c.double() @ basis.directions.flat()[:2].double()
    torch.testing.assert_close(basis.edits(c).flat(), expected)


def test_weights_count_as_copies():
    prototypes, z = editor().unbounded(codes(2)), codes(30, 1)
    copies = torch.arange(30) % 3
    weighted = fit_basis(metric(), prototypes, z, 4, copies.double())
    repeated = fit_basis(metric(), prototypes, z.repeat_interleave(copies, 0), 4)
    torch.testing.assert_close(weighted.energy, repeated.energy)


def test_where_nothing_remains_the_basis_is_empty():
    z = codes(3)
    basis = fit_basis(metric(), to_dtype(editor().unbounded(z), torch.float32), z, 3)
    assert len(basis) == 0
    assert basis.edits(torch.zeros(4, 0)).norm().tolist() == [0, 0, 0, 0]


def test_a_basis_has_a_size():
    with pytest.raises(ConfigError, match="at least 1"):
        fit_basis(metric(), editor().unbounded(codes(3)), codes(9), 0)
