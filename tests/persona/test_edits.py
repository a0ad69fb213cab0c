import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from persona.edits import Edit, FactoredEdit, LayerSpec
from persona.errors import MismatchError
from tests.persona.toy import HOST, SPECS, random_edit

seeds = st.integers(0, 2**20)
batches = st.integers(1, 5)


@given(seeds, seeds, batches)
def test_composing_and_subtracting_are_inverse(a, b, batch):
    first, second = random_edit(batch, a), random_edit(batch, b)
    torch.testing.assert_close(((first + second) - second).flat(), first.flat(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close((first + second).flat(), (second + first).flat())


@given(seeds, batches, st.floats(-3, 3))
def test_norm_is_the_norm_of_the_flat_edit(seed, batch, factor):
    edit = random_edit(batch, seed)
    torch.testing.assert_close(edit.norm(), edit.flat().norm(dim=1))
    torch.testing.assert_close((edit * factor).norm(), abs(factor) * edit.norm(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(edit.layer_norms().square().sum(1).sqrt(), edit.norm())


@given(seeds, batches)
def test_flat_round_trip(seed, batch):
    edit = random_edit(batch, seed)
    again = Edit.from_flat(edit.flat(), SPECS, HOST)
    assert again.specs == edit.specs == SPECS
    assert torch.equal(again.flat(), edit.flat())


def test_flat_round_trip_without_biases():
    specs = (LayerSpec("0", 6, 5, bias=False), LayerSpec("2", 3, 6))
    edit = random_edit(3, specs=specs)
    assert edit.flat().shape == (3, sum(s.parameters for s in specs))
    assert torch.equal(Edit.from_flat(edit.flat(), specs, HOST).flat(), edit.flat())
    assert (edit + edit).specs == specs
    with pytest.raises(MismatchError, match="numbers"):
        Edit.from_flat(torch.zeros(1, 5), specs)


def test_rows_means_and_concatenation():
    edit = random_edit(5)
    assert torch.equal(edit[2].flat(), edit.flat()[2:3])
    assert torch.equal(edit[-1].flat(), edit.flat()[4:])
    assert torch.equal(edit[torch.tensor([3, 0])].flat(), edit.flat()[[3, 0]])
    assert torch.equal(Edit.cat([edit[:2], edit[2:]]).flat(), edit.flat())
    torch.testing.assert_close(edit.mean().flat(), edit.flat().mean(0, keepdim=True))
    assert torch.equal(edit[0].expand(3).flat(), edit.flat()[:1].expand(3, -1))


@given(seeds)
@settings(max_examples=20)
def test_low_rank_is_the_best_of_its_rank(seed):
    edit = random_edit(3, seed)
    full = edit.low_rank(6)
    torch.testing.assert_close(full.flat(), edit.flat(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(full.norm(), edit.norm(), rtol=1e-4, atol=1e-5)
    for name, layer in edit.low_rank(2).layers.items():
        assert isinstance(layer, FactoredEdit)
        weight = edit.layers[name].dense().weight
        left_over = torch.linalg.svdvals(weight)[:, 2:].square().sum(1)  # Eckart-Young
        error = (layer.dense().weight - weight).square().sum((1, 2))
        torch.testing.assert_close(error, left_over, rtol=1e-3, atol=1e-5)


def test_factored_edits_with_shared_factors_stay_factored():
    u, v = torch.randn(6, 2), torch.randn(2, 5)
    a, b = (Edit({"0": FactoredEdit(bias=torch.randn(3, 6), u=u, core=torch.randn(3, 2, 2), v=v)}) for _ in "ab")
    total = a + b
    assert isinstance(total.layers["0"], FactoredEdit)
    torch.testing.assert_close(total.flat(), a.flat() + b.flat(), rtol=1e-5, atol=1e-5)
    assert isinstance(a.mean().layers["0"], FactoredEdit)
    torch.testing.assert_close(a.mean().flat(), a.flat().mean(0, keepdim=True), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(a.norm(), a.flat().norm(dim=1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close((a * 2.0).flat(), 2 * a.flat())


@pytest.mark.parametrize("rows", [1, 3, 200])
def test_one_device_is_edited_alike_with_and_without_writing_its_matrix_out(rows):
    generator = torch.Generator().manual_seed(rows)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    edit = FactoredEdit(bias=draw(1, 12), u=draw(12, 2), core=draw(1, 2, 2), v=draw(2, 20))
    x, weight, bias = draw(1, rows, 20), draw(12, 20), draw(12)
    expected = edit.dense().linear(x, weight, bias)
    torch.testing.assert_close(edit.linear(x, weight, bias), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(edit.linear(x[0], weight, bias), expected[0], rtol=1e-4, atol=1e-4)
    none = edit.map(torch.zeros_like)
    assert torch.equal(none.linear(x, weight, bias), torch.nn.functional.linear(x, weight, bias))


def test_mean_of_unshared_factors_is_not_the_product_of_mean_factors():
    edit = random_edit(4)
    torch.testing.assert_close(edit.low_rank(6).mean().flat(), edit.flat().mean(0, keepdim=True), rtol=1e-4, atol=1e-5)


def test_finiteness_is_told_per_device():
    edit = random_edit(3)
    edit.layers["2"].dense().weight[1, 0, 0] = float("nan")
    assert edit.is_finite().tolist() == [True, False, True]


def test_edits_of_different_hosts_or_layers_do_not_mix():
    edit = random_edit(1)
    with pytest.raises(MismatchError, match="different hosts"):
        edit + Edit(edit.layers, "b" * 64)
    with pytest.raises(MismatchError, match="different layers"):
        edit + Edit({"0": edit.layers["0"]}, HOST)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("rank", [0, 2])
def test_algebra_stays_in_type_and_place(dtype, rank):
    """The device ``meta`` holds no numbers, and refuses to be mixed with the CPU."""
    edit = random_edit(3)
    edit = edit.low_rank(rank) if rank else edit
    moved = edit.map(lambda t: t.to("meta", dtype))
    zeros = Edit.zeros(SPECS, 3, edit.host, like=moved.flat())
    for made in (moved * 0.3, moved - moved, moved + zeros, zeros):
        flat = made.flat()
        assert (flat.device.type, flat.dtype, flat.shape) == ("meta", dtype, edit.flat().shape)


def test_a_factor_is_not_rounded_to_less_than_the_edit():
    edit = random_edit(2).map(torch.Tensor.double)
    assert torch.equal((edit * 0.1).flat(), edit.flat() * 0.1)
    factored = random_edit(2).low_rank(2)
    torch.testing.assert_close((factored * 3.0).flat(), 3 * factored.flat())
