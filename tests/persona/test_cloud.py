"""The tables give what torch gives: assignments, edits of every level, messages that devices read."""

import json

import numpy as np
import pytest
import safetensors.numpy
import torch

from persona import cloud
from persona.cloud import EditTables
from persona.editor import EditorConfig, ParameterEditor
from persona.edits import LayerSpec
from persona.errors import FormatError, MismatchError
from persona.prototypes import Server, fit_bank, receive
from persona.prototypes.tables import edit_tables
from persona.wire import NOT_FINITE, NOT_TRUSTED

SPECS = (LayerSpec("a", 5, 4), LayerSpec("b", 3, 5, bias=False))
HOST = "ab" * 32


def make(bound="tanh", head="full", seed=0):
    torch.manual_seed(seed)
    config = EditorConfig(context_dim=6, width=7, bound=bound, head=head, rank=2, tau=0.5)
    editor = ParameterEditor(config, SPECS, torch.tensor([0.6, 0.4]), HOST).eval()
    for parameter in editor.heads.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return editor


def codes_of(editor, n=50, seed=1):
    generator = torch.Generator().manual_seed(seed)
    context = torch.randn(n, 4, 6, generator=generator)
    with torch.no_grad():
        return editor.codes(context, torch.full((n,), 4))


@pytest.fixture(
    scope="module", params=[("tanh", "full"), ("clip", "full"), ("frobenius", "low_rank"), ("none", "full")]
)
def trio(request):
    editor = make(*request.param)
    codes = codes_of(editor)
    server = Server(editor, fit_bank(editor, codes, 4, basis_size=5).bank)
    return server, EditTables.from_bytes(edit_tables(editor, server.bank)), codes


def unbounded(server, codes):
    return server.editor.unbounded(codes).flat().detach().numpy()


def test_assignments(trio):
    server, tables, codes = trio
    prototypes, distances = tables.assign(codes.numpy())
    found = server.assigner(codes)
    assert prototypes.tolist() == found.prototypes.tolist()
    assert distances[np.arange(len(codes)), prototypes] == pytest.approx(found.distances.numpy(), abs=1e-9)
    assert (tables.bank, tables.host, tables.levels) == (server.bank.version, HOST, cloud.LEVELS)


@pytest.mark.parametrize("level", cloud.LEVELS)
def test_edits_of_every_level(trio, level):
    server, tables, codes = trio
    chosen = tables.choose(codes.numpy(), unbounded(server, codes), [level] * len(codes))
    wanted = server.edit(codes, "full" if level == "edit" else level)
    assert chosen.levels == [level] * len(codes)
    assert set(chosen.reasons) == {""}
    assert chosen.edits == pytest.approx(wanted.flat().detach().numpy(), abs=1e-5)
    assert chosen.norms == pytest.approx(wanted.norm().detach().numpy(), abs=1e-4)


def test_levels_mix_in_a_batch(trio):
    server, tables, codes = trio
    levels = [cloud.LEVELS[i % 4] for i in range(len(codes))]
    mixed = tables.choose(codes.numpy(), unbounded(server, codes), levels)
    for level in cloud.LEVELS:
        rows = [i for i, own in enumerate(levels) if own == level]
        alone = tables.choose(codes.numpy()[rows], unbounded(server, codes)[rows], [level] * len(rows))
        assert mixed.edits[rows] == pytest.approx(alone.edits, abs=1e-6)


def test_devices_read_the_messages(trio):
    server, tables, codes = trio
    prototypes, _ = tables.assign(codes.numpy())
    coefficients = tables.coefficients(codes.numpy(), prototypes)
    whole = unbounded(server, codes)
    for row, theirs in enumerate(server.messages(codes[:5], "basis")):
        mine = tables.remainder_message(int(prototypes[row]), coefficients[row])
        assert len(mine) == len(theirs) <= 64
        assert receive(server.bank, mine, "basis").flat().numpy() == pytest.approx(
            receive(server.bank, theirs, "basis").flat().numpy(), abs=1e-4
        )
        full = receive(server.bank, tables.full_message(whole[row]), "full")
        assert full.flat().detach().numpy() == pytest.approx(tables.bounded(whole[row : row + 1]), abs=1e-5)
        assert full.host == HOST


@pytest.mark.parametrize(("value", "reason"), [(np.nan, NOT_FINITE), (np.inf, NOT_FINITE), (1e6, NOT_TRUSTED)])
def test_what_cannot_be_trusted_is_replaced_by_the_prototype(value, reason):
    editor = make("none")
    codes = codes_of(editor)
    server = Server(editor, fit_bank(editor, codes, 3).bank)
    tables = EditTables.from_bytes(edit_tables(editor, server.bank))
    assert np.isfinite(tables.trust_radius)
    whole = unbounded(server, codes)
    whole[2] = value
    chosen = tables.choose(codes.numpy(), whole, ["edit"] * 4 + ["host"] * 46)
    assert chosen.levels[:5] == ["edit", "edit", "prototype", "edit", "host"]
    assert chosen.reasons == ["", "", reason] + [""] * 47
    assert chosen.edits[2] == pytest.approx(server.edit(codes[2:3], "prototype").flat()[0].numpy(), abs=1e-5)
    assert np.isfinite(chosen.edits).all()


def test_codes_that_are_not_finite_end_at_the_host(trio):
    server, tables, codes = trio
    broken, whole = codes.numpy().copy(), unbounded(server, codes)
    broken[1] = np.nan
    for level in cloud.LEVELS[1:]:
        chosen = tables.choose(broken, whole, [level] * len(codes))
        assert (chosen.levels[1], chosen.reasons[1], chosen.norms[1]) == ("host", NOT_FINITE, 0.0)
        assert not chosen.edits[1].any()
        assert chosen.levels[0] == level


def test_without_a_bank_there_are_two_levels():
    editor = make()
    tables = EditTables.from_bytes(edit_tables(editor))
    codes = codes_of(editor)
    assert (tables.levels, tables.bank) == (("host", "edit"), "")
    whole = editor.unbounded(codes).flat().detach().numpy()
    whole[0] = np.inf
    chosen = tables.choose(codes.numpy(), whole, ["edit"] * len(codes))
    assert (chosen.levels[:2], chosen.prototypes) == (["host", "edit"], None)


def test_a_bank_of_another_editor_is_refused():
    editor, other = make(), make(seed=5)
    bank = fit_bank(other, codes_of(other), 3).bank
    with pytest.raises(MismatchError):
        edit_tables(editor, bank)


def test_damaged_tables_are_refused():
    editor = make()
    data = edit_tables(editor, fit_bank(editor, codes_of(editor), 3).bank)
    tensors = safetensors.numpy.load(data)
    size = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["persona"])

    def packed(tensors, header):
        return safetensors.numpy.save(tensors, metadata={"persona": json.dumps(header)})

    assert EditTables.from_bytes(packed(tensors, header)).bank == header["bank"]
    for broken in (
        data[:-1],
        b"",
        safetensors.numpy.save(tensors),
        packed(tensors, header | {"version": 9}),
        packed({name: t for name, t in tensors.items() if name != "square"}, header),
        packed(tensors, {name: v for name, v in header.items() if name != "scales"}),
        packed(tensors | {"prototypes": tensors["prototypes"][:, 1:].copy()}, header),
    ):
        with pytest.raises(FormatError):
            EditTables.from_bytes(broken)
