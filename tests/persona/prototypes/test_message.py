import struct
import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from persona.errors import ConfigError, DataError, FormatError, MismatchError, PersonaError
from persona.prototypes.message import encode_remainders, quantise_coefficients, receive, sent_coefficients
from persona.wire import MAX_BYTES, decode_remainder, message_bytes
from tests.persona.prototypes.world import partition

BANK = partition().bank
OTHER = partition(k=3).bank
M = len(BANK.basis)
numbers = st.floats(-1e6, 1e6, allow_nan=False, width=32)


def _message(coefficients=(1.0, -0.5), prototype=2):
    return encode_remainders(BANK, torch.tensor([prototype]), torch.tensor([coefficients]))[0]


def _decode(bank, message):
    return decode_remainder(message, bank.version, len(bank), len(bank.basis))


def _sealed(body):
    return body + struct.pack("<I", zlib.crc32(body))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, M).flatmap(
        lambda m: st.lists(st.lists(numbers, min_size=m, max_size=m), min_size=1, max_size=4)
    ),
    prototype=st.integers(0, 3),
)
def test_round_trip_errs_by_half_a_step(rows, prototype):
    c = torch.tensor(rows, dtype=torch.float64).reshape(len(rows), -1)
    for row, message in zip(c, encode_remainders(BANK, torch.full((len(c),), prototype), c), strict=True):
        said = _decode(BANK, message)
        assert torch.equal(torch.from_numpy(said.coefficients), sent_coefficients(row[None])[0])
        assert said.prototype == prototype
        assert len(message) == message_bytes(len(row)) <= MAX_BYTES
        step = float(row.abs().max()) / 127 if len(row) else 0.0
        assert ((torch.from_numpy(said.coefficients).double() - row).abs() <= (0.5 + 1e-4) * step + 1e-37).all()


def test_the_layout_is_as_written():
    message = _message((1.27, -1.27, 0.0, 0.005))
    assert message[:2] == b"P\x01"
    assert message[2:10] == bytes.fromhex(BANK.version)[:8]
    assert (message[10], message[11]) == (2, 4)
    assert struct.unpack("<f", message[12:16])[0] == pytest.approx(0.01)
    assert struct.unpack("4b", message[16:20])[:3] == (127, -127, 0)
    assert message[20:] == struct.pack("<I", zlib.crc32(message[:20]))


def test_the_longest_message_fits():
    assert message_bytes(44) == MAX_BYTES


def test_nothing_remaining_is_sent_as_zeros():
    assert _decode(BANK, _message((0.0, 0.0))).coefficients.tolist() == [0, 0]
    assert quantise_coefficients(torch.zeros(3, 0, dtype=torch.float64))[0].shape == (3, 0)


@settings(max_examples=80, deadline=None)
@given(position=st.integers(0, 10**6), bit=st.integers(0, 7), length=st.integers(0, 80))
def test_any_damage_is_refused(position, bit, length):
    message = bytearray(_message())
    message[position % len(message)] ^= 1 << bit
    with pytest.raises(PersonaError):
        _decode(BANK, bytes(message))
    whole = _message()
    if length != len(whole):
        with pytest.raises(FormatError):
            _decode(BANK, (whole * 4)[:length])


@settings(max_examples=80, deadline=None)
@given(data=st.binary(max_size=70), level=st.sampled_from(["prototype", "basis", "full"]))
def test_noise_is_refused_or_one_byte(data, level):
    try:
        edit = receive(BANK, data, level)
    except PersonaError:
        return
    assert level == "prototype"
    assert len(data) == 1
    assert torch.equal(edit.flat(), BANK.prototype(data[0]).flat())


def test_messages_for_another_bank_are_refused():
    with pytest.raises(MismatchError, match=f"prototype bank {BANK.version[:12]}.*holds {OTHER.version[:12]}"):
        _decode(OTHER, _message())


def test_sealed_but_wrong_messages_are_refused():
    body = _message()[:-4]
    with pytest.raises(FormatError, match="layout 2"):
        _decode(BANK, _sealed(body[:1] + b"\x02" + body[2:]))
    with pytest.raises(FormatError, match="prototype 9 is not"):
        _decode(BANK, _sealed(body[:10] + b"\x09" + body[11:]))
    with pytest.raises(FormatError, match=f"names {M + 1} directions"):
        _decode(BANK, _sealed(body[:11] + bytes([M + 1]) + body[12:16] + bytes(M + 1)))
    with pytest.raises(FormatError, match="damaged"):
        _decode(BANK, _sealed(body + b"\x00"))


def test_what_cannot_be_sent():
    with pytest.raises(ConfigError, match=f"at most {M}"):
        _message((0.0,) * (M + 1))
    for broken in (float("nan"), float("inf"), 1e300):
        with pytest.raises(DataError, match="not finite"):
            encode_remainders(BANK, torch.tensor([0]), torch.tensor([[broken]], dtype=torch.float64))


def test_unknown_levels_are_refused():
    with pytest.raises(ConfigError, match="did you mean 'basis'"):
        receive(BANK, b"", "bases")
