"""A module of one's own with an editor: contexts in, edits out, prototypes, and all of it on disk."""

import copy
import json
import shutil

import pytest
import torch
from torch import nn

from persona import Attached, Edit, FitConfig, attach
from persona.errors import ConfigError, DataError, FormatError, MismatchError
from persona.prototypes import RefineConfig
from tests.persona.toy import mlp

B, T, D = 24, 6, 3


def contexts(batch: int = B, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, T, D, generator=torch.Generator().manual_seed(seed))


def batches(count: int = 4) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Outputs that depend on the context, which no fixed host can know."""
    made = []
    for seed in range(count):
        past = contexts(seed=seed)
        x = torch.randn(B, 5, generator=torch.Generator().manual_seed(100 + seed))
        made.append((past, x, x[:, :3] * past.mean(1).sign()))
    return made


def attached(**settings: object) -> Attached:
    return attach(mlp(), ["0", "2"], contexts(), width=8, **settings)


def trained() -> Attached:
    """With heads that are not zero."""
    made = attached()
    with torch.no_grad():
        for p in made.editor.heads.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    return made


def test_a_zero_edit_is_the_host_bit_for_bit():
    module, x = mlp(), torch.randn(B, 5)
    plain = module(x)
    persona = attach(module, "auto", contexts())
    assert torch.equal(persona(contexts(), x), plain)
    with persona.applied(Edit.zeros(persona.layers.specs, B, persona.editor.host)):
        assert torch.equal(module(x), plain)
    assert torch.equal(module(x), plain)


def test_fit_learns_from_contexts_and_leaves_the_host_alone():
    persona, (past, x, target) = attached(), batches()[0]
    before = copy.deepcopy(persona.module.state_dict())
    result = persona.fit(batches(), nn.functional.mse_loss, config=FitConfig(epochs=20, learning_rate=1e-2))
    first, best = result.history[0]["loss"], -result.best_value
    assert best < 0.8 * first
    assert nn.functional.mse_loss(persona(past, x), target) < nn.functional.mse_loss(persona.module(x), target)
    assert all(torch.equal(tensor, before[name]) for name, tensor in persona.module.state_dict().items())
    assert all(p.grad is None for p in persona.module.parameters())


def test_validation_batches_choose_the_epoch():
    persona = attached()
    wrong = [(past, x, -target) for past, x, target in batches()]
    result = persona.fit(
        batches(), nn.functional.mse_loss, validation=wrong, config=FitConfig(epochs=5, learning_rate=1e-2)
    )
    losses = [epoch["validation_loss"] for epoch in result.history]
    assert result.best_epoch == losses.index(min(losses))


def test_a_killed_fit_goes_on_to_the_same_bits(tmp_path):
    def fitted(folder, epochs):
        persona = attached()
        persona.fit(batches(), nn.functional.mse_loss, config=FitConfig(epochs, learning_rate=1e-2), folder=folder)
        return persona.edit(contexts()).flat()

    fitted(tmp_path / "a", 2)
    assert torch.equal(fitted(tmp_path / "a", 4), fitted(None, 4))


def test_a_loop_of_ones_own():
    persona, (past, x, target) = attached(), batches()[0]
    optimizer = torch.optim.Adam(persona.parameters(), lr=1e-2)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        with persona.applied(persona.edit(past)):
            loss = nn.functional.mse_loss(persona.module(x), target)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def test_contexts_of_any_kind_through_a_function():
    def read(texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        lengths = torch.tensor([len(t) for t in texts])
        padded = [[[float(ord(c)), 1.0] for c in t.ljust(5)] for t in texts]
        return torch.tensor(padded) / 100, lengths

    persona = attach(mlp(), ["*"], ["abc", ""], read, width=8)
    with torch.no_grad():
        persona.editor.heads[0].weight.weight.fill_(0.1)
    one = persona.edit(["abc", "", "abcde"])
    assert len(one) == 3
    assert torch.equal(one[0].flat(), persona.edit(["abc", "b"])[0].flat())


def test_several_inputs():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp()

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return self.body(x + y)

    persona = attach(Two(), "body.*", contexts())
    given = [(past, (x, x), target) for past, x, target in batches(1)]
    assert persona.fit(given, nn.functional.mse_loss, config=FitConfig(epochs=1)).epochs == 1


def test_prototypes_from_partition_to_refinement():
    persona = trained()
    past = torch.cat([contexts(), contexts() + 3])
    bank = persona.fit_prototypes(past, k=2)
    found = persona.assign(past)
    assert set(found.tolist()) == {0, 1}
    assert torch.equal(persona.edit(past, "prototype").flat(), bank.prototype(found).flat())
    assert len(persona.edit(past, "basis")) == len(past)
    made = persona.refine(past + 0.5, torch.arange(len(past)), RefineConfig(min_users=2, budget=10.0))
    assert made.bank.parent == bank.version
    assert persona.bank is made.bank
    assert made.movement.max() > 0


def test_what_needs_prototypes_says_how_to_get_them():
    for call in (persona := attached()).assign, lambda c: persona.edit(c, "basis"):
        with pytest.raises(ConfigError, match=r"call fit_prototypes\(contexts, k\) first"):
            call(contexts())


def test_prototypes_of_an_editor_that_was_trained_on_are_refused():
    persona = trained()
    persona.fit_prototypes(contexts(), k=2)
    persona.fit(batches(1), nn.functional.mse_loss, config=FitConfig(epochs=1))
    with pytest.raises(MismatchError, match="use both from the same release"):
        persona.assign(contexts())


def test_users_of_another_number_are_refused():
    persona = trained()
    persona.fit_prototypes(contexts(), k=2)
    with pytest.raises(DataError, match="give one each"):
        persona.refine(contexts(), torch.arange(3))


@pytest.mark.parametrize("bank", [False, True])
def test_a_folder_gives_the_same_bits(bank, tmp_path):
    persona = trained()
    if bank:
        persona.fit_prototypes(contexts(), k=2)
    persona.save(tmp_path / "kept")
    persona.save(tmp_path / "kept")
    twin = Attached.load(tmp_path / "kept", mlp())
    for level in ("full", "prototype", "basis") if bank else ("full",):
        assert torch.equal(twin.edit(contexts(), level).flat(), persona.edit(contexts(), level).flat())
    x = torch.randn(B, 5)
    assert torch.equal(twin(contexts(), x), persona(contexts(), x))
    assert not torch.equal(twin(contexts(), x), twin.module(x))


def test_another_module_is_refused(tmp_path):
    trained().save(tmp_path / "kept")
    with pytest.raises(MismatchError, match="was made for the host"):
        Attached.load(tmp_path / "kept", mlp(seed=1))


@pytest.mark.parametrize("name", ["attached.json", "editor/editor.json", "editor/editor.safetensors", "bank/bank.json"])
def test_a_damaged_folder_is_refused(name, tmp_path):
    persona = trained()
    persona.fit_prototypes(contexts(), k=2)
    persona.save(tmp_path / "kept")
    path = tmp_path / "kept" / name
    whole = path.read_bytes()
    for part in (whole[: len(whole) // 2], b"", b"[]"):
        path.write_bytes(part)
        with pytest.raises(FormatError):
            Attached.load(tmp_path / "kept", mlp())
    path.unlink()
    with pytest.raises(FormatError):
        Attached.load(tmp_path / "kept", mlp())


def test_parts_of_two_saves_are_refused(tmp_path):
    one, two = trained(), trained()
    one.fit_prototypes(contexts(), k=2)
    one.save(tmp_path / "one")
    two.fit_prototypes(contexts(), k=3)
    two.save(tmp_path / "two")
    shutil.rmtree(tmp_path / "one" / "bank")
    shutil.copytree(tmp_path / "two" / "bank", tmp_path / "one" / "bank")
    with pytest.raises(FormatError, match="is not the bank that was saved"):
        Attached.load(tmp_path / "one", mlp())


def test_a_folder_with_something_else_is_not_overwritten(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ConfigError, match="which would be lost"):
        attached().save(tmp_path)
    assert (tmp_path / "letter.txt").read_text() == "dear"


def test_another_release_is_refused(tmp_path):
    attached().save(tmp_path / "kept")
    path = tmp_path / "kept" / "attached.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 2}))
    with pytest.raises(FormatError, match="version 1"):
        Attached.load(tmp_path / "kept", mlp())


def test_an_edit_of_another_host_is_refused():
    other = attach(mlp(seed=1), "auto", contexts())
    with pytest.raises(MismatchError, match="this edit was made for the host"):
        attached().applied(other.edit(contexts()))


@pytest.mark.parametrize("given", [contexts()[0], contexts()[:, :, :2], [1.0, 2.0]])
def test_contexts_of_another_shape_are_refused(given):
    with pytest.raises(MismatchError, match=r"tensor \(B, T, 3\)"):
        attached().edit(given)


def test_batches_that_can_be_read_only_once_are_refused():
    with pytest.raises(ConfigError, match="give a list"):
        attached().fit(iter(batches()), nn.functional.mse_loss)
    with pytest.raises(ConfigError, match="not a single validation batch"):
        attached().fit(batches(1), nn.functional.mse_loss, validation=[], config=FitConfig(epochs=1))


def test_an_unknown_setting_is_refused():
    with pytest.raises(ConfigError, match="unknown editor setting 'widht'"):
        attach(mlp(), "auto", contexts(), widht=8)
