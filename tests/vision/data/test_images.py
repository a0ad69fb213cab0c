import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from persona.errors import ConfigError, DataError, FormatError
from persona.storage import read_json, write_json
from tests.vision.common import toy_images
from vision.data.images import DeviceImages


@given(st.lists(st.integers(0, 3), min_size=4, max_size=30).filter(lambda owner: set(owner) == {0, 1, 2, 3}))
def test_images_of_a_device_stand_together_in_their_order(owner):
    pixels = np.arange(len(owner), dtype=np.uint8)[:, None, None, None].repeat(8, 1).repeat(8, 2)
    data = DeviceImages.from_arrays(
        pixels, np.zeros(len(owner), int), np.array(owner), device_ids="wxyz", class_names=["one"]
    )
    for device in range(4):
        rows = np.flatnonzero(np.array(owner) == device)
        positions = data.positions_of(np.array([device]))
        assert (data.pixels[positions, 0, 0, 0] == rows).all()
        assert (data.device_of(positions) == device).all()


def test_tensors_are_channels_first():
    data = toy_images(channels=3)
    tensor = data.tensor(np.array([5, 1]))
    assert tensor.shape == (2, 3, 32, 32)
    assert tensor.dtype == torch.uint8
    assert tensor[0, 2, 7, 9] == data.pixels[5, 7, 9, 2]
    assert data.label_tensor(np.array([5, 1])).tolist() == data.labels[[5, 1]].tolist()
    assert data.image_shape == (3, 32, 32)


def test_selected_devices_keep_everything():
    data = toy_images()
    some = data.select(np.array([7, 2]))
    assert some.device_ids == ("d7", "d2")
    assert some.groups == ("b", "a")
    assert (some.pixels[:8] == data.pixels[56:64]).all()
    assert (some.labels[8:] == data.labels[16:24]).all()


def test_a_divided_device_keeps_its_images_and_gives_its_name_to_a_group():
    data = toy_images(devices=3, per_device=10)
    small = data.divided(4, seed=1)
    assert small.n_devices == 9
    assert small.groups == ("d0",) * 3 + ("d1",) * 3 + ("d2",) * 3
    assert np.diff(small.offsets).max() <= 4
    for group in data.device_ids:
        owner = data.device_ids.index(group)
        parts = [d for d in range(9) if small.groups[d] == group]
        mine = small.pixels[small.positions_of(np.array(parts))]
        theirs = data.pixels[data.positions_of(np.array([owner]))]
        assert sorted(map(bytes, mine)) == sorted(map(bytes, theirs))
    assert small.digest == data.divided(4, seed=1).digest != data.divided(4, seed=2).digest
    with pytest.raises(ConfigError, match="at least 1 image"):
        data.divided(0, seed=0)


def test_the_digest_sees_every_part():
    data = toy_images()
    other = data.pixels.copy()
    other[3, 2, 1, 0] ^= 1
    assert data.digest == toy_images().digest
    assert data.with_pixels(data.pixels, note="x").digest == data.digest
    assert data.with_pixels(other).digest != data.digest
    assert toy_images(seed=1).digest != data.digest


def test_arrays_that_do_not_fit_are_refused():
    data = toy_images()
    with pytest.raises(DataError, match="do not fit together"):
        DeviceImages.from_arrays(
            data.pixels, data.labels, np.zeros(96, int), device_ids=["a", "empty"], class_names="abc"
        )
    with pytest.raises(DataError, match=r"outside 0\.\.1"):
        DeviceImages.from_arrays(data.pixels, data.labels, np.zeros(96, int), device_ids=["a"], class_names="ab")


def test_save_and_load(tmp_path):
    data = toy_images(channels=3).with_pixels(toy_images(channels=3).pixels, source={"format": "toy"})
    data.save(tmp_path / "images")
    again = DeviceImages.load(tmp_path / "images")
    assert again.digest == data.digest
    assert again.meta == {"source": {"format": "toy"}}
    assert (again.device_ids, again.class_names, again.groups) == (data.device_ids, data.class_names, data.groups)


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(FormatError, match="does not hold images"):
        toy_images().save(tmp_path)
    assert (tmp_path / "letter.txt").read_text() == "dear"


def test_damaged_folders_say_so(tmp_path):
    folder = tmp_path / "images"
    with pytest.raises(FormatError, match="holds no images"):
        DeviceImages.load(folder)
    toy_images().save(folder)
    header = read_json(folder / "images.json")
    for change, message in (
        ({"version": 99}, "version 99"),
        ({"format": "other"}, "was not written by this project"),
        ({"digest": "0"}, "digest does not fit"),
        ({"class_names": ["a"]}, "damaged"),
        ({"groups": None}, "damaged"),
    ):
        write_json(folder / "images.json", header | change)
        with pytest.raises(FormatError, match=message):
            DeviceImages.load(folder)
