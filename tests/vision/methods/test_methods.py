from dataclasses import replace

import numpy as np
import pytest
import torch

from persona.comparison import compare
from persona.errors import ConfigError
from persona.methods import ReadBeforeReport
from persona.storage import read_json
from tests.persona.sealed import sealed
from tests.vision.common import TINY, toy_images
from tests.vision.hosts.common import fresh_host, pictures
from vision.config import VisionConfig
from vision.evaluation import Window
from vision.methods import METHODS, Problem, measure, train_configured, train_method
from vision.methods.batch_norm import BatchNorm
from vision.methods.finetune import DeviceFinetuning
from vision.methods.lame import Lame, affinity, corrected
from vision.methods.persona import brackets
from vision.methods.problem import edit_bytes
from vision.methods.t3a import T3A
from vision.methods.tent import Tent

DATA = toy_images(devices=12, per_device=6, classes=5, size=16)
CONFIG = VisionConfig(**TINY, validation_devices=1)
KNOWN = ("held_back", "cross_fitted", "tuned", "joint")


def window(count: int = 4, new: int = 3, seed: int = 0) -> Window:
    return Window(pictures(count, seed=seed), np.arange(count), new)


def host_logits(host, images):
    with torch.no_grad():
        return host(images)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("vision")


@pytest.fixture(scope="module")
def problem(folder):
    """Its test part explodes when anything but a report touches it."""
    return sealed(Problem(DATA, CONFIG, folder=folder))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_measured_and_kept(problem, method):
    measured = measure(problem, method)
    assert measured.units.tolist() == Problem(DATA, CONFIG).split.test.tolist()
    assert set(measured.per_unit) == {"accuracy", "logloss"}
    assert measured.summary["forward_passes"] >= 1
    assert (measured.summary["backward_passes"] > 0) == (method in ("tent", "finetune_device"))
    sends = ("persona", "duet", "finetune_a", "finetune_i", "trained", "host_refreshed", "joint_body")
    assert (measured.refresh_bytes > 0) == (method.startswith(sends) and measured.chosen.get("gate") != 0)
    again = measure(Problem(DATA, CONFIG, folder=problem.trainings.root), method)
    assert again.summary == measured.summary


def test_a_method_that_looks_at_test_devices_is_found_out(problem, monkeypatch):
    monkeypatch.setitem(METHODS, "cheat", lambda problem: train_method("host", problem) if problem.test else None)
    with pytest.raises(ReadBeforeReport):
        measure(problem, "cheat")
    monkeypatch.setitem(METHODS, "cheat", lambda problem: problem.data.positions_of(problem.split.test))
    with pytest.raises(AssertionError, match="a decision read the test part"):
        measure(problem, "cheat")


def test_methods_are_compared_on_the_same_devices(problem):
    seed = {name: measure(problem, name) for name in ("host", "t3a", "persona_held_back")}
    rows = compare([seed])
    assert [row.method for row in rows] == list(seed)
    assert set(rows[1].differences) == {"accuracy", "logloss"}


def test_settings_of_editors_share_the_host(problem, folder):
    measure(problem, "host")
    other = Problem(DATA, VisionConfig(**(CONFIG.as_dict() | {"adaptive": "classifier", "rank": 1})), folder=folder)
    assert other.trainings.folder_of("host") == problem.trainings.folder_of("host")
    assert other.trainings.folder_of("persona_held_back") != problem.trainings.folder_of("persona_held_back")
    assert read_json(other.trainings.folder_of("host") / "settings.json")["host"] == "mobilenet_v3_small"
    same = zip(other.base_host().state_dict().items(), problem.base_host().state_dict().items(), strict=True)
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in same)


def test_auto_takes_the_mode_that_validation_prefers(problem):
    results = {mode: train_method(f"persona_{mode}", problem).result for mode in KNOWN}
    best = max(KNOWN, key=lambda mode: max(row["accuracy"] for row in results[mode].history))
    mode, trained = train_configured(problem)
    assert mode == best
    assert trained.chosen[best] == 1.0
    assert train_configured(Problem(DATA, replace(CONFIG, mode="frozen"), folder=problem.trainings.root))[0] == "frozen"


