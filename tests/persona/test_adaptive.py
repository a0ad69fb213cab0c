import copy
import threading

import pytest
import torch
from torch import nn

from persona.adaptive import AdaptiveLayers, linear_layers
from persona.edits import Edit
from persona.errors import ConfigError, MismatchError
from tests.persona.toy import HOST, mlp, random_edit


def test_layers_are_found_by_name_and_keep_their_parameters():
    module = nn.ModuleDict({"body": nn.Linear(5, 5), "head": mlp()})
    before = dict(module.named_parameters())
    layers = AdaptiveLayers(module, ["head.0", "head.2"])
    assert [s.name for s in layers.specs] == ["head.0", "head.2"]
    assert [(s.out_features, s.in_features) for s in layers.specs] == [(6, 5), (3, 6)]
    after = dict(module.named_parameters())
    assert list(before) == list(after)
    assert all(after[name] is before[name] for name in before)
    assert {id(p) for p in layers.parameters()} == {id(p) for n, p in after.items() if n.startswith("head")}


@pytest.mark.parametrize(
    ("names", "words"), [(["0", "9"], "no linear layer '9'"), (["0", "0"], "twice"), (["1"], "'1'")]
)
def test_wrong_names_are_refused(names, words):
    with pytest.raises(ConfigError, match=words):
        AdaptiveLayers(mlp(), names)


def test_adapting_twice_is_harmless():
    module = mlp()
    first, second = AdaptiveLayers(module, ["0"]), AdaptiveLayers(module, ["0", "2"])
    assert first.layers["0"] is second.layers["0"]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [1, 4])
def test_zero_edit_is_the_host_bit_for_bit(bias, batch):
    module = mlp(bias)
    x = torch.randn(4, 9, 5)
    plain = module(x)
    layers = AdaptiveLayers(module, ["0", "2"])
    with layers.applied(Edit.zeros(layers.specs, batch)):
        assert torch.equal(module(x), plain)
    assert torch.equal(module(x), plain)


@pytest.mark.parametrize("shape", [(4, 5), (4, 9, 5), (4, 2, 3, 5)])
def test_batched_edits_equal_one_by_one(shape):
    module, edit = mlp(), random_edit(4)
    layers = AdaptiveLayers(module, ["0", "2"])
    x = torch.randn(shape)
    with layers.applied(edit):
        batched = module(x)
    for i in range(4):
        with layers.applied(edit[i]):
            torch.testing.assert_close(batched[i : i + 1], module(x[i : i + 1]), rtol=1e-5, atol=1e-6)
        twin = copy.deepcopy(module)
        with torch.no_grad():
            for name, layer in edit.dense().layers.items():
                twin.get_submodule(name).weight += layer.weight[i].T
                twin.get_submodule(name).bias += layer.bias[i]
        torch.testing.assert_close(batched[i : i + 1], twin(x[i : i + 1]), rtol=1e-5, atol=1e-6)


def test_factored_edits_give_the_same_outputs_as_dense_ones():
    module, edit = mlp(), random_edit(4).low_rank(2)
    layers = AdaptiveLayers(module, ["0", "2"])
    x = torch.randn(4, 7, 5)
    with layers.applied(edit):
        factored = module(x)
    with layers.applied(edit.dense()):
        torch.testing.assert_close(factored, module(x), rtol=1e-5, atol=1e-6)


def test_wrong_layers_and_wrong_batch_are_refused():
    module = mlp()
    layers = AdaptiveLayers(module, ["0"])
    with pytest.raises(MismatchError, match="made for this host"), layers.applied(random_edit(2)):
        pass
    layers = AdaptiveLayers(module, ["0", "2"])
    with pytest.raises(MismatchError, match="3 rows"), layers.applied(random_edit(2)):
        module(torch.randn(3, 5))


def test_an_edit_ends_with_its_block_even_after_an_error():
    module = mlp()
    layers = AdaptiveLayers(module, ["0", "2"])
    x = torch.randn(1, 5)
    plain = module(x)
    with pytest.raises(RuntimeError), layers.applied(random_edit(1)):
        raise RuntimeError
    assert torch.equal(module(x), plain)


def test_threads_do_not_see_each_others_edits():
    module = mlp()
    layers = AdaptiveLayers(module, ["0", "2"])
    x = torch.randn(1, 5)
    plain, seen = module(x), []
    with layers.applied(random_edit(1)):
        thread = threading.Thread(target=lambda: seen.append(module(x)))
        thread.start()
        thread.join()
        assert not torch.equal(module(x), plain)
    assert torch.equal(seen[0], plain)


def test_a_copy_of_the_host_has_edits_of_its_own():
    module = mlp()
    layers = AdaptiveLayers(module, ["0", "2"])
    twin = copy.deepcopy(module)
    x = torch.randn(1, 5)
    plain = twin(x)
    with layers.applied(random_edit(1)):
        assert torch.equal(twin(x), plain)


def test_an_edit_of_another_host_is_refused():
    random_edit(1).check_host(HOST)
    with pytest.raises(MismatchError, match="bbbb"):
        random_edit(1).check_host("b" * 64)


def test_weight_scales_are_root_mean_squares():
    module = mlp()
    layers = AdaptiveLayers(module, ["0", "2"])
    expected = [module[0].weight.square().mean().sqrt(), module[2].weight.square().mean().sqrt()]
    torch.testing.assert_close(layers.weight_scales(), torch.stack(expected).detach())


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.body = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.head = nn.Linear(4, 2)


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["body.*", "head"], ["body.0", "body.1", "head"]),
        (["head", "body.1"], ["body.1", "head"]),
        (["*"], ["body.0", "body.1", "head"]),
        (["auto"], ["body.1", "head"]),
        (["h*d", "head"], ["head"]),
    ],
)
def test_patterns_mean_linear_layers_in_the_order_of_the_module(patterns, names):
    assert linear_layers(Encoder(), patterns) == names


def test_layers_that_torch_runs_without_calling_them_cannot_be_edited():
    with pytest.raises(ConfigError, match=r"'block.linear1' that can be edited \(torch runs those of its attention"):
        linear_layers(Encoder(), ["block.linear1"])


def test_a_pattern_without_a_layer_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'head'"):
        linear_layers(Encoder(), ["body.*", "heads"])
    with pytest.raises(ConfigError, match="no linear layer 'auto'"):
        linear_layers(nn.Tanh(), ["auto"])


def test_patterns_find_layers_that_are_adaptive_already():
    module = mlp()
    AdaptiveLayers(module, ["0"])
    assert linear_layers(module, ["*"]) == ["0", "2"]
