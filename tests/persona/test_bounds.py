import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from persona.bounds import Bound
from persona.edits import FactoredEdit
from persona.errors import ConfigError
from tests.persona.toy import random_edit

SCALES = torch.tensor([0.2, 0.5])


def _weights(edit):
    return [layer.dense().weight for layer in edit.layers.values()]


@given(st.integers(0, 2**20), st.sampled_from(["tanh", "clip", "frobenius"]), st.floats(0.1, 4), st.floats(0.01, 100))
@settings(max_examples=60)
def test_bounds_hold(seed, kind, tau, scale):
    edit = random_edit(3, seed, scale)
    bounded = Bound(kind, tau).apply(edit, SCALES)
    for weight, before, s in zip(_weights(bounded), _weights(edit), SCALES, strict=True):
        if kind == "frobenius":
            assert (weight.square().mean((1, 2)).sqrt() <= tau * s * 1.0001).all()
        else:
            assert (weight.abs() <= tau * s * 1.0001).all()
        assert (weight.abs() <= before.abs() * 1.0001).all()
        assert (weight * before >= 0).all()


def test_biases_are_left_alone():
    edit = random_edit(2, scale=10)
    for kind in ("tanh", "clip", "frobenius"):
        bounded = Bound(kind, 0.1).apply(edit, SCALES)
        assert all(torch.equal(bounded.layers[n].bias, edit.layers[n].bias) for n in edit.layers)


def test_small_edits_pass_and_none_passes_all():
    small = random_edit(2, scale=1e-5)
    for kind in ("clip", "frobenius", "none"):
        torch.testing.assert_close(Bound(kind).apply(small, SCALES).flat(), small.flat())
    torch.testing.assert_close(Bound("tanh").apply(small, SCALES).flat(), small.flat(), rtol=1e-4, atol=1e-8)
    large = random_edit(2, scale=100)
    assert torch.equal(Bound("none").apply(large, SCALES).flat(), large.flat())


def test_tanh_has_a_gradient_where_the_clip_has_none():
    for kind, moves in (("tanh", True), ("clip", False)):
        edit = random_edit(1, scale=0.01)
        weight = edit.layers["0"].weight
        weight.fill_(0.3).requires_grad_()
        Bound(kind, 1.0).apply(edit, SCALES).layers["0"].weight.sum().backward()
        assert bool((weight.grad.abs() > 0).all()) is moves


def test_frobenius_keeps_factors():
    edit = random_edit(2, scale=10).low_rank(2)
    bounded = Bound("frobenius").apply(edit, SCALES)
    assert all(isinstance(layer, FactoredEdit) for layer in bounded.layers.values())


@pytest.mark.parametrize("kind", ["tanh", "clip", "frobenius"])
def test_saturation_counts_what_the_bound_stops(kind):
    assert Bound(kind).saturation(random_edit(4, scale=1e-4), SCALES).tolist() == [0, 0]
    assert (Bound(kind).saturation(random_edit(4, scale=1e4), SCALES) > 0.99).all()
    assert Bound("none").saturation(random_edit(4, scale=1e4), SCALES).tolist() == [0, 0]


def test_wrong_settings():
    with pytest.raises(ConfigError, match="did you mean 'tanh'"):
        Bound("tahn")
    with pytest.raises(ConfigError, match="positive"):
        Bound("clip", 0)