def test_auto_leaves_out_what_too_few_devices_cannot_train():
    few = toy_images(devices=8, per_device=4, classes=5, size=16)
    assert [bracket.modes for bracket in brackets(Problem(DATA, CONFIG))] == [KNOWN]
    assert [bracket.modes for bracket in brackets(Problem(few, CONFIG))] == [("held_back", "tuned", "joint")]


def test_the_whole_method_sends_a_remainder_of_what_validation_chose(problem):
    measured = measure(problem, "persona")
    assert measured.chosen[train_configured(problem)[0]] == 1.0
    assert 1 <= measured.chosen["prototypes"] <= CONFIG.prototypes
    assert measured.refresh_bytes <= 64


def test_hosts_without_edits_stand_beside_the_modes_that_edit_them(problem):
    for plain, edited in (("host_refreshed", "persona_cross_fitted"), ("joint_body", "persona_joint")):
        host, mode = train_method(plain, problem), train_method(edited, problem)
        assert host.classifier.host.digest() == mode.classifier.host.digest()
        assert host.classifier.editor is None
        assert host.refresh_bytes == mode.body_bytes > 0
        assert host.body_bytes == 0


def test_fine_tuning_of_everything_learns_from_all_devices_that_joint_training_has(problem, monkeypatch):
    learned, train = {}, problem.train

    def watched(name, model, parameters, devices, **options):
        learned[name] = devices.tolist()
        return train(name, model, parameters, devices, **options)

    monkeypatch.setattr(problem, "train", watched)
    for name in ("finetune_all", "persona_joint"):
        train_method(name, problem)
    assert learned["finetune_everything"] == learned["persona_joint"]
    assert len(learned["persona_joint"]) > len(problem.split.adapt)


def test_what_is_generated_for_a_device():
    problem = Problem(DATA, CONFIG)
    model = problem.personalise(fresh_host())
    with torch.no_grad():
        edit = model.edit(model.host.features(pictures(2, 3)))
    channels = len(model.host.norms.scale.weight)
    # Norms whole; the two linear layers as cores of rank 2, with their biases.
    assert edit_bytes(edit) == 4 * (2 * channels + 4 + 1024 + 4 + 5)


def test_an_unknown_method(problem):
    with pytest.raises(ConfigError, match="did you mean 'tent'"):
        train_method("tend", problem)


