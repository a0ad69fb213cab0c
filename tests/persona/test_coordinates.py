"""Coordinates hold all of an edit: norms, bounds and the way back."""

import pytest
import torch

from persona.bounds import Bound
from persona.cloud import EditTables
from persona.coordinates import Coordinates
from persona.editor import EditorConfig, ParameterEditor
from persona.edits import LayerSpec
from persona.prototypes import fit_bank
from persona.prototypes.tables import edit_tables

SPECS = (LayerSpec("wide", 12, 9), LayerSpec("plain", 5, 7, bias=False))
SCALES = torch.tensor([0.3, 0.6])


def editor(**options):
    torch.manual_seed(0)
    made = ParameterEditor(EditorConfig(context_dim=3, width=4, rank=2, **options), SPECS, SCALES, "h")
    for parameter in made.heads.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made


@torch.no_grad()
@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"head": "low_rank", "bound": "frobenius"}, 2 * 4 + 12),
        ({"head": "low_rank", "bound": "none"}, 2 * 4 + 12),
        ({"head": "low_rank", "bound": "tanh"}, 12 * 9 + 12 + 5 * 7),
        ({"head": "full", "bound": "frobenius"}, 12 * 9 + 12 + 5 * 7),
    ],
)
def test_nothing_of_an_edit_is_lost(options, size):
    made = editor(**options)
    codes = torch.rand(6, 2, 4) * 2 - 1
    bank = fit_bank(made, codes, 2).bank
    coordinates = Coordinates(made, bank)
    edit = made.unbounded(codes)
    flat = coordinates.of(edit)
    assert flat.shape == (6, size) == (6, coordinates.size)
    assert torch.allclose(flat.norm(dim=1), edit.norm(), rtol=1e-5)
    for written_out in (False, True):
        assert torch.allclose(coordinates.edit(flat, written_out=written_out).flat(), edit.flat(), atol=1e-5)
    tables = EditTables.from_bytes(edit_tables(made, bank, coordinates))
    bounded = torch.from_numpy(tables.bounded(flat.numpy()))
    expected = Bound(made.bound.kind, made.bound.tau).apply(edit, made.weight_scales)
    assert torch.allclose(coordinates.edit(bounded).flat(), expected.flat(), atol=1e-5)


@torch.no_grad()
def test_a_layer_whose_prototypes_leave_its_subspaces_is_written_out():
    made, other = editor(head="low_rank", bound="none"), editor(head="low_rank", bound="none")
    torch.nn.init.normal_(other.heads[0].u)
    codes = torch.rand(6, 2, 4) * 2 - 1
    coordinates = Coordinates(made, fit_bank(other, codes, 2).bank)
    assert coordinates.size == 12 * 9 + 12 + 4
