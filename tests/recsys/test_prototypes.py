"""From training contexts to a bank: which contexts, which K, and specialisation that never harms."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from persona.errors import ConfigError
from persona.prototypes import BankConfig, Lineage, Server
from persona.prototypes.specialisation import TrainablePrototype
from persona.prototypes.user_statistics import MAX_USER
from pipelines.steps.release import served_bank
from recsys import prototypes as module
from recsys.data.batches import Context
from recsys.methods import Problem
from recsys.objectives import RowObjective
from recsys.personalised import Personalised
from recsys.prototypes import WithPrototype, at_level, evaluate_levels, fit_bank, user_numbers
from recsys.serving.release import Release
from tests.recsys.toy import ITEMS, SMALL, personalised, sequences, walks

CONFIG = replace(SMALL, protocol="time", epochs=2)


@pytest.fixture(scope="module")
def problem():
    return Problem(walks(users=80, events=14), CONFIG)


@pytest.fixture(scope="module")
def model():
    return personalised(learned=True)


@pytest.fixture(scope="module")
def fitted(problem, model):
    remarks: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MIN_JUDGES", 2)
        found = fit_bank(problem, model, BankConfig(max_k=4, min_stability=-1.0), remarks.append)
    assert remarks[0] == "choosing K"
    return found


def test_users_have_the_same_number_in_every_log():
    numbers = user_numbers(["7", "u1", "7", "ü"])
    assert numbers[0] == numbers[2]
    assert len(set(numbers.tolist())) == 3
    assert 0 <= int(numbers.min()) <= int(numbers.max()) < MAX_USER


def test_a_context_counts_once_a_basket():
    data = sequences([[1, 2, 3, 4], [5, 6]], [[1, 5, 5, 7], [5, 6]])
    contexts = module.PersonalContexts(data, np.array([1, 2, 3, 5]), 3)
    context, users = contexts.at(torch.arange(len(contexts)))
    assert context.items.tolist() == [[1, 0, 0], [1, 2, 3], [5, 0, 0]]
    assert users.tolist() == [0, 0, 1]


def test_a_bank_stands_on_training_contexts_alone(problem, model, fitted):
    counted = len(np.unique(problem.everything))
    assert len(fitted.codes) == len(fitted.users) == counted
    assert float(fitted.partition.bank.members.sum()) == counted
    statistics = fitted.partition.statistics
    known = set(user_numbers(problem.data.user_ids.to_list()).tolist())
    assert set(statistics.users.tolist()) <= known
    items, lengths = problem.data.contexts(np.unique(problem.everything)[:5], 5)
    codes = model.codes(Context(torch.from_numpy(items), torch.from_numpy(lengths)))
    assert torch.equal(codes, fitted.codes[:5])


def test_more_contexts_than_fit_are_streamed_into_the_same_bank(problem, model, fitted, monkeypatch):
    config = BankConfig(k=2, specialise=False)
    whole = fit_bank(problem, model, config).partition
    monkeypatch.setattr(module, "FIT_CONTEXTS", len(fitted.codes) // 2)
    monkeypatch.setattr(module, "BLOCK_CONTEXTS", 100)
    found = fit_bank(problem, model, config)
    streamed = found.partition
    assert streamed.contexts == len(fitted.codes) > len(found.codes) == len(streamed.sample) > 100
    assert streamed.bank.members.sum() == whole.bank.members.sum()
    assert streamed.history[-1] == pytest.approx(whole.inertia, rel=0.02)
    assert streamed.statistics.users.tolist() == whole.statistics.users.tolist()


def test_k_is_the_smallest_that_is_nearly_as_good(fitted):
    choice = fitted.choice
    assert [c.k for c in choice.candidates] == [1, 2, 4]
    assert len(fitted.bank) == choice.k
    gain = max(fitted.levels["edit"] - fitted.levels["host"], 0.0)
    enough = [c.k for c in choice.candidates if c.score >= max(x.score for x in choice.candidates) - 0.05 * gain]
    assert choice.k == min(enough)


def test_specialisation_is_kept_only_where_validation_favours_it(problem, model, fitted):
    before = evaluate_levels(problem.validation, model, fitted.partition.bank, ("prototype",))["prototype"]
    assert fitted.levels["prototype"] >= before.summary["uauc"]
    assert len(fitted.specialised.chosen) == len(fitted.bank)
    if fitted.bank.version != fitted.partition.bank.version:
        assert fitted.bank.parent == fitted.partition.bank.version
        assert fitted.levels["prototype"] > before.summary["uauc"]


def test_a_given_k_is_not_chosen_and_gives_the_same_bits_again(problem, model):
    config = BankConfig(k=3, specialise=False)
    one, two = (fit_bank(problem, model, config) for _ in range(2))
    assert one.choice is one.specialised is None
    assert len(one.bank) == 3
    assert one.bank.version == two.bank.version
    Server(model.editor, one.bank)


def test_an_editor_that_learned_nothing_makes_one_prototype(problem):
    found = fit_bank(problem, personalised(), BankConfig(max_k=8))
    assert [c.k for c in found.choice.candidates] == [1]
    assert len(set(found.levels.values())) == 1, "which changes nothing"
    assert len(fit_bank(problem, personalised(), BankConfig(k=4, specialise=False)).bank) == 1, "also if asked for more"


def test_a_host_alone_has_no_prototypes(problem):
    with pytest.raises(ConfigError, match="this model has no editor"):
        fit_bank(problem, personalised(editor=False), BankConfig())


@pytest.mark.parametrize("kind", ["gru4rec", "din"])
def test_a_prototype_trains_on_its_rows_and_the_host_stays(problem, kind):
    host = personalised(kind, learned=True)
    plain = Release(host, [str(i) for i in range(1, ITEMS + 1)])
    context = plain.context([[1, 2], [3, 4, 5]])
    start = host.editor.unbounded(plain.codes(context))[0].detach()
    scales, bound = host.editor.weight_scales, host.editor.bound
    trained = WithPrototype(host.host, TrainablePrototype(start, bound, scales))
    before = {name: t.clone() for name, t in host.host.state_dict().items()}
    candidates = torch.tensor([[1, 2, 3], [4, 5, 6]])
    expected = host.host.score(host.host.encode(context), candidates, trained.prototype())
    assert torch.allclose(trained.score(context, candidates), expected)
    objective = RowObjective(
        trained, problem.data, problem.split.adapt[:40], problem.validation, CONFIG.loss_config(), 0
    )
    module.fit(trained, trained.prototype.parameters(), objective, CONFIG.fit_config(0.05))
    assert not torch.equal(trained.prototype.unbounded().flat(), start.flat())
    assert all(torch.equal(t, before[name]) for name, t in host.host.state_dict().items())


def test_levels_are_what_devices_apply(model, fitted):
    context = Release(model, [str(i) for i in range(1, ITEMS + 1)]).context([[1, 2], [3, 4, 5]])
    assert isinstance(at_level(model, fitted.bank, "host"), Personalised)
    assert at_level(model, fitted.bank, "host").edit(context) is None
    assert at_level(model, fitted.bank, "edit") is model
    nearest = Server(model.editor, fitted.bank).assign(model.codes(context))
    applied = at_level(model, fitted.bank, "prototype").edit(context)
    assert torch.equal(applied.flat(), fitted.bank.prototype(nearest).flat())


def test_a_lineage_serves_the_bank_of_this_very_editor(fitted, model, tmp_path):
    lineage = Lineage(tmp_path, fitted.partition.bank.host)
    assert served_bank(lineage, model) is None
    lineage.save(fitted.partition.bank)
    assert served_bank(lineage, model).version == fitted.partition.bank.version
    assert served_bank(lineage, personalised()) is None, "another editor of the same host"
    assert served_bank(lineage, personalised(editor=False)) is None


@pytest.mark.parametrize(("setting", "value"), [("k", -1), ("max_k", 0), ("tolerance", -0.1)])
def test_settings_out_of_range_are_refused(setting, value):
    with pytest.raises(ConfigError, match=setting):
        BankConfig(**{setting: value})
    assert BankConfig(max_k=20).sizes == [1, 2, 4, 8, 16]
    assert BankConfig(k=5).sizes == [5]
