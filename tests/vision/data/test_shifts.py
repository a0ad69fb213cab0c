"""Simulated shifts: a device keeps its own, images keep their shape, and colours their channels."""

import numpy as np
import pytest
import torch

from tests.vision.common import toy_images
from vision.data.shifts import SHIFTS, ShiftedImages, shift

DATA = toy_images(devices=6, per_device=4, channels=3)
EVERYTHING = np.arange(DATA.n_images)


@pytest.mark.parametrize("name", SHIFTS)
def test_every_shift_keeps_the_shape_and_changes_the_image(name):
    images = DATA.tensor(np.arange(4))
    images[:, 0] //= 3
    changed = SHIFTS[name](images, np.random.default_rng(3))
    assert changed.shape == images.shape
    assert changed.dtype == torch.uint8
    assert not torch.equal(changed, images)


def test_a_device_is_shifted_as_a_whole_whatever_is_asked_for():
    shifted = ShiftedImages(DATA, 1)
    whole = shifted.tensor(EVERYTHING)
    assert whole.shape == DATA.tensor(EVERYTHING).shape
    assert torch.equal(shifted.tensor(np.array([1, 6, 7])), whole[[1, 6, 7]])
    assert torch.equal(ShiftedImages(DATA, 1).tensor(EVERYTHING), whole)
    assert not torch.equal(ShiftedImages(DATA, 2).tensor(EVERYTHING), whole)


def test_devices_are_shifted_in_different_ways():
    images = DATA.tensor(np.arange(2))
    ways = {shift(images, [1, device]).float().mean().item() for device in range(8)}
    assert len(ways) > 4


def test_gray_images_stay_gray():
    assert shift(toy_images(devices=1).tensor(np.arange(3)), [1, 0]).shape == (3, 1, 32, 32)
