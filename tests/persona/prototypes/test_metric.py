import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from persona.errors import ConfigError, MismatchError
from persona.prototypes.metric import HeadMetric, editor_digest, roots
from tests.persona.prototypes.world import D, L, by_head, codes, editor, metric
from tests.persona.toy import editor_for, mlp, random_edit

variants = given(seed=st.integers(0, 10_000), head=st.sampled_from(["full", "low_rank"]), bias=st.booleans())
few = settings(max_examples=25, deadline=None)


@few
@variants
def test_distances_between_points_are_those_between_edits(seed, head, bias):
    z = codes(12, seed)
    flat = editor(head, bias).unbounded(z).flat()
    points = metric(head, bias).points(z)
    torch.testing.assert_close(torch.cdist(points, points), torch.cdist(flat, flat), rtol=1e-9, atol=1e-6)


@few
@variants
def test_the_gram_measures_layer_by_layer(seed, head, bias):
    a, b = codes(6, seed), codes(6, seed + 1)
    difference = editor(head, bias).unbounded(a) - editor(head, bias).unbounded(b)
    expected = difference.layer_norms().square()
    torch.testing.assert_close(metric(head, bias).square_norms(a - b), expected, rtol=1e-9, atol=1e-12)


@few
@variants
def test_energies_are_the_square_norms_of_whole_edits(seed, head, bias):
    z = codes(6, seed)
    expected = editor(head, bias).unbounded(z).flat().double().square().sum(1)
    torch.testing.assert_close(metric(head, bias).energies(z), expected, rtol=1e-9, atol=1e-12)


@few
@variants
def test_edits_and_projections(seed, head, bias):
    m, z = metric(head, bias), codes(5, seed)
    made = editor(head, bias).unbounded(z)
    torch.testing.assert_close(m.edits(z).flat(), made.flat(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close((m.shift(z) + m.constant.expand(5)).flat(), made.flat(), rtol=1e-10, atol=1e-12)
    columns = m.columns.flat()
    foreign = random_edit(3, seed, specs=m.specs)
    projected = m.project(foreign)
    torch.testing.assert_close(projected.sum(1), foreign.flat().double() @ columns.T, rtol=1e-6, atol=1e-6)


@by_head
def test_grams_are_what_the_method_says(head):
    m, ed = metric(head), editor(head)
    for i, h in enumerate(ed.heads):
        if head == "full":
            expected = h.weight.weight.T @ h.weight.weight + h.bias.weight.T @ h.bias.weight
        else:
            cores = h.core.weight.T.reshape(D, h.rank, h.rank)
            inner = (h.u.T @ h.u) @ cores @ (h.v @ h.v.T)
            expected = torch.einsum("aij,bij->ab", cores, inner) + h.bias.weight.T @ h.bias.weight
        torch.testing.assert_close(m.grams[i], expected, rtol=1e-12, atol=1e-12)


@by_head
def test_nearest_codes_find_the_codes_of_edits_that_have_some(head):
    m, z = metric(head), codes(4)
    near = m.nearest_codes(m.edits(z))
    torch.testing.assert_close(m.edits(near).flat(), m.edits(z).flat(), rtol=1e-8, atol=1e-8)


@by_head
def test_nearest_codes_leave_a_rest_that_no_code_reaches(head):
    m = metric(head)
    foreign = random_edit(3)
    rest = foreign - m.edits(m.nearest_codes(foreign))
    torch.testing.assert_close(m.project(rest), torch.zeros(3, L, D, dtype=torch.float64), rtol=0, atol=1e-6)
    assert (rest.norm() > 0.1).all()


def test_roots_of_singular_matrices():
    x = torch.randn(3, 2, 5, dtype=torch.float64)
    grams = x.mT @ x
    r = roots(grams)
    torch.testing.assert_close(r.mT @ r, grams)


def test_a_metric_is_a_snapshot():
    ed = copy.deepcopy(editor())
    m = HeadMetric(ed)
    before = m.edits(codes(2)).flat()
    with torch.no_grad():
        for p in ed.parameters():
            p.zero_()
    assert torch.equal(m.edits(codes(2)).flat(), before)
    assert editor_digest(ed) != m.editor


def test_points_keep_precision_and_offer_plain_codes():
    z = codes(3)
    assert metric().points(z.float()).dtype == torch.float32
    assert torch.equal(metric().points(z, "codes"), z.flatten(1))
    with pytest.raises(ConfigError, match=r"unknown space 'edit'.*did you mean 'edits'"):
        metric().points(z, "edit")


@pytest.mark.parametrize("shape", [(3, L, D + 1), (3, L + 1, D), (3, L * D)])
def test_codes_of_another_editor_are_refused(shape):
    with pytest.raises(MismatchError, match=r"have the shape \(N, 2, 8\)"):
        metric().points(torch.zeros(shape))


def test_digests_tell_editors_apart():
    plain = editor_for(mlp())
    assert editor_digest(plain) == editor_digest(copy.deepcopy(plain))
    others = [editor_for(mlp(), bound="clip"), editor_for(mlp(seed=1)), editor_for(mlp(), transfer="none")]
    others[1].host = "b" * 64
    assert len({editor_digest(e) for e in (plain, *others)}) == 4


def test_the_unit_of_budgets_is_the_norm_of_the_hosts_weights():
    host = mlp()
    m = HeadMetric(editor_for(host))
    expected = torch.cat([host[0].weight.flatten(), host[2].weight.flatten()]).detach().norm()
    assert m.weight_norm == pytest.approx(float(expected), rel=1e-6)
