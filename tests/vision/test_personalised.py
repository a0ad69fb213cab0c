"""The context reader, host and editor together, and how they learn."""

import numpy as np
import pytest
import torch

from persona.editor import EditorConfig
from persona.errors import ConfigError, DataError
from persona.training.loop import fit
from persona.training.objective import FitConfig
from tests.vision.common import toy_images
from tests.vision.hosts.common import fresh_host, pictures, small_host
from vision.contexts import CONTEXTS, ContextReader
from vision.evaluation import Evaluation, Window
from vision.features import FeatureCache
from vision.objectives import DeviceObjective, ImageObjective, LossConfig, batched_logits
from vision.personalised import Personalised, make_editor

DATA = toy_images(devices=10, per_device=6, classes=5, size=16)
TRAIN, VALIDATION = np.arange(6), np.arange(6, 10)
CLOSE = {"rtol": 1e-3, "atol": 1e-4}
SMALL = LossConfig(batch_size=16, devices=3, context=4, steps=4)


def personalised(adaptive: str = "all", context: str = "pooled", awake: bool = True, **options) -> Personalised:
    """Host and editor; an awake editor edits, an untrained one does not."""
    host = fresh_host(adaptive=adaptive)
    reader = ContextReader(context, host)
    torch.manual_seed(0)
    config = EditorConfig(context_dim=reader.dim, width=8, head="low_rank", rank=2, bound="frobenius", transfer="none")
    editor = make_editor(host, config)
    if awake:
        for head in editor.heads:
            for parameter in head.parameters():
                parameter.data += 0.05 * torch.randn_like(parameter)
    return Personalised(host, reader, editor, **options).eval()


@pytest.mark.parametrize("kind", CONTEXTS)
def test_tokens(kind):
    host = small_host()
    reader = ContextReader(kind, host)
    with torch.no_grad():
        context = host.context_features(host.features(pictures(3, 4)))
    tokens, lengths = reader(context)
    assert tokens.shape == (3, {"images": 4, "pooled": 2, "features": 2, "beliefs": 1, "classes": 5}[kind], reader.dim)
    assert (lengths == tokens.shape[1]).all()
    shuffled, _ = reader(context[:, [2, 0, 3, 1]])
    assert torch.allclose(shuffled, tokens, atol=1e-4) == (kind != "images")
    with pytest.raises(ConfigError, match="unknown context"):
        ContextReader("dreams", host)


def test_features_alone_are_read_without_the_classifier():
    model = personalised(context="features")
    with torch.no_grad():
        features = model.host.features(pictures(2, 3))
        before = model.edit(features).flat()
        model.host.head[-1].weight.mul_(3)
        assert torch.equal(model.edit(features).flat(), before)
    assert before.norm() > 0


def test_beliefs_say_what_is_seen_how_surely_and_what_is_confused():
    host = small_host()
    reader = ContextReader("beliefs", host)
    sure = torch.nn.functional.one_hot(torch.tensor([1, 1, 2]), 5).float()
    context = torch.cat([torch.randn(3, host.feature_dim), sure], dim=1).unsqueeze(0)
    [[token]], _ = reader(context)
    torch.testing.assert_close(token[:5], sure.mean(0))
    assert token[5:10].argmax() == 1
    confused = token[15:40].reshape(5, 5)
    assert confused.abs().sum(1).nonzero()[:, 0].tolist() == [1, 2]
    assert float(token[-2]) == pytest.approx(0, abs=1e-4), "nothing is in doubt"
    assert float(token[-1]) == pytest.approx(3**-0.5)
    context[..., : host.feature_dim] += 1
    torch.testing.assert_close(reader(context)[0][0, 0], token)


def test_a_reader_standardises_what_the_host_has_learned_from():
    host = small_host()
    features, labels = torch.randn(60, host.feature_dim) * 3 + 2, torch.arange(60) % 5
    reader = ContextReader("images", host)
    reader.fit(features, labels)
    tokens, _ = reader(torch.cat([features, torch.zeros(60, 5)], dim=1).unsqueeze(0))
    seen = tokens[0, :, : host.feature_dim]
    torch.testing.assert_close(seen.mean(0), torch.zeros(host.feature_dim), atol=1e-4, rtol=0)
    torch.testing.assert_close(seen.std(0), torch.ones(host.feature_dim), atol=1e-3, rtol=0)
    torch.testing.assert_close(reader.class_means[2], seen[labels == 2].mean(0))


def test_classes_are_told_by_how_they_differ_from_what_was_learned():
    host = small_host()
    reader = ContextReader("classes", host)
    reader.class_means.copy_(torch.randn(5, host.feature_dim))
    # Three images of class 1, shifted by 0.5 against what the host knows of it.
    belief = torch.nn.functional.one_hot(torch.tensor([1, 1, 1]), 5).float()
    context = torch.cat([reader.class_means[1] + torch.full((3, 1), 0.5), belief], dim=1)
    tokens, _ = reader(context.unsqueeze(0))
    torch.testing.assert_close(tokens[0, 1, :-1], torch.full((host.feature_dim,), 1.5 / 4))
    assert tokens[0, :, -1].tolist() == [0, 1, 0, 0, 0]
    assert tokens[0, 2].abs().max() == 0


@pytest.mark.parametrize("adaptive", ["classifier", "norms", "all"])
def test_an_untrained_editor_is_the_host_bit_for_bit(adaptive):
    model, images = personalised(adaptive, awake=False), pictures(3, 4)
    with torch.no_grad():
        assert torch.equal(model(images), model.host(images))


