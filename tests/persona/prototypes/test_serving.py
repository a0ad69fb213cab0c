import dataclasses
import itertools

import pytest
import torch

from persona.errors import ConfigError, MismatchError
from persona.prototypes import Server, fit_bank, fit_basis, receive
from persona.prototypes.algebra import to_dtype
from persona.wire import MESSAGE_LEVELS
from tests.persona.prototypes.world import by_head, codes, editor, metric, partition
from tests.persona.toy import random_edit

by_level = pytest.mark.parametrize("level", MESSAGE_LEVELS)


def _servers(head, **options):
    """With a bank as partitioned, and with one whose prototypes have left what codes make."""
    bank = partition(head).bank
    free = to_dtype(bank.prototypes.dense() + random_edit(4, scale=0.05), torch.float32)
    basis = fit_basis(metric(head), free, codes(300, groups=4), 16)
    trained = dataclasses.replace(bank, prototypes=free, basis=basis)
    return {"inside": Server(editor(head), bank, **options), "outside": Server(editor(head), trained, **options)}


def _kept(server, z):
    """Share of the remaining edits' energy that a message of level ``basis`` keeps."""
    whole, left = server.energy(z, "basis")
    return 1 - float(left.sum() / whole.sum())


@by_head
@by_level
@pytest.mark.parametrize("case", ["inside", "outside"])
def test_a_device_makes_of_its_message_what_the_server_says(head, level, case):
    server, z = _servers(head)[case], codes(7, 3).float().double()
    served = server.edit(z, level)
    messages = server.messages(z, level)
    for i, message in enumerate(messages):
        got = receive(server.bank, message, level)
        torch.testing.assert_close(got.flat()[0].double(), served.flat()[i].double(), rtol=1e-5, atol=1e-6)
        assert got.host == server.bank.host


@by_head
def test_levels_are_what_they_promise(head):
    server, z = _servers(head, coefficients=4)["inside"], codes(40, 3)
    full = server.edit(z, "full")
    torch.testing.assert_close(full.flat(), editor(head).bounded(editor(head).unbounded(z)).flat())
    assert server.edit(z, "host").norm().abs().max() == 0
    nearest = server.assign(z)
    assert torch.equal(server.edit(z, "prototype").flat(), server.bank.prototype(nearest).flat())
    assert server.payload_bytes("host") == 0
    assert server.payload_bytes("prototype") == 1
    assert server.payload_bytes("basis") == 24 == len(server.messages(z, "basis")[0])
    assert server.payload_bytes("full") == len(server.messages(z, "full")[0])


@by_head
@by_level
@pytest.mark.parametrize("case", ["inside", "outside"])
def test_energies_are_those_of_materialised_edits(head, level, case):
    server, z = _servers(head, coefficients=5)[case], codes(30, 3)
    # Without a bound, served edits are the unbounded ones that energies are about.
    # A copy: banks are shared between tests.
    free = dataclasses.replace(server.bank, bound=dataclasses.replace(server.bank.bound, kind="none"))
    server.bank = free
    exact = editor(head).unbounded(z)
    whole, left = server.energy(z, level)
    at_prototype = (exact - server.bank.prototypes[server.assign(z)]).norm().square()
    torch.testing.assert_close(whole, at_prototype, rtol=1e-5, atol=1e-6)
    if level == "full":
        assert left.abs().max() == 0
    else:
        served = (exact - to_dtype(server.edit(z, level), torch.float64)).norm().square()
        torch.testing.assert_close(left, served, rtol=1e-4, atol=1e-5)


@by_head
def test_more_coefficients_keep_more(head):
    z = codes(100, 5)
    bank = partition(head).bank
    kept = [_kept(Server(editor(head), bank, coefficients=m), z) for m in (0, 2, 4, 8, len(bank.basis))]
    assert kept[0] == pytest.approx(0, abs=1e-9)
    assert all(a < b for a, b in itertools.pairwise(kept))
    assert kept[-1] > 0.999


def test_a_message_keeps_what_the_basis_explains():
    z = codes(400, groups=4, spread=0.5)
    bank = fit_bank(editor(), z, 4).bank
    kept = _kept(Server(editor(), bank, coefficients=6), z)
    assert kept == pytest.approx(float(bank.basis.energy[:6].sum()), abs=2e-3)


def test_all_is_kept_where_nothing_remains():
    z = codes(3)
    bank = fit_bank(editor(), z, 3).bank
    server = Server(editor(), bank)
    assert server.coefficients_sent == 0
    assert server.payload_bytes("basis") == 20
    torch.testing.assert_close(
        server.edit(z, "basis").flat(), server.edit(z, "full").flat().float(), rtol=1e-4, atol=1e-5
    )


def test_what_is_refused():
    bank = partition().bank
    with pytest.raises(MismatchError, match="editor"):
        Server(editor("low_rank"), bank)
    with pytest.raises(ConfigError, match=r"0 to 16 coefficients.*not 17"):
        Server(editor(), bank, coefficients=17)
    with pytest.raises(ConfigError, match="did you mean 'prototype'"):
        Server(editor(), bank).edit(codes(2), "prototypes")