@pytest.mark.parametrize("make", [lambda h: BatchNorm(h, 2.0), lambda h: Tent(h, 1e-3, 4.0), lambda h: T3A(h, 5)])
def test_a_device_does_not_depend_on_the_one_before(make):
    host = fresh_host()
    before = {name: tensor.clone() for name, tensor in host.state_dict().items()}
    fresh, used = make(host), make(host)
    used.start(0)
    for seed in range(3):
        used.predict(window(seed=seed))
    for classifier in (fresh, used):
        classifier.start(1)
    assert torch.equal(fresh.predict(window(seed=7)), used.predict(window(seed=7)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in host.state_dict().items())


def test_batch_norm_uses_the_whole_window():
    host = fresh_host()
    adapted = BatchNorm(host, 1.0)
    first = adapted.predict(window(4, new=2))
    shown = window(4, new=2)
    shown.images[0] = 255
    assert first.shape == (2, 5)
    assert not torch.allclose(adapted.predict(shown), first)
    far = BatchNorm(host, 1e9).predict(window(4, new=2))
    torch.testing.assert_close(far, host_logits(host, window().images)[-2:], rtol=1e-3, atol=1e-4)


def test_tent_lowers_the_entropy():
    host = fresh_host()
    tent = Tent(host, 1e-2, 4.0)

    def entropy(logits):
        return float(-(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean())

    outputs = [entropy(tent.predict(window(6, new=6))) for _ in range(8)]
    assert outputs[-1] < outputs[0]
    changed = [n for n, p in tent.host.named_parameters() if not torch.equal(p, dict(host.named_parameters())[n])]
    assert changed == ["norms.scale.weight", "norms.shift.weight"]


def test_t3a_follows_the_algorithm():
    host = fresh_host()
    t3a = T3A(host, 1)
    shown = window(6, new=6)
    with torch.no_grad():
        z = host.head[:-1](host.features(shown.images))
        candidates = torch.cat([host.head[-1].weight, z])
        logits = host.head[-1](candidates)
        p = logits.softmax(1)
        entropy, label = -(p * p.log()).sum(1), logits.argmax(1)
        rows = []
        for k in range(5):
            own = torch.nonzero(label == k)[:, 0]
            best = own[entropy[own].argmin()] if len(own) else None
            rows.append(
                torch.zeros(z.shape[1]) if best is None else torch.nn.functional.normalize(candidates[best], dim=0)
            )
        expected = z @ torch.stack(rows).T
    torch.testing.assert_close(t3a.predict(shown), expected, rtol=1e-3, atol=1e-4)


def test_neighbours_of_a_window():
    features = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    assert affinity(features, 1).tolist() == [[0, 1, 0], [1, 0, 0], [0, 1, 0]]
    assert affinity(features[:1], 3).tolist() == [[0]]


def test_lame_agrees_with_its_neighbours():
    beliefs = torch.tensor([[0.9, 0.1], [0.45, 0.55], [0.1, 0.9]])
    none, linked = torch.zeros(3, 3), torch.tensor([[0.0, 1, 0], [1, 0, 0], [0, 0, 0]])
    torch.testing.assert_close(corrected(beliefs, none), beliefs)
    z = corrected(beliefs, linked)
    assert z[1, 0] > 0.5
    torch.testing.assert_close(z[2], beliefs[2])
    # A fixed point of the update.
    torch.testing.assert_close(z, (beliefs.log() + linked @ z).softmax(1), rtol=1e-3, atol=1e-4)
    single = Lame(fresh_host(), 3).predict(window(1, new=1))
    assert torch.isfinite(single).all()


def test_the_upper_bound_never_sees_the_label_it_predicts():
    host = fresh_host(adaptive="classifier")
    changed = DATA.labels.copy()
    changed[2] = (changed[2] + 1) % 5
    other = replace(DATA, labels=changed)
    shown = Window(DATA.tensor(np.arange(6)), np.arange(6), 6)
    outputs = [DeviceFinetuning(host, data, 1e-3).predict(shown) for data in (DATA, other)]
    assert torch.equal(outputs[0][2], outputs[1][2])
    assert not torch.equal(outputs[0][3], outputs[1][3])
    newest = DeviceFinetuning(host, DATA, 1e-3).predict(replace(shown, new=2))
    torch.testing.assert_close(newest, outputs[0][-2:])


def test_the_upper_bound_learns_every_class_where_images_come_class_after_class(monkeypatch):
    """Labels 0 1 2 3 4 0 1 2 3 4 ..: folds by place would each leave out one class wholly."""
    data = toy_images(devices=1, per_device=20, classes=5, size=16)
    data = replace(data, labels=np.arange(20) % 5)
    seen = []
    tuned = DeviceFinetuning(fresh_host(adaptive="classifier"), data, 1e-3)
    monkeypatch.setattr(tuned, "_tuned", lambda positions: seen.append(set(data.labels[positions])) or tuned.host)
    logits = tuned.predict(Window(data.tensor(np.arange(20)), np.arange(20), 20))
    assert len(seen) == 5
    assert all(len(classes) == 5 for classes in seen)
    torch.testing.assert_close(logits, host_logits(tuned.host, data.tensor(np.arange(20))), rtol=1e-3, atol=1e-4)
