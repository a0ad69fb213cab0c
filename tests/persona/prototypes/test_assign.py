import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from persona.edits import Edit
from persona.errors import MismatchError
from persona.prototypes.algebra import cat, to_dtype
from persona.prototypes.assign import Assigner
from tests.persona.prototypes.world import HEADS, by_head, codes, editor, metric
from tests.persona.toy import SPECS, random_edit


def _prototypes(head, seed, inside=4, outside=3):
    """Prototypes that codes make, near and far, and some that no code makes."""
    made = editor(head).unbounded(codes(inside, seed + 1))
    near = made[:1] + to_dtype(random_edit(1, seed, scale=0.05), torch.float64)
    free = to_dtype(random_edit(outside, seed), torch.float64)
    return cat([made, near.dense(), free])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), head=st.sampled_from(HEADS), n=st.integers(1, 40))
def test_equals_the_brute_force_over_materialised_edits(seed, head, n):
    prototypes, z = _prototypes(head, seed), codes(n, seed)
    edits = editor(head).unbounded(z)
    brute = torch.stack([(edits - prototypes[j].expand(n)).norm() for j in range(len(prototypes))], dim=1)
    assigner = Assigner(metric(head), prototypes)
    torch.testing.assert_close(assigner.square_distances(z).sqrt(), brute, rtol=1e-9, atol=1e-7)
    found = assigner(z)
    assert torch.equal(found.prototypes, brute.argmin(1))
    torch.testing.assert_close(found.distances, brute.min(1).values, rtol=1e-9, atol=1e-7)
    others = torch.arange(n) % len(prototypes)
    torch.testing.assert_close(assigner.distances_to(z, others), brute[torch.arange(n), others], rtol=1e-9, atol=1e-7)


@by_head
def test_ties_go_to_the_lowest_index(head):
    prototypes = _prototypes(head, 0)
    k = len(prototypes)
    doubled = cat([prototypes, prototypes, prototypes])
    found = Assigner(metric(head), doubled)(codes(200)).prototypes
    assert torch.equal(found, Assigner(metric(head), prototypes)(codes(200)).prototypes)
    assert found.max() < k


def test_a_tie_between_different_prototypes():
    """Two prototypes at equal distances on either side of the edits of z = 0."""
    m, away = metric(), to_dtype(random_edit(1), torch.float64)
    both = cat([(m.constant - away).dense(), (m.constant + away).dense()])
    assert Assigner(m, both)(torch.zeros(3, 2, 8)).prototypes.tolist() == [0, 0, 0]


@by_head
def test_a_context_on_its_prototype_has_no_distance(head):
    z = codes(3)
    found = Assigner(metric(head), editor(head).unbounded(z))(z)
    assert found.prototypes.tolist() == [0, 1, 2]
    assert (found.distances < 1e-6).all()


def test_batches_do_not_change_assignments(monkeypatch):
    assigner, z = Assigner(metric(), _prototypes("full", 1)), codes(100)
    whole = assigner(z)
    monkeypatch.setattr("persona.prototypes.assign.CHUNK", 7)
    pieces = assigner(z)
    assert torch.equal(whole.prototypes, pieces.prototypes)
    torch.testing.assert_close(whole.distances, pieces.distances, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(assigner.distances_to(z, whole.prototypes), whole.distances)


def test_foreign_prototypes_and_codes_are_refused():
    with pytest.raises(MismatchError, match="another host"):
        Assigner(metric(), Edit.zeros(SPECS, 2, "b" * 64))
    with pytest.raises(MismatchError, match="another host"):
        Assigner(metric(), Edit.zeros(SPECS[:1], 2, metric().host))
    with pytest.raises(MismatchError, match="shape"):
        Assigner(metric(), random_edit(2))(torch.zeros(3, 2, 9))
