"""Messages of the build that came before ``persona.wire`` mean what they meant, and are made to the byte as they were.

``tests/fixtures/wire/<bound>.safetensors`` holds, for an editor with this bound: its bank and edit tables, codes of three devices
and their edits, the messages of every level, and what cloud and device made of them. Rounding of a product may differ in the
last bits between processors, so decoded edits are compared up to a few units in the last place; bytes are compared as they are.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from persona import wire
from persona.arrays import arrays_from_bytes, read_file
from persona.bounds import Bound
from persona.cloud import EditTables
from persona.device.bank import DeviceBank, unpack_bank
from persona.device.bundle import region_of
from persona.device.changes import Layer, decode_edits
from persona.edit_format import decode_edit, encode_edit
from persona.edits import Edit, LayerSpec
from persona.errors import ConfigError, FormatError, MismatchError
from persona.prototypes import load_bank, receive
from persona.prototypes.message import encode_remainders

FIXTURES = Path(__file__).parents[1] / "fixtures" / "wire"
HOST = "ab" * 32
SPECS = (LayerSpec("a", 5, 4), LayerSpec("b", 3, 5, bias=False))
LAYERS = tuple(Layer(s.name, s.in_features, s.out_features, s.bias) for s in SPECS)
DEVICES = range(3)
LAST_BITS = 8


def _messages(golden, level, kind="message"):
    return [golden[f"{kind}/{level}/{i}"].tobytes() for i in DEVICES]


def _flat(changes):
    parts = [np.append(c.weight.ravel(), [] if c.bias is None else c.bias) for c in changes.values()]
    return np.concatenate(parts).astype(np.float32)


def _same(found, golden):
    np.testing.assert_array_max_ulp(np.asarray(found, np.float32), golden, maxulp=LAST_BITS)


@pytest.fixture(scope="module", params=wire.BOUNDS)
def case(request):
    golden, header = arrays_from_bytes(read_file(FIXTURES / f"{request.param}.safetensors"), "the fixture")
    assert header["bound"] == request.param
    return request.param, golden


@pytest.fixture(scope="module")
def bank(case, tmp_path_factory):
    folder = tmp_path_factory.mktemp(case[0])
    for name, data in unpack_bank(case[1]["bank"].tobytes()).items():
        (folder / name).write_bytes(data)
    return load_bank(folder, HOST)


def test_torch_makes_the_same_messages(case, bank):
    _, golden = case
    prototypes = torch.from_numpy(golden["prototypes"])
    made = encode_remainders(bank, prototypes, torch.from_numpy(golden["coefficients"]))
    assert made == _messages(golden, "basis")
    edits = [decode_edit(message, HOST) for message in _messages(golden, "full")]
    assert [encode_edit(edit) for edit in edits] == _messages(golden, "full")
    dense = Edit.from_flat(torch.from_numpy(golden["unbounded"]), SPECS, HOST)
    assert [encode_edit(dense[i]) for i in DEVICES] == _messages(golden, "full", "cloud_message")


def test_tables_make_the_same_messages(case):
    _, golden = case
    tables = EditTables.from_bytes(golden["tables"].tobytes())
    for i in DEVICES:
        message = tables.remainder_message(int(golden["prototypes"][i]), golden["cloud_coefficients"][i])
        assert message == _messages(golden, "basis", "cloud_message")[i]
        assert tables.full_message(golden["unbounded"][i]) == _messages(golden, "full", "cloud_message")[i]


@pytest.mark.parametrize("level", wire.MESSAGE_LEVELS[1:])
def test_torch_reads_the_same_edits(case, bank, level):
    _, golden = case
    found = [receive(bank, message, level).flat().detach()[0] for message in _messages(golden, level)]
    _same(torch.stack(found), golden[f"torch/{level}"])


@pytest.mark.parametrize("level", wire.MESSAGE_LEVELS[1:])
def test_devices_read_the_same_edits(case, level):
    kind, golden = case
    region = region_of({"kind": kind, "tau": 0.5, "scales": golden["scales"].tolist()}, LAYERS)
    own = DeviceBank.of(unpack_bank(golden["bank"].tobytes()), LAYERS, HOST, region)
    for message, wanted in zip(_messages(golden, level), golden[f"device/{level}"], strict=True):
        if level == "prototype":
            changes = own.prototype(wire.decode_prototype(message, len(own)))
        elif level == "basis":
            changes = own.with_remainder(message)[1]
        else:
            changes = {name: stack.at(0) for name, stack in decode_edits(message, LAYERS, HOST, "it").items()}
        _same(np.concatenate([_flat(changes), _flat(region.bounded(changes))]), wanted)
    assert region.largest == golden["trust"][1]


@pytest.mark.parametrize("level", wire.LEVELS[1:])
def test_tables_apply_the_same_edits(case, level):
    _, golden = case
    tables = EditTables.from_bytes(golden["tables"].tobytes())
    chosen = tables.choose(golden["codes"], golden["unbounded"], [level] * len(DEVICES))
    named = dict(zip(wire.LEVELS, wire.MESSAGE_LEVELS, strict=True))[level]
    assert chosen.levels == [level] * len(DEVICES)
    assert chosen.prototypes.tolist() == golden["prototypes"].tolist()
    _same(chosen.edits, golden[f"cloud/{named}"])
    assert chosen.norms == pytest.approx(golden[f"norms/{named}"], rel=1e-6)
    assert tables.trust_radius == golden["trust"][0]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.floats(-1e6, 1e6, width=32), min_size=0, max_size=wire.MAX_COEFFICIENTS),
    prototype=st.integers(0, 7),
)
def test_what_is_encoded_is_decoded(rows, prototype):
    bank, exact = "5f" * 32, np.array(rows, dtype=np.float64)[None]
    steps, scales = wire.quantise(exact)
    message = wire.encode_remainder(bank, prototype, steps[0], scales[0])
    said = wire.decode_remainder(message, bank, 8, wire.MAX_COEFFICIENTS)
    assert said.prototype == prototype
    assert np.array_equal(said.coefficients, wire.dequantise(steps, scales)[0])
    assert np.abs(said.coefficients - exact[0]).max(initial=0) <= 0.5001 * float(scales[0]) + 1e-37
    assert len(message) == wire.message_bytes(len(rows)) <= wire.MAX_BYTES


def test_what_a_bank_does_not_have_is_refused():
    bank = "5f" * 32
    message = wire.encode_remainder(bank, 3, np.ones(2, np.int8), 0.5)
    with pytest.raises(MismatchError, match="fetch that bank"):
        wire.decode_remainder(message, "60" * 32, 4, 2)
    with pytest.raises(FormatError, match="prototype 3 is not in this bank of 3"):
        wire.decode_remainder(message, bank, 3, 2)
    with pytest.raises(FormatError, match=r"names 2 directions, more than the bank has \(1\)"):
        wire.decode_remainder(message, bank, 4, 1)
    with pytest.raises(FormatError, match="one byte, but 2 came"):
        wire.decode_prototype(b"12", 4)
    with pytest.raises(ConfigError, match="did you mean 'prototype'"):
        wire.check_level("prototypes")


@pytest.mark.parametrize("kind", wire.BOUNDS)
def test_bounds_are_those_of_training(kind):
    weights = np.random.default_rng(0).normal(size=(6, SPECS[0].parameters)).astype(np.float32)
    own, (layer,) = weights.copy(), SPECS[:1]
    size = layer.in_features * layer.out_features
    wire.bound(own[:, :size], kind, 0.4, np.linalg.norm(own[:, :size], axis=1, keepdims=True))
    edit = Bound(kind, 0.8).apply(Edit.from_flat(torch.from_numpy(weights), SPECS[:1]), torch.tensor([0.5]))
    assert own == pytest.approx(edit.flat().numpy(), abs=1e-6)
    assert np.array_equal(own[:, size:], weights[:, size:])


def test_a_host_without_weights_trusts_every_size():
    assert wire.trust_radius("tanh", 0.5, 0.0) == np.inf
    assert wire.trust_radius("none", 0.5, 3.0) == 2 * wire.trust_radius("clip", 0.5, 3.0) == 6.0
