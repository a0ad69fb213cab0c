import numpy as np
import torch

from tests.vision.common import toy_images
from tests.vision.hosts.common import fresh_host
from vision.data.shifts import ShiftedImages
from vision.evaluation import Evaluation
from vision.features import FeatureCache, all_features, window_features
from vision.hosts import HostConfig, make_host
from vision.hosts.norms import own_statistics

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


def test_shifted_images_have_features_of_their_own(tmp_path):
    host = fresh_host("compact")
    plain = all_features(host, DATA, tmp_path)
    shifted = all_features(host, DATA, tmp_path, ShiftedImages(DATA, 1), "shift-1")
    assert not torch.allclose(shifted.features, plain.features)
    assert len(list(tmp_path.iterdir())) == 2


def test_features_of_windows_are_normalised_by_their_windows():
    host = fresh_host("compact")
    evaluation = Evaluation(DATA, np.arange(3), context=3, step=2)
    windows = [window for device in range(3) for window in evaluation.windows(device)]
    cache = window_features(host, DATA, windows, 2.0, None)
    own, new = windows[1]
    with torch.no_grad(), own_statistics(2.0):
        expected = host.features(DATA.tensor(own))[-new:]
    torch.testing.assert_close(cache[own[-new:]], expected)


def test_bodies_of_large_images_are_compiled_to_the_same_numbers():
    data = toy_images(devices=2, per_device=3, channels=3, size=72)
    torch.manual_seed(0)
    host = make_host(HostConfig("compact", 3, 3, 72)).eval()
    assert not host.config.small
    with torch.no_grad():
        expected = host.features(data.tensor(np.arange(6)))
    torch.testing.assert_close(FeatureCache(host, data, np.arange(6)).features, expected, rtol=1e-3, atol=1e-4)
    windows = [(np.arange(3), 3), (np.arange(3, 6), 3)]
    cache = window_features(host, data, windows, 2.0, None)
    with torch.no_grad(), own_statistics(2.0):
        expected = host.features(data.tensor(np.arange(3, 6)))
    torch.testing.assert_close(cache[np.arange(3, 6)], expected, rtol=1e-3, atol=1e-4)
