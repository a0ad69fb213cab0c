import copy
import itertools
import json

import pytest
import torch

from persona.adaptive import AdaptiveLayers
from persona.editor import EditorConfig, ParameterEditor
from persona.edits import FactoredEdit
from persona.errors import ConfigError, FormatError, MismatchError
from tests.persona.toy import HOST, contexts, editor_for, mlp

VARIANTS = [
    dict(zip(("transfer", "head", "bound"), v, strict=True))
    for v in itertools.product(("stacked", "recurrent", "none"), ("full", "low_rank"), ("tanh", "clip", "frobenius"))
]
by_variant = pytest.mark.parametrize("settings", VARIANTS, ids=lambda v: "-".join(v.values()))


def _step(module, editor, optimizer):
    """One training step on the edited host's outputs; returns the gradients by name."""
    layers = AdaptiveLayers(module, ("0", "2"))
    context, lengths = contexts(16)
    x = torch.randn(16, 5, generator=torch.Generator().manual_seed(5))
    optimizer.zero_grad()
    with layers.applied(editor(context, lengths)):
        (module(x) - x[:, :3] * context[:, 0, :3]).square().sum().backward()
    optimizer.step()
    return {name: p.grad for name, p in editor.named_parameters()}


@by_variant
def test_an_untrained_editor_returns_the_host_bit_for_bit(settings):
    module = mlp()
    x = torch.randn(9, 5)
    plain = module(x)
    editor = editor_for(module, **settings)
    with AdaptiveLayers(module, ("0", "2")).applied(editor(*contexts(9))):
        assert torch.equal(module(x), plain)


@by_variant
def test_every_parameter_learns(settings):
    """The first step from the zero start moves the heads; the next one moves every parameter."""
    module = mlp().requires_grad_(False)
    editor = editor_for(module, **settings)
    optimizer = torch.optim.Adam(editor.parameters(), lr=1e-2)
    gradients = _step(module, editor, optimizer)
    assert all(g is not None for g in gradients.values())
    assert any(name.startswith("heads") and g.abs().sum() > 0 for name, g in gradients.items())
    before = copy.deepcopy(dict(editor.named_parameters()))
    gradients = _step(module, editor, optimizer)
    for name, parameter in editor.named_parameters():
        assert gradients[name].abs().sum() > 0, name
        assert not torch.equal(parameter, before[name]), name


@by_variant
def test_state_dict_round_trip(settings):
    module = mlp().requires_grad_(False)
    editor = editor_for(module, **settings)
    _step(module, editor, torch.optim.Adam(editor.parameters(), lr=0.1))
    twin = editor_for(module, **settings)
    assert not torch.equal(twin(*contexts(5)).flat(), editor(*contexts(5)).flat())
    twin.load_state_dict(editor.state_dict())
    assert torch.equal(twin(*contexts(5)).flat(), editor(*contexts(5)).flat())


def _trained(**settings):
    editor = editor_for(mlp(), **settings)
    with torch.no_grad():
        for i, p in enumerate(editor.heads.parameters()):
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
    return editor


@by_variant
def test_a_batch_equals_its_devices_one_by_one(settings):
    editor = _trained(**settings)
    context, lengths = contexts(9)
    batched = editor(context, lengths).flat()
    for i in range(9):
        alone = editor(context[i : i + 1], lengths[i : i + 1]).flat()
        torch.testing.assert_close(alone, batched[i : i + 1], rtol=1e-5, atol=1e-6)


def test_padding_is_not_read():
    editor = _trained()
    context, lengths = contexts(9)
    other = context.clone()
    other[torch.arange(7) >= lengths.unsqueeze(1)] = 1e3
    assert torch.equal(editor(other, lengths).flat(), editor(context, lengths).flat())
    assert editor(context, lengths).is_finite().all()


