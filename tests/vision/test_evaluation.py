import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from persona.errors import ConfigError, DataError
from tests.vision.common import toy_images
from vision.evaluation import Evaluation

DATA = toy_images(devices=5, per_device=7)
ALL = np.arange(5)


class Recorder:
    """Says the right class, and writes down what it was asked."""

    def __init__(self, data):
        self.data, self.calls, self.started = data, [], []

    def start(self, device):
        self.started.append(device)

    def predict(self, window):
        self.calls.append((self.started[-1], window.positions.tolist(), window.new))
        assert torch.equal(window.images, self.data.tensor(window.positions))
        labels = self.data.label_tensor(window.positions[-window.new :])
        return torch.nn.functional.one_hot(labels, self.data.n_classes).float() * 10


@given(st.integers(1, 9), st.integers(1, 9))
def test_every_image_is_classified_once_from_its_past(context, step):
    if step > context:
        return
    evaluation = Evaluation(DATA, ALL, context=context, step=step)
    for device in ALL:
        seen = []
        for positions, new in evaluation.windows(device):
            assert len(positions) <= context
            assert new <= step
            assert (np.diff(positions) == 1).all()
            seen += positions[-new:].tolist()
            # As many past images as the context allows.
            assert len(positions) == min(context, positions[-1] - DATA.offsets[device] + 1)
        assert seen == list(range(DATA.offsets[device], DATA.offsets[device + 1]))


def test_windows_of_one_device():
    evaluation = Evaluation(DATA, np.array([1]), context=4, step=2)
    windows = [(p.tolist(), new) for p, new in evaluation.windows(1)]
    assert windows == [([7, 8], 2), ([7, 8, 9, 10], 2), ([9, 10, 11, 12], 2), ([10, 11, 12, 13], 1)]


def test_a_run():
    recorder = Recorder(DATA)
    evaluated = Evaluation(DATA, np.array([3, 1]), context=4, step=4).run(recorder)
    assert recorder.started == [1, 3]
    assert [call[2] for call in recorder.calls] == [4, 3, 4, 3]
    assert evaluated.devices.tolist() == [1, 3]
    assert evaluated.summary["accuracy"] == 1.0
    assert evaluated.summary["ms_per_image"] > 0
    assert (evaluated.predictions == DATA.labels[evaluated.positions]).all()


def test_a_limit_draws_devices():
    few = Evaluation(DATA, ALL, limit=3)
    assert len(few.devices) == 3
    assert np.array_equal(few.devices, Evaluation(DATA, ALL, limit=3).devices)
    assert Evaluation(DATA, ALL, limit=9).devices.tolist() == ALL.tolist()


def test_wrong_windows_are_refused():
    with pytest.raises(ConfigError, match="1 <= step <= context"):
        Evaluation(DATA, ALL, context=3, step=4)
    with pytest.raises(DataError, match="no devices"):
        Evaluation(DATA, ALL[:0])
