import numpy as np
import torch

from tests.vision.common import toy_images
from tests.vision.hosts.common import fresh_host
from vision.features import FeatureCache, all_features

DATA = toy_images(devices=3, per_device=4, classes=5, size=16)


def test_features_are_those_of_the_host():
    host = fresh_host("compact")
    cache = FeatureCache(host, DATA, np.array([1, 5, 7]))
    with torch.no_grad():
        expected = host.features(DATA.tensor(np.array([7, 1])))
    torch.testing.assert_close(cache[np.array([7, 1])], expected, rtol=1e-4, atol=1e-5)
    assert cache[np.array([[7, 1]])].shape == (1, 2, host.feature_dim)


def test_features_are_kept_for_the_same_images_and_body(tmp_path, monkeypatch):
    host = fresh_host("compact")
    first = all_features(host, DATA, tmp_path)
    monkeypatch.setattr(type(host), "features", lambda *_: 1 / 0)
    again = all_features(host, DATA, tmp_path)
    assert torch.equal(again.features, first.features)
    monkeypatch.undo()
    with torch.no_grad():
        host.head[0].weight.add_(1)
    all_features(host, DATA, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1, "the classifier is no part of it"
    with torch.no_grad():
        host.norms.shift.weight.add_(1)
    other = all_features(host, DATA, tmp_path)
    assert not torch.equal(other.features, first.features)
    all_features(host, toy_images(devices=2, per_device=4, classes=5, size=16), tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
