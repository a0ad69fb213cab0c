"""The methods that emit an edit without an editor of the method: clusters and APG."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from recsys.methods import Problem, train_method
from recsys.methods.cluster import ClusterLayers, mean_embedding, training_contexts
from tests.recsys.toy import SMALL, walks


@pytest.fixture(scope="module")
def problem():
    return Problem(walks(), SMALL)


@pytest.fixture(scope="module")
def editor(problem):
    return train_method("persona_held_back", problem).scorer


def test_a_context_gets_the_layers_of_its_nearest_cluster(problem):
    host = problem.new_host()
    layers = ClusterLayers(torch.tensor([[0.0] * 8, [1.0] * 8]), host.adaptive.specs)
    with torch.no_grad():
        layers.layers.copy_(torch.arange(2.0)[:, None].expand_as(layers.layers))
    context = torch.zeros(3, 5, 8)
    context[1, :2], context[2, 0] = 0.9, 0.2
    flat = layers(context, torch.tensor([0, 2, 1])).flat()
    assert flat[:, 0].tolist() == [0.0, 1.0, 0.0]
    assert mean_embedding(context, torch.tensor([0, 2, 1]))[:, 0].tolist() == pytest.approx([0.0, 0.9, 0.2])


def test_clusters_learn_layers_of_their_own_over_a_fixed_host(problem):
    trained = train_method("finetune_cluster", problem)
    model = trained.scorer
    assert trained.chosen["clusters"] in (4.0, 16.0)
    base = problem.base_host().state_dict()
    assert all(torch.equal(base[name], tensor) for name, tensor in model.host.state_dict().items())
    layers = model.editor.layers
    assert (layers.norm(dim=1) > 0).sum() > 1
    assert (layers[0] - layers[1]).norm() > 0


def test_apg_generates_low_rank_layers_that_keep_signals_alive(problem):
    trained = train_method("apg", problem)
    model = trained.scorer
    assert all((p == 0).all() for p in model.host.adaptive_parameters())
    assert (model.editor.config.head, model.editor.config.bound) == ("low_rank", "none")
    edit = model.edit(problem.validation.contexts.index_select(torch.arange(6)))
    for layer in edit.layers.values():
        size = torch.linalg.matrix_norm(layer.dense().weight, ord=2)
        assert (size > 0.3).all()
    assert (edit.flat()[0] - edit.flat()[1:]).norm(dim=1).max() > 1e-3, "another device gets other layers"


def test_training_contexts_are_distinct_and_come_before_validation(problem, editor):
    contexts = training_contexts(problem, editor)
    rows = np.column_stack([contexts.items.numpy(), contexts.lengths.numpy()])
    assert len(np.unique(rows, axis=0)) == len(rows)
    items, lengths = problem.data.contexts(problem.everything, 5)
    assert {tuple(r) for r in np.column_stack([items, lengths])} == {tuple(r) for r in rows}


def test_settings_that_differ_in_the_editors_width_do_not_share_an_apg(tmp_path):
    folders = {Problem(walks(), replace(SMALL, width=w), folder=tmp_path).trainings.folder_of("apg") for w in (4, 8)}
    assert len(folders) == 2
