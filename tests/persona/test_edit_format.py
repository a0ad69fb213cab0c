import json

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from persona.edit_format import decode_edit, dequantise, encode_edit, load_edit, quantise, save_edit
from persona.edits import LayerSpec
from persona.errors import ConfigError, FormatError, MismatchError
from tests.persona.toy import HOST, random_edit


@given(st.integers(0, 2**20), st.integers(1, 4), st.booleans())
@settings(max_examples=25)
def test_round_trip_keeps_every_bit(seed, batch, factored):
    edit = random_edit(batch, seed)
    edit = edit.low_rank(2) if factored else edit
    again = decode_edit(encode_edit(edit), HOST)
    assert again.host == HOST
    assert again.specs == edit.specs
    assert torch.equal(again.flat(), edit.flat())
    assert [type(x) for x in again.layers.values()] == [type(x) for x in edit.layers.values()]


@given(st.integers(0, 2**20), st.floats(1e-6, 1e6))
def test_int8_is_off_by_half_a_step_at_most(seed, scale):
    x = scale * torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(seed))
    q, s = quantise(x)
    assert q.dtype == torch.int8
    assert s.shape == (3,)
    error = (dequantise(q, s) - x).abs().amax((1, 2))
    assert (error <= 0.5001 * s).all()


def test_int8_of_zeros_is_zero():
    q, s = quantise(torch.zeros(2, 3))
    assert torch.equal(dequantise(q, s), torch.zeros(2, 3))


@pytest.mark.parametrize(("precision", "tolerance"), [("float16", 1e-3), ("int8", 1e-2)])
def test_smaller_precisions_are_smaller_and_close(precision, tolerance):
    specs = (LayerSpec("wide", 64, 64),)
    edit = random_edit(2, specs=specs)
    data = encode_edit(edit, precision)
    assert len(data) < 0.6 * len(encode_edit(edit))
    error = (decode_edit(data).flat() - edit.flat()).norm() / edit.flat().norm()
    assert 0 < error < tolerance


def test_files(tmp_path):
    edit = random_edit(2)
    save_edit(tmp_path / "x" / "edit.safetensors", edit)
    assert torch.equal(load_edit(tmp_path / "x" / "edit.safetensors", HOST).flat(), edit.flat())
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["edit.safetensors"]
    with pytest.raises(FormatError, match="cannot be read"):
        load_edit(tmp_path / "missing")


def test_an_edit_for_another_host_is_refused():
    with pytest.raises(MismatchError, match="not for bbbb"):
        decode_edit(encode_edit(random_edit(1)), "b" * 64)


@pytest.mark.parametrize("cut", [0, 4, 30, -1])
def test_damaged_messages_are_refused(cut):
    with pytest.raises(FormatError, match="fetch it again"):
        decode_edit(encode_edit(random_edit(1))[:cut])


@given(st.binary(max_size=200))
def test_any_bytes_give_a_format_error(data):
    with pytest.raises(FormatError):
        decode_edit(data)


def _message(header, tensors=None):
    return safetensors.torch.save(tensors or {"x": torch.zeros(1)}, metadata={"persona": json.dumps(header)})


@pytest.mark.parametrize(
    "header",
    [
        {"format": "edit", "version": 99, "host": HOST, "layers": {}},
        {"format": "bank", "version": 1},
        {"format": "edit", "version": 1, "host": HOST, "layers": {"0": "dense"}},
        {"format": "edit", "version": 1, "host": HOST, "layers": {"0": "unheard"}},
        {"format": "edit", "version": 1},
    ],
)
def test_foreign_messages_are_refused(header):
    with pytest.raises(FormatError):
        decode_edit(_message(header))


def test_unknown_precision():
    with pytest.raises(ConfigError, match="did you mean 'float16'"):
        encode_edit(random_edit(1), "float61")  # type: ignore[arg-type]