@pytest.mark.parametrize("head", ["full", "low_rank"])
def test_unbounded_edits_are_linear_in_the_codes(head):
    editor = _trained(head=head)
    a, b = torch.randn(2, 4, 2, 8)
    mixed = editor.unbounded(0.25 * a + 0.75 * b).flat()
    expected = 0.25 * editor.unbounded(a).flat() + 0.75 * editor.unbounded(b).flat()
    torch.testing.assert_close(mixed, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("head", ["full", "low_rank"])
def test_the_heads_are_the_affine_map_they_say(head, bias):
    editor = editor_for(mlp(bias=bias), head=head)
    with torch.no_grad():
        for p in editor.heads.parameters():
            p.normal_()
    codes = torch.randn(4, 2, 8)
    columns, constant = editor.affine()
    written = {name: constant.layers[name].map(lambda t: t.expand(4, *t.shape[1:])) for name in columns.layers}
    for i, (name, layer) in enumerate(columns.layers.items()):
        moved = layer.map(lambda t, i=i: torch.tensordot(codes[:, i], t, 1))
        expected = editor.unbounded(codes).layers[name].dense()
        torch.testing.assert_close(moved.dense().weight + written[name].dense().weight, expected.weight)
        if bias:
            torch.testing.assert_close(moved.bias + written[name].bias, expected.bias)
    kept = columns.flat().clone()
    with torch.no_grad():
        for p in editor.heads.parameters():
            p.zero_()
    assert torch.equal(columns.flat(), kept)


def test_codes_and_edits_have_the_promised_shapes():
    editor = _trained()
    codes = editor.codes(*contexts(6))
    assert codes.shape == (6, 2, 8)
    assert codes.abs().max() < 1
    edit = editor.unbounded(codes)
    assert edit.specs == editor.specs
    assert edit.host == HOST
    assert (editor.bounded(edit).layers["0"].weight.abs() <= editor.weight_scales[0]).all()
    assert editor.saturation(edit).shape == (2,)


def test_the_low_rank_payload_is_a_core():
    edit = _trained(head="low_rank", rank=2, bound="frobenius")(*contexts(3))
    for layer in edit.layers.values():
        assert isinstance(layer, FactoredEdit)
        assert layer.core.shape == (3, 2, 2)
        assert layer.shared_factors


def test_layers_without_bias_get_none():
    edit = editor_for(mlp(bias=False))(*contexts(3))
    assert all(layer.bias is None for layer in edit.layers.values())


def test_layers_have_mlps_and_heads_of_their_own():
    editor = editor_for(mlp())
    assert len({id(p) for p in editor.parameters()}) == len(list(editor.parameters()))
    assert {name.split(".")[1] for name in editor.state_dict() if name.startswith("heads")} == {"0", "1"}
    assert {name.split(".")[1] for name in editor.state_dict() if name.startswith("mlps")} == {"0", "1"}


def test_generation_starts_from_layers_of_ordinary_scale():
    editor = editor_for(mlp(), zero_start=False, bound="none", transfer="none")
    for layer in editor(*contexts(4)).layers.values():
        _out, in_ = layer.shape()
        assert 0.2 < layer.weight.std() * in_**0.5 < 1.0


def test_config_round_trip_and_errors():
    config = EditorConfig(context_dim=4, transfer="recurrent", tau=0.5)
    assert EditorConfig.from_dict(config.as_dict()) == config
    for settings, words in [
        ({"transfer": "stackd"}, "did you mean 'stacked'"),
        ({"head": "low"}, "low_rank"),
        ({"bound": "box"}, "Known"),
        ({"rank": 0}, "rank is 0"),
        ({"tau": -1.0}, "positive"),
    ]:
        with pytest.raises(ConfigError, match=words):
            EditorConfig(context_dim=4, **settings)
    with pytest.raises(ConfigError, match="did you mean 'width'"):
        EditorConfig.from_dict({"context_dim": 4, "widht": 3})
    with pytest.raises(ConfigError, match="at least one"):
        ParameterEditor(config, (), torch.zeros(0))


@by_variant
@pytest.mark.parametrize("share", [0.0, 0.3, 2.0])
def test_a_scaled_editor_makes_edits_of_that_share(settings, share):
    editor = editor_for(mlp(), **settings)
    for parameter in editor.heads.parameters():
        torch.nn.init.normal_(parameter)
    scaled = editor.scaled(share)
    torch.testing.assert_close(scaled(*contexts(5)).flat(), share * editor(*contexts(5)).flat(), rtol=1e-4, atol=1e-6)
    assert editor.config.tau == 1.0
    with pytest.raises(ConfigError, match="from 0 up"):
        editor.scaled(-1.0)


def test_a_centred_editor_and_a_host_with_its_mean_edit_say_the_same():
    module, (context, lengths), x = mlp(), contexts(7), torch.randn(7, 5)
    layers = AdaptiveLayers(module, ("0", "2"))
    editor = editor_for(module, transfer="none", bound="none", zero_start=False)
    with layers.applied(editor(context, lengths)):
        before = module(x)
    mean = editor.centre(editor.codes(context, lengths))
    torch.testing.assert_close(
        editor(context, lengths).flat().mean(0), torch.zeros(mean.flat().shape[1]), rtol=0, atol=1e-6
    )
    layers.add(mean)
    with layers.applied(editor(context, lengths)):
        torch.testing.assert_close(module(x), before, rtol=1e-4, atol=1e-5)
    with pytest.raises(MismatchError, match="of 7"):
        layers.add(editor(context, lengths))
    for settings in ({"bound": "tanh"}, {"bound": "none", "head": "low_rank"}):
        with pytest.raises(ConfigError, match="full heads without a bound"):
            editor_for(mlp(), **settings).centre(torch.zeros(1, 2, 32))


@by_variant
def test_a_saved_editor_gives_the_same_bits(settings, tmp_path):
    editor = _trained(**settings)
    editor.save(tmp_path / "editor")
    twin = ParameterEditor.load(tmp_path / "editor", HOST)
    assert torch.equal(twin(*contexts(9)).flat(), editor(*contexts(9)).flat())
    assert (twin.config, twin.specs, twin.host, twin.digest()) == (editor.config, editor.specs, HOST, editor.digest())
    assert not twin.training


def test_an_editor_of_another_host_is_refused(tmp_path):
    _trained().save(tmp_path)
    with pytest.raises(MismatchError, match=f"made for the host {HOST[:12]}, not for bbbbbbbbbbbb"):
        ParameterEditor.load(tmp_path, "b" * 64)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "edit"},
        {"version": 2},
        {"digest": "0" * 64},
        {"host": "c" * 64},
        {"config": {"context_dim": 4}},
        {"config": {"context_dim": 4, "widht": 8}},
        {"config": {"context_dim": 4, "width": 8, "tau": 2.0}},
        {"config": None},
        {"layers": [["0", 6, 5, True]]},
        {"layers": [["1", 6, 5, True], ["2", 3, 6, True]]},
        {"layers": [[]]},
        {"layers": []},
        {"layers": None},
    ],
    ids=str,
)
def test_a_changed_editor_is_refused(change, tmp_path):
    _trained().save(tmp_path)
    path = tmp_path / "editor.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(FormatError):
        ParameterEditor.load(tmp_path, HOST)


def test_the_tensors_of_another_editor_are_refused(tmp_path):
    _trained().save(tmp_path / "a")
    editor_for(mlp()).save(tmp_path / "b")
    (tmp_path / "b" / "editor.safetensors").replace(tmp_path / "a" / "editor.safetensors")
    with pytest.raises(FormatError, match="changed or damaged"):
        ParameterEditor.load(tmp_path / "a")


@pytest.mark.parametrize("name", ["editor.json", "editor.safetensors"])
def test_a_missing_or_cut_file_is_refused(name, tmp_path):
    _trained().save(tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(FormatError):
        ParameterEditor.load(tmp_path)
    path.unlink()
    with pytest.raises(FormatError, match="cannot be read"):
        ParameterEditor.load(tmp_path)
