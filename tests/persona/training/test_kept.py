"""What is kept of trainings: where, once, and what is taken from there."""

import numpy as np
import pytest
import torch
from torch import nn

from persona.comparison import Measured
from persona.storage import read_json
from persona.training.kept import Trainings
from persona.training.objective import FitConfig
from tests.persona.training.test_loop import Regression, module, same


def trainings(root, owner=1, editor=1, on_epoch=None):
    return Trainings(root, "net-seed0", {"owner": owner}, {"editor": editor}, ("persona", "duet"), on_epoch)


def test_what_has_an_editor_depends_on_its_settings_too(tmp_path):
    here, other, elsewhere = trainings(tmp_path), trainings(tmp_path, editor=2), trainings(tmp_path, owner=2)
    assert here.folder_of("host") == other.folder_of("host") != elsewhere.folder_of("host")
    assert here.folder_of("persona_joint") == here.folder_of("duet") != other.folder_of("duet")
    assert read_json(here.folder_of("host") / "settings.json") == {"owner": 1}
    assert read_json(other.folder_of("duet") / "settings.json") == {"editor": 2}
    assert trainings(None).folder_of("host") is None


@pytest.mark.parametrize("kept", [True, False])
def test_a_training_that_is_done_is_taken_from_its_folder(tmp_path, kept):
    def trained(told):
        net = module()
        place = trainings(
            tmp_path if kept else None, on_epoch=lambda name, metrics: told.append((name, metrics["epoch"]))
        )
        place.fit("host", net, net.parameters(), Regression(net), FitConfig(epochs=2), about={"data": "x"})
        return net

    first, again = [], []
    one, two = trained(first), trained(again)
    assert first == again == [("host", 0.0), ("host", 1.0)]
    assert same(one, two)
    assert list(tmp_path.glob("net-seed0-*/host/*.safetensors")) if kept else not list(tmp_path.iterdir())


def test_a_network_is_trained_once_and_copied_for_every_caller():
    calls = []

    def train():
        calls.append(1)
        return module(seed=3)

    place = trainings(None)
    one, two = (place.network("host", train, lambda: nn.Sequential(*module())) for _ in range(2))
    assert len(calls) == 1
    assert same(one, module(seed=3))
    assert not one.training
    with torch.no_grad():
        one[0].weight.zero_()
    assert same(two, module(seed=3))


def test_a_measurement_is_made_once(tmp_path):
    def measure():
        return Measured("host", {"auc": 0.5}, {"auc": np.array([0.5])}, np.array([7]))

    def never():
        raise AssertionError("it was measured before")

    assert trainings(tmp_path).measured("host", measure).summary == {"auc": 0.5}
    assert trainings(tmp_path).measured("host", never).units.tolist() == [7]
    with pytest.raises(AssertionError):
        trainings(tmp_path, owner=2).measured("host", never)
    with pytest.raises(AssertionError):
        trainings(None).measured("host", never)
    with pytest.raises(AssertionError):
        trainings(tmp_path).measured("host", never, needed=("auc", "full_ndcg_10"))
    assert trainings(tmp_path).measured("host", never, needed=("auc",)).summary == {"auc": 0.5}
