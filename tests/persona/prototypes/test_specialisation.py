import pytest
import torch

from persona.edits import DenseEdit, Edit, FactoredEdit
from persona.errors import DataError, MismatchError
from persona.prototypes import Assigner, same_prototypes, specialise
from persona.prototypes.specialisation import TrainablePrototype
from tests.persona.prototypes.world import by_head, codes, metric, partition
from tests.persona.toy import SPECS, random_edit

GOOD = {1, 3}


def _tune(index, prototype):
    return prototype * (1.1 if index in GOOD else 1.2)


def _score(scores):
    """Start 0; a trained prototype is better for the good ones; an editor is worth what ``scores`` says."""

    def score(index, prototype, editor):
        start = float(partition().bank.prototypes[index].norm())
        trained = float(prototype.norm()) > 1.05 * start
        value = (1.0 if index in GOOD else -1.0) if trained else 0.0
        return value if editor is None else scores[index]

    return score


def test_what_validation_says_is_kept():
    bank = partition().bank
    made = specialise(bank, _tune, _score({0: 0.5, 1: 0.5, 2: 0.0, 3: 2.0}), lambda j, prototype: f"editor {j}")
    before, after = bank.prototypes.flat(), made.bank.prototypes.flat()
    for j in range(4):
        torch.testing.assert_close(after[j], before[j] * (1.1 if j in GOOD else 1.0))
    # An editor has to beat the trained prototype too; equal is not better.
    assert made.editors == {0: "editor 0", 3: "editor 3"}
    assert [c.prototype for c in made.chosen] == [False, True, False, True]
    assert made.chosen[1].scores == {"start": 0.0, "prototype": 1.0, "editor": 0.5}
    assert made.bank.parent == bank.version
    assert made.bank.metadata == {"kind": "specialise", "trained": [1, 3]}
    assert made.bank.origin.tolist() == [0, 1, 2, 3]
    assert made.report()["editors_kept"] == [0, 3]
    assert made.report()["prototypes_kept"] == [1, 3]


def test_an_editor_is_trained_for_the_prototype_that_was_kept():
    seen = {}
    specialise(partition().bank, _tune, _score(dict.fromkeys(range(4), 0.0)), lambda j, p: seen.update({j: p}))
    for j, prototype in seen.items():
        expected = partition().bank.prototypes[j].flat() * (1.1 if j in GOOD else 1.0)
        torch.testing.assert_close(prototype.flat(), expected)


def test_without_improvement_the_prototypes_stay_bit_for_bit():
    made = specialise(partition().bank, lambda j, p: p * 2.0, lambda j, p, e: 0.0)
    assert same_prototypes(made.bank, partition().bank)
    assert made.editors == {}


@by_head
def test_trained_prototypes_may_leave_what_codes_make(head):
    bank = partition(head).bank
    free = random_edit(1, scale=0.2)
    made = specialise(bank, lambda j, p: p.dense() + free, lambda j, p, e: float(p.layers["0"].batch_size == 1) * j)
    assert same_prototypes(made.bank, bank)
    wins = iter(range(8))
    made = specialise(bank, lambda j, p: p.dense() + free, lambda j, p, e: float(next(wins)))
    assert all(isinstance(layer, DenseEdit) for layer in made.bank.prototypes.layers.values())
    z = codes(30)
    expected = torch.stack([(metric(head).edits(z) - made.bank.prototypes[j].expand(30)).norm() for j in range(4)], 1)
    assert torch.equal(Assigner(metric(head), made.bank.prototypes)(z).prototypes, expected.argmin(1))


def test_training_within_the_factors_keeps_them():
    wins = iter(range(8))
    made = specialise(partition("low_rank").bank, lambda j, p: p * 1.5, lambda j, p, e: float(next(wins)))
    assert all(isinstance(layer, FactoredEdit) for layer in made.bank.prototypes.layers.values())


def test_what_is_refused():
    bank = partition().bank
    with pytest.raises(DataError, match="prototype 0 is not finite"):
        specialise(bank, lambda j, p: p * float("nan"), lambda j, p, e: 0.0)
    with pytest.raises(DataError, match="score of prototype 0 is nan"):
        specialise(bank, lambda j, p: p, lambda j, p, e: float("nan"))
    for foreign in (Edit.zeros(SPECS, 1, "b" * 64), Edit.zeros(SPECS[:1], 1, bank.host), bank.prototypes[:2]):
        with pytest.raises(MismatchError, match="trained prototype 0"):
            specialise(bank, lambda j, p, foreign=foreign: foreign, lambda j, p, e: 0.0)


def trainable(head: str, index: int = 1) -> TrainablePrototype:
    bank = partition(head).bank
    return TrainablePrototype(bank.prototypes[index], bank.bound, bank.weight_scales)


@by_head
def test_it_starts_as_the_prototype(head):
    bank, module = partition(head).bank, trainable(head)
    assert torch.allclose(module().flat(), bank.prototype(1).dense().flat(), atol=1e-6)
    assert torch.allclose(module.unbounded().flat(), bank.prototypes[1].flat(), atol=1e-6)
    assert (module.unbounded().specs, module.unbounded().host) == (bank.prototypes.specs, bank.host)


@by_head
def test_every_number_of_it_learns_and_the_bank_does_not_change(head):
    bank, module = partition(head).bank, trainable(head)
    before = bank.prototypes.flat().clone()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module().flat().square().sum().backward()
    assert module.flat.grad is not None
    assert bool((module.flat.grad[module.flat.abs() > 1e-3] != 0).all())
    optimizer.step()
    assert float(module().detach().norm()) < float(bank.prototype(1).norm())
    assert torch.equal(bank.prototypes.flat(), before)