@pytest.mark.parametrize("adaptive", ["classifier", "all"])
def test_a_window_is_classified_as_in_training(adaptive):
    model, data = personalised(adaptive), DATA
    positions = np.arange(6)
    window = Window(data.tensor(positions), positions, new=2)
    with torch.no_grad():
        whole = model(data.tensor(positions).unsqueeze(0))[0]
    torch.testing.assert_close(model.predict(window), whole[-2:], **CLOSE)
    assert not torch.allclose(whole, model.host(window.images), **CLOSE)
    alone = Personalised(model.host).predict(window)
    torch.testing.assert_close(alone, model.host(window.images)[-2:], **CLOSE)


@pytest.mark.parametrize("adaptive", ["classifier", "all"])
@pytest.mark.parametrize(("context", "step"), [(4, 4), (4, 2)])
def test_batched_validation_equals_the_evaluation(adaptive, context, step):
    model = personalised(adaptive, fixed_host=True)
    evaluation = Evaluation(DATA, VALIDATION, context=context, step=step)
    cache = FeatureCache(model.host, DATA, DATA.positions_of(VALIDATION))
    one_by_one = evaluation.run(model)
    for used in (None, cache):
        positions, logits = batched_logits(model, evaluation, used)
        together = evaluation.judge(logits, positions)
        assert np.array_equal(together.positions, one_by_one.positions)
        assert together.summary["logloss"] == pytest.approx(one_by_one.summary["logloss"], rel=1e-3)


def test_windows_come_from_single_devices_and_the_seed():
    model = personalised("classifier", fixed_host=True)
    objective = DeviceObjective(model, DATA, TRAIN, Evaluation(DATA, VALIDATION), SMALL, seed=3)
    batches = list(objective.batches(0))
    assert len(batches) == 4
    assert batches[0].labels.shape == (3, 4)
    assert all(1 <= batch.labels.shape[1] <= 4 for batch in batches)
    assert batches[0].images is None
    again = list(objective.batches(0))
    assert all(torch.equal(a.features, b.features) for a, b in zip(batches, again, strict=True))
    assert not torch.equal(batches[0].features, next(iter(objective.batches(1))).features)
    everything = objective.cache.features
    for window in batches[0].features:
        rows = [int(torch.argmin((everything - row).abs().sum(1))) for row in window]
        assert len(set(DATA.device_of(np.array(rows)))) == 1
        assert np.diff(rows).tolist() == [1, 1, 1]


def test_no_devices_to_learn_from():
    with pytest.raises(DataError, match="no devices to learn from"):
        DeviceObjective(personalised(), DATA, TRAIN[:0], Evaluation(DATA, VALIDATION), SMALL, seed=0)


@pytest.mark.parametrize("adaptive", ["classifier", "norms", "all"])
def test_an_editor_learns_and_leaves_the_host_alone(adaptive):
    model = personalised(adaptive, awake=False, fixed_host=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    objective = DeviceObjective(model, DATA, TRAIN, Evaluation(DATA, VALIDATION, context=4, step=4), SMALL, seed=0)
    batch = objective.batch(np.stack([np.arange(6 * d, 6 * d + 4) for d in range(3)]))
    start = objective.loss(batch).item()
    optimizer = torch.optim.Adam(model.editor.parameters(), 1e-3)
    model.train()
    for _ in range(8):
        optimizer.zero_grad()
        objective.loss(batch).backward()
        optimizer.step()
    assert objective.loss(batch).item() < start - 0.01
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    # The bound's scale is a buffer and stays; everything else of the editor moves.
    wanted = {n for n in before if n.startswith("editor.") and n != "editor.weight_scales"}
    assert changed == wanted


def test_host_and_editor_learn_together():
    model = personalised("all", awake=False, edit_dropout=0.5)
    objective = DeviceObjective(model, DATA, TRAIN, Evaluation(DATA, VALIDATION), SMALL, seed=0)
    assert objective.cache is None
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    model.train()
    torch.manual_seed(1)
    for batch in objective.batches(0):
        optimizer.zero_grad()
        objective.loss(batch).backward()
        optimizer.step()
    assert [n for n, p in model.named_parameters() if torch.equal(p, before[n])] == []


def test_edit_dropout_switches_whole_devices_off():
    model = personalised("classifier", edit_dropout=0.5).train()
    model.host.eval()
    images = pictures(8, 2)
    torch.manual_seed(0)
    with torch.no_grad():
        host, edited = model.host(images), model(images)
    off = [torch.equal(a, b) for a, b in zip(host, edited, strict=True)]
    assert 0 < sum(off) < 8


def test_a_host_trains_and_resumes_to_the_same_bits(tmp_path):
    def train(epochs: int, folder):
        model = Personalised(fresh_host(adaptive="classifier"))
        objective = ImageObjective(model, DATA, TRAIN, Evaluation(DATA, VALIDATION), SMALL, seed=0)
        result = fit(model, model.parameters(), objective, FitConfig(epochs=epochs, patience=9), folder=folder)
        return model, result

    straight, result = train(2, tmp_path / "a")
    train(1, tmp_path / "b")
    resumed, _ = train(2, tmp_path / "b")
    assert result.history[1]["loss"] < result.history[0]["loss"]
    for a, b in zip(straight.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_images_of_an_epoch():
    model = Personalised(small_host())
    objective = ImageObjective(model, DATA, np.array([0, 2, 4]), Evaluation(DATA, VALIDATION), SMALL, seed=0)
    labels = torch.cat([batch.labels for batch in objective.batches(0)])
    assert len(labels) == 18
    wanted = DATA.labels[DATA.positions_of(np.array([0, 2, 4]))]
    assert sorted(labels.tolist()) == sorted(wanted.tolist())
