"""Hosts that have not seen what they are judged on."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from persona.errors import ConfigError
from tests.persona.sealed import sealed
from tests.vision.common import toy_images
from tests.vision.hosts.common import fresh_host
from tests.vision.methods.test_methods import CONFIG
from vision.methods import Problem
from vision.methods.finetune import SHARES, finetune_adaptive, finetune_interpolated, interpolated
from vision.methods.folds import choose, device_folds, population_folds, populations
from vision.methods.host import train_host
from vision.methods.persona import GATES, train_cross_fitted, train_gated, train_tuned
from vision.objectives import Mixture
from vision.personalised import Personalised

DATA = toy_images(devices=24, per_device=4, classes=5, size=16)
GROUPS = tuple("abc"[i % 3] for i in range(24))
SETTINGS = {"host": "compact", "adaptive": "classifier", "shifts": 1, "validation_share": 0.3, "adapt_share": 0.3}
CONFIG = replace(CONFIG, **SETTINGS)
UNKNOWN = replace(CONFIG, host_groups="a,b", adapt_groups="a,b", test_groups="c")


@pytest.fixture(scope="module")
def unknown():
    """Deployed on a population of which nobody has an image, and no choice looks at one."""
    return sealed(Problem(replace(DATA, groups=GROUPS), UNKNOWN))


def test_populations_are_left_out_where_the_one_at_test_is_unknown(unknown):
    assert populations(unknown) == ["a", "b"]
    groups = np.array(GROUPS)
    for fold in population_folds(unknown):
        assert set(groups[fold.devices]) == set(groups[fold.validation.devices]) == {fold.name}
        assert fold.name not in set(groups[fold.known])
        assert not set(fold.devices) & set(fold.validation.devices)
    known = Problem(replace(DATA, groups=GROUPS), replace(UNKNOWN, test_groups="a"))
    assert populations(known) == []


def test_parts_of_the_devices_are_left_out_elsewhere():
    problem = Problem(DATA, CONFIG)
    folds = device_folds(problem)
    assert np.array_equal(np.sort(np.concatenate([fold.devices for fold in folds])), problem.split.adapt)
    with pytest.raises(ConfigError, match="raise adapt_share"):
        device_folds(Problem(DATA, replace(CONFIG, adapt_share=0.05)))


def test_a_choice_is_judged_over_hosts_that_do_not_know_the_population(unknown):
    judged = []

    def make(host, choice):
        judged.append(host.digest())
        return Personalised(host)

    assert choose(unknown, (1, 2), make) == 1, "the first of equals"
    assert set(judged) == {fold.host.digest() for fold in population_folds(unknown)}
    assert unknown.base_host().digest() not in judged


def test_the_editor_is_trained_over_folds_and_deployed_over_the_whole_host(unknown):
    trained = train_cross_fitted(unknown)
    assert trained.classifier.host.digest() == train_host(unknown).classifier.host.digest()
    assert trained.classifier.host.digest() == unknown.base_host().digest()
    known = Problem(DATA, replace(CONFIG, editor_learning_rate=0.05, monitor="accuracy_worst", editor_epochs=4))
    tuned = finetune_adaptive(known).classifier.host
    assert train_cross_fitted(known).classifier.host.digest() == tuned.digest()


def test_the_host_that_devices_have_is_not_selected_on_a_population_that_it_is_deployed_on():
    data, groups = replace(DATA, groups=GROUPS), np.array(GROUPS)
    shifted = Problem(data, replace(CONFIG, host_groups="a,b", test_groups="c"))
    assert set(groups[shifted.split.validation]) == {"c"}
    assert set(groups[shifted._host_validation]) <= {"a", "b"}
    seen = []
    judge = shifted.evaluation
    shifted.evaluation = lambda devices, limit=None: seen.extend(devices.tolist()) or judge(devices, limit)
    shifted.base_host()
    assert set(groups[seen]) <= {"a", "b"}, "no device of the new population was looked at"
    assert "host_validation" in shifted.owner()
    for settings in (CONFIG, UNKNOWN):
        plain = Problem(data, settings)
        assert np.array_equal(plain._host_validation, plain.split.validation)
        assert "host_validation" not in plain.owner()


def test_interpolation_reaches_from_the_host_to_the_tuned_one():
    host, tuned = fresh_host("compact", "classifier"), fresh_host("compact", "classifier", seed=1)
    weight = [interpolated(host, tuned, share).head[-1].weight for share in (0.0, 0.5, 1.0)]
    assert torch.equal(weight[0], host.head[-1].weight)
    assert torch.equal(weight[2], tuned.head[-1].weight)
    torch.testing.assert_close(weight[1], (weight[0] + weight[2]) / 2)


def test_how_far_to_go_is_chosen_on_populations_that_neither_has_seen(unknown):
    trained = finetune_interpolated(unknown)
    assert trained.chosen["share"] in SHARES
    ends = (unknown.base_host(), finetune_adaptive(unknown).classifier.host)
    expected = interpolated(*ends, trained.chosen["share"])
    assert trained.classifier.host.digest() == expected.digest()


def test_a_gate_is_chosen_on_populations_that_the_editor_has_not_met(unknown):
    trained, tuned = train_gated(unknown), train_tuned(unknown)
    assert trained.chosen["gate"] in GATES
    window = torch.randn(2, 3, trained.classifier.host.feature_dim)
    whole = tuned.classifier.edit(window).flat()
    torch.testing.assert_close(trained.classifier.edit(window).flat(), trained.chosen["gate"] * whole)
    assert trained.classifier.host.digest() == tuned.classifier.host.digest()
    # Editors that left a population out, as many as there are, decide.
    assert {name for name in ("a", "b") if unknown.trainings.results.get(f"host_without_{name}")} == {"a", "b"}


def test_a_mixture_takes_its_share_of_every_part(unknown):
    model = unknown.personalise(unknown.base_host(), fixed_host=True)
    parts = [unknown.objective(model, unknown.split.adapt, copy=copy) for copy in (0, 1)]
    mixture = Mixture(parts, parts[:1], 0)
    batches = list(mixture.batches(3))
    assert sorted(parts.index(part) for part, _ in batches) == [0, 1]
    assert float(mixture.loss(batches[0])) == float(batches[0][0].loss(batches[0][1]))
    assert mixture.validate() == parts[0].validate()
