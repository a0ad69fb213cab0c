import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from persona.edits import DenseEdit, FactoredEdit
from persona.prototypes.algebra import cat, combine, inner, interpolate, linear, to_dtype
from tests.persona.prototypes.world import codes, editor
from tests.persona.toy import random_edit


def _kinds(seed, batch=4):
    """The same kind of edit dense, factored with shared factors, and factored with factors of its own."""
    shared = editor("low_rank").unbounded(codes(batch, seed))
    dense = to_dtype(random_edit(batch, seed), torch.float64)
    return {"shared": shared, "dense": dense, "own": dense.low_rank(2)}


pairs = given(seed=st.integers(0, 1000), a=st.sampled_from(["shared", "dense"]), b=st.sampled_from(["shared", "dense"]))


@settings(max_examples=20, deadline=None)
@pairs
def test_inner_products_are_those_of_the_written_out_edits(seed, a, b):
    x, y = _kinds(seed)[a], _kinds(seed + 1)[b][:3]
    torch.testing.assert_close(inner(x, y).sum(-1), x.flat() @ y.flat().T, rtol=1e-10, atol=1e-12)
    norms = torch.stack([inner(x[i], x[i])[0, 0] for i in range(4)])
    torch.testing.assert_close(norms, x.layer_norms().square(), rtol=1e-10, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), kind=st.sampled_from(["shared", "dense"]))
def test_combine_and_interpolate(seed, kind):
    x, y = _kinds(seed)[kind], _kinds(seed + 1)[kind]
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(5, 4, generator=generator)
    torch.testing.assert_close(combine(x, weights).flat(), weights.double() @ x.flat())
    share = torch.rand(4, generator=generator)
    mixed = interpolate(x, y, share).flat()
    torch.testing.assert_close(mixed, x.flat() + share.double().unsqueeze(1) * (y.flat() - x.flat()))
    assert torch.equal(interpolate(x, y, torch.zeros(4)).flat(), x.flat())


def test_wide_layers_are_multiplied_in_pieces(monkeypatch):
    x, y = _kinds(0)["dense"], _kinds(1)["dense"]
    whole = inner(x, y)
    monkeypatch.setattr("persona.prototypes.algebra._COLUMNS", 7)
    torch.testing.assert_close(inner(x, y), whole, rtol=1e-12, atol=1e-12)


def test_linear_writes_out_only_what_has_factors_of_its_own():
    kinds = _kinds(0)
    assert all(isinstance(layer, DenseEdit) for layer in linear(kinds["own"]).layers.values())
    assert all(isinstance(layer, FactoredEdit) for layer in linear(kinds["shared"]).layers.values())
    torch.testing.assert_close(linear(kinds["own"]).flat(), kinds["own"].flat())


@pytest.mark.parametrize("kind", ["shared", "dense"])
def test_precision_reaches_every_part(kind):
    single = to_dtype(_kinds(0)[kind], torch.float32)
    assert single.flat().dtype == torch.float32
    assert to_dtype(single, torch.float64).flat().dtype == torch.float64


def test_cat_keeps_shared_factors_and_writes_out_mixtures():
    shared, dense = _kinds(0)["shared"], _kinds(1)["dense"]
    joined = cat([shared[1], shared[:2]])
    assert all(isinstance(layer, FactoredEdit) for layer in joined.layers.values())
    assert torch.equal(joined.flat(), shared.flat()[[1, 0, 1]])
    mixed = cat([shared[0], dense[0]])
    torch.testing.assert_close(mixed.flat(), torch.cat([shared.flat()[:1], dense.flat()[:1]]))
