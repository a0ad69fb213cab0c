import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_calibration_error

from persona.errors import DataError
from vision import metrics


def random_case(seed: int, rows: int = 200, classes: int = 4):
    rng = np.random.default_rng(seed)
    return rng.normal(0, 2, (rows, classes)), rng.integers(0, classes, rows), rng.integers(3, 9, rows)


@given(st.integers(0, 1000))
def test_devices_are_judged_one_by_one(seed):
    logits, labels, devices = random_case(seed, rows=40)
    own = metrics.per_device(logits, labels, devices)
    for i, device in enumerate(np.unique(devices)):
        mine = devices == device
        assert own["accuracy"][i] == pytest.approx((logits[mine].argmax(1) == labels[mine]).mean())
        loss = torch.nn.functional.cross_entropy(torch.from_numpy(logits[mine]), torch.from_numpy(labels[mine]))
        assert own["logloss"][i] == pytest.approx(float(loss))


def test_the_summary_averages_devices_not_images():
    logits = np.array([[1.0, 0.0]] * 10)
    labels = np.array([0] * 9 + [1])
    devices = np.array([0] * 9 + [1])
    summary = metrics.summary(logits, labels, devices)
    assert summary["accuracy"] == 0.5
    assert summary["accuracy_pooled"] == 0.9
    assert summary["accuracy_worst"] == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_calibration_agrees_with_torchmetrics(seed):
    logits, labels, _ = random_case(seed, rows=1000)
    oracle = multiclass_calibration_error(
        torch.from_numpy(logits).softmax(1), torch.from_numpy(labels), num_classes=4, n_bins=15, norm="l1"
    )
    assert metrics.expected_calibration_error(logits, labels) == pytest.approx(float(oracle), abs=1e-5)


def test_calibration_of_known_confidence():
    # Two images at confidence 0.75, one of them right.
    logits = np.log(np.array([[0.75, 0.25], [0.75, 0.25]]))
    assert metrics.expected_calibration_error(logits, np.array([0, 1])) == pytest.approx(0.25)
    sure = np.array([[50.0, 0.0], [0.0, 50.0]])
    assert metrics.expected_calibration_error(sure, np.array([0, 1])) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (np.zeros((0, 2)), "at least one image"),
        (np.zeros((3, 2)), "metrics need"),
        (np.full((2, 2), np.nan), "diverged"),
    ],
)
def test_what_cannot_be_judged(logits, message):
    with pytest.raises(DataError, match=message):
        metrics.per_device(logits, np.zeros(2, int)[: len(logits)], np.zeros(2, int)[: len(logits)])
