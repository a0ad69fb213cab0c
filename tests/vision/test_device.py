"""Every host and editor computes where it lies: on a card that torch only pretends, and on a real one where there is one."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from persona.training.objective import Part
from persona.training.ranks import Rows
from tests.fake_card import CARD, fake_card
from tests.vision.common import toy_images
from vision.config import VisionConfig
from vision.contexts import CONTEXTS, ContextReader
from vision.evaluation import Window
from vision.hosts import Host, HostConfig, make_host
from vision.methods.lame import Lame
from vision.methods.persona import train_held_back
from vision.methods.problem import Problem
from vision.methods.t3a import T3A
from vision.objectives import ImageObjective
from vision.personalised import Personalised, make_editor
from vision.serving.release import Release

KINDS = ("compact", "mobilenet_v3_small", "resnet18", "shufflenet_v2")
SMALL = VisionConfig(
    host="compact",
    epochs=2,
    editor_epochs=2,
    steps_per_epoch=3,
    batch_size=16,
    devices_per_batch=4,
    context_images=4,
    step=4,
    rank=2,
    width=8,
)
# Losses of two epochs of host and editor and the test accuracy, recorded before there was any device to choose.
RECORDED = [
    ["0x1.e206b20000000p-1", "0x1.fa8bf80000000p-2"],
    ["0x1.0ace220000000p+0", "0x1.0ac1e20000000p+0"],
    "0x1.8cccccccccccdp-1",
]
on_a_card = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a graphics card")


def host_of(kind: str, adaptive: str = "all") -> Host:
    return make_host(HostConfig(kind, n_classes=3, channels=1, size=32, adaptive=adaptive))


def model_of(host: Host, context: str = "pooled", *, fixed: bool = False) -> Personalised:
    reader = ContextReader(context, host)
    config = SMALL.editor_config(reader.dim)
    return Personalised(host, reader, make_editor(host, config), fixed_host=fixed, edit_dropout=0.5)


def learn(model: Personalised, images: torch.Tensor, labels: torch.Tensor) -> None:
    """One loss and its gradients, of a batch on the CPU that the model's objective sends to the card."""
    with fake_card() as card:
        card.holds(model).train()
        batch = Part((card.fake(images), card.fake(labels)), Rows(0, 2, 2), 1.0).to(CARD).batch
        logits = model(batch[0]).float()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, -2), batch[1].flatten())
        loss.backward()
        assert loss.device == CARD
        assert {p.grad.device for p in model.parameters() if p.grad is not None} == {CARD}


@pytest.mark.parametrize("kind", KINDS)
def test_hosts_leave_nothing_on_the_cpu(kind):
    learn(Personalised(host_of(kind)), torch.zeros(4, 1, 32, 32, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize("adaptive", ["classifier", "norms", "all"])
@pytest.mark.parametrize("context", ["pooled", "classes"])
def test_editors_leave_nothing_on_the_cpu(adaptive, context):
    images, labels = torch.zeros(2, 3, 1, 32, 32, dtype=torch.uint8), torch.zeros(2, 3, dtype=torch.int64)
    learn(model_of(host_of("compact", adaptive), context), images, labels)


@pytest.mark.parametrize("context", CONTEXTS)
def test_every_context_is_read_on_the_card_and_its_codes_come_to_the_cpu(context):
    model = model_of(host_of("compact", "classifier"), context, fixed=True).eval()
    with torch.no_grad(), fake_card() as card:
        card.holds(model)
        assert model.codes(torch.empty(2, 3, model.host.feature_dim)).device.type == "cpu"


@pytest.mark.parametrize("method", [lambda host: Lame(host, 1), lambda host: T3A(host, 0), Personalised])
def test_classifiers_answer_where_the_host_lies(method):
    host = host_of("compact").eval()
    with torch.no_grad(), fake_card() as card:
        classifier = method(card.holds(host))
        images = torch.zeros(4, 1, 32, 32, dtype=torch.uint8)
        window = Part(Window(images, np.arange(4), 2), Rows(0, 1, 1), 1.0).to(CARD).batch
        if isinstance(classifier, T3A):
            assert classifier.supports.device == CARD  # how many supports a class has takes values
        elif isinstance(classifier, Lame):
            assert host.classify(host.features(window.images)).device == CARD
        else:
            assert classifier.eval().predict(window).device == CARD


def test_an_objective_moves_images_and_features_alike():
    problem = Problem(toy_images(24), replace(SMALL, device="cpu"))
    model = Personalised(problem.new_host())
    objective = problem.objective(model, problem.split.train)
    assert isinstance(objective, ImageObjective)
    batch = next(iter(objective.batches(0)))
    with fake_card() as card:
        card.holds(model).train()
        moved = Part(card.fake((objective, batch)), Rows(0, 1, 1), 1.0).to(CARD).batch
        assert moved[0] is objective, "what is no batch stays"
        assert moved[1].features is None
        assert objective.loss(moved[1]).device == CARD


def test_on_the_cpu_nothing_has_changed():
    problem = Problem(toy_images(24), replace(SMALL, device="cpu"))
    problem.base_host()
    trained = train_held_back(problem)
    losses = [[e["loss"].hex() for e in r.history] for r in (problem.trainings.results["host"], trained.result)]
    with problem.reporting():
        test = problem.test
    assert [*losses, float(test.run(trained.classifier).summary["accuracy"]).hex()] == RECORDED


def test_bf16_trains_in_float32_parameters_and_losses():
    problem = Problem(toy_images(24), replace(SMALL, device="cpu", precision="bf16"))
    trained = train_held_back(problem)
    model = trained.classifier
    assert isinstance(model, Personalised)
    assert {t.dtype for t in model.state_dict().values()} == {torch.float32}
    losses = [e["loss"] for e in problem.trainings.results["host"].history]
    assert losses == pytest.approx([float.fromhex(loss) for loss in RECORDED[0]], rel=0.05)
    assert losses != [float.fromhex(loss) for loss in RECORDED[0]]


@on_a_card
@pytest.mark.parametrize("kind", KINDS)
def test_a_card_trains_resumes_and_packs_what_the_cpu_loads(kind, tmp_path):
    config = replace(SMALL, host=kind, device="cuda", epochs=3)
    problem = Problem(toy_images(24), config, folder=tmp_path / "whole")
    trained = train_held_back(problem)
    model = trained.classifier
    assert isinstance(model, Personalised)
    assert model.host.device.type == "cuda"
    losses = [epoch["loss"] for epoch in problem.trainings.results["host"].history]
    assert losses[-1] < losses[0]
    again = train_held_back(Problem(toy_images(24), config, folder=tmp_path / "whole"))
    assert again.result == trained.result, "the checkpoint is taken up"
    with problem.reporting():
        test = problem.test
    summary = test.run(model).summary
    Release(model, problem.data.class_names, problem.data.image_shape).save(tmp_path / "bundle")
    loaded = Release.load(tmp_path / "bundle").model
    assert loaded.host.device.type == "cpu"
    assert loaded.host.digest() == model.host.digest()
    assert test.run(loaded).summary["accuracy"] == pytest.approx(summary["accuracy"], abs=0.1)
