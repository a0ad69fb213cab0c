"""Every host and editor computes where it lies: on a card that torch only pretends, and on a real one where there is one."""

from dataclasses import replace

import pytest
import torch

from persona.training.objective import Part
from persona.training.ranks import Rows
from recsys.methods.persona import train_held_back
from recsys.methods.problem import Problem
from recsys.personalised import Personalised
from recsys.serving.release import Release
from tests.fake_card import CARD, fake_card
from tests.recsys.toy import SMALL, walks

KINDS = ("din", "gru4rec", "sasrec")
# Losses of two epochs of host and editor and the test UAUC, recorded before there was any device to choose.
RECORDED = {
    "sasrec": [
        ["0x1.2e5d2c0000000p-1", "0x1.07d52a0000000p-1"],
        ["0x1.0afaaa0000000p-1", "0x1.0612460000000p-1"],
        "0x1.186c48f986c49p-1",
    ],
    "din": [
        ["0x1.26ec320000000p-1", "0x1.01e5d00000000p-1"],
        ["0x1.4b068e0000000p-1", "0x1.04de4c0000000p-1"],
        "0x1.004b542804b54p-1",
    ],
}
on_a_card = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a graphics card")


def model_of(problem: Problem, edited: bool) -> Personalised:
    host = problem.new_host()
    return Personalised(host, problem.new_editor(host) if edited else None, edit_dropout=0.5)


@pytest.mark.parametrize("edited", [False, True], ids=["host", "editor"])
@pytest.mark.parametrize("kind", KINDS)
def test_forward_loss_and_backward_leave_nothing_on_the_cpu(kind, edited):
    problem = Problem(walks(20), replace(SMALL, host=kind, dropout=0.1, device="cpu"))
    model = model_of(problem, edited)
    objective = problem.objective(model, problem.split.train)
    batch = next(iter(objective.batches(0)))
    batch.features  # noqa: B018  # made before values are gone
    whole = Part(batch, Rows(0, len(batch), len(batch)), 1.0)
    with fake_card() as card:
        card.holds(model).train()
        loss = objective.loss(replace(whole, batch=card.fake(batch)).to(CARD).batch)
        loss.backward()
        assert loss.device == CARD
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert {gradient.device for gradient in gradients} == {CARD}


def test_a_batch_that_stays_behind_is_noticed():
    problem = Problem(walks(20), replace(SMALL, device="cpu"))
    model = model_of(problem, edited=False)
    objective = problem.objective(model, problem.split.train)
    batch = next(iter(objective.batches(0)))
    batch.features  # noqa: B018  # made before values are gone
    with fake_card() as card:
        card.holds(model)
        with pytest.raises(RuntimeError, match="device"):
            objective.loss(card.fake(batch))


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_asks_where_the_model_lies_and_answers_on_the_cpu(kind):
    problem = Problem(walks(20), replace(SMALL, host=kind, device="cpu"))
    model = model_of(problem, edited=True).eval()
    with problem.reporting():
        test = problem.test
    rows = torch.arange(4)
    context, candidates = test.contexts.index_select(rows), test.candidates[rows]
    with torch.no_grad(), fake_card() as card:
        card.holds(model)
        asked = Part((card.fake(context), card.fake(candidates)), Rows(0, 4, 4), 1.0).to(CARD).batch
        assert model.score(*asked).device == CARD
        assert model.score_catalogue(asked[0]).device == CARD
        assert model.codes(card.fake(context)).device.type == "cpu", "banks are made there"


@pytest.mark.parametrize("kind", list(RECORDED))
def test_on_the_cpu_nothing_has_changed(kind):
    problem = Problem(walks(), replace(SMALL, host=kind, dropout=0.1, sequences=kind == "sasrec", device="cpu"))
    problem.base_host()
    trained = train_held_back(problem)
    losses = [[e["loss"].hex() for e in r.history] for r in (problem.trainings.results["host"], trained.result)]
    with problem.reporting():
        test = problem.test
    assert [*losses, float(test.run(trained.scorer).summary["uauc"]).hex()] == RECORDED[kind]


def test_bf16_trains_in_float32_parameters_and_losses():
    problem = Problem(walks(), replace(SMALL, host="sasrec", precision="bf16", device="cpu"))
    exact = Problem(walks(), replace(SMALL, host="sasrec", device="cpu"))
    host = problem.base_host()
    exact.base_host()
    assert {p.dtype for p in host.parameters()} == {torch.float32}
    rounded, fine = ([e["loss"] for e in p.trainings.results["host"].history] for p in (problem, exact))
    assert rounded != fine
    assert rounded == pytest.approx(fine, rel=0.02)


@on_a_card
@pytest.mark.parametrize("kind", KINDS)
def test_a_card_trains_resumes_and_packs_what_the_cpu_loads(kind, tmp_path):
    config = replace(SMALL, host=kind, device="cuda", epochs=3, checkpoint_steps=2)
    problem = Problem(walks(), config, folder=tmp_path / "whole")
    trained = train_held_back(problem)
    model = trained.scorer
    assert isinstance(model, Personalised)
    assert model.host.device.type == "cuda"
    losses = [epoch["loss"] for epoch in problem.trainings.results["host_early"].history]
    assert losses[-1] < losses[0]
    again = train_held_back(Problem(walks(), config, folder=tmp_path / "whole"))
    assert again.result == trained.result, "the checkpoint is taken up"
    with problem.reporting():
        test = problem.test
    summary = test.run(model).summary
    data = problem.data
    Release(model, data.item_ids.to_list()).save(tmp_path / "bundle")
    loaded = Release.load(tmp_path / "bundle").model
    assert loaded.host.device.type == "cpu"
    assert loaded.host.digest() == model.host.digest()
    assert test.run(loaded).summary == pytest.approx(summary, abs=0.02)
