import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persona.errors import ConfigError, DataError
from tests.vision.common import toy_images
from vision.data.protocols import PARTS, SplitConfig, make_split

DATA = toy_images(devices=40, per_device=2)
GROUP = np.array(DATA.groups)
CHOICES = st.sampled_from([(), ("a",), ("b",), ("a", "b")])


def reserving(*devices: int):
    reserved = np.zeros(40, bool)
    reserved[list(devices)] = True
    return replace(DATA, reserved=reserved)


@settings(max_examples=60)
@given(CHOICES, CHOICES, CHOICES, st.integers(0, 5), st.sets(st.integers(0, 39), max_size=6))
def test_no_device_is_in_two_parts(host, test, adapt, seed, reserved):
    data = reserving(*reserved)
    split = make_split(data, SplitConfig(host, test, adapt, seed=seed))
    parts = [set(getattr(split, name).tolist()) for name in PARTS]
    assert all(parts)
    assert not any(a & b for a, b in itertools.combinations(parts, 2))
    for name, groups in (("train", host), ("test", test), ("adapt", adapt or test), ("validation", adapt or test)):
        members = getattr(split, name)
        assert not groups or set(GROUP[members]) <= set(groups)
        assert (np.diff(members) > 0).all()
        assert name == "test" or not data.reserved[members].any()


def test_a_seed_determines_the_split():
    first, again, other = (make_split(DATA, SplitConfig(seed=s)) for s in (0, 0, 1))
    assert all(np.array_equal(getattr(first, name), getattr(again, name)) for name in PARTS)
    assert not np.array_equal(first.test, other.test)
    assert first.describe() == {"train": 19, "adapt": 10, "validation": 3, "test": 8}


def test_reserved_devices_are_the_test():
    split = make_split(reserving(1, 3, 6), SplitConfig(("a",), ("b",)))
    assert split.test.tolist() == [1, 3]
    assert 6 not in split.train


def test_the_host_keeps_all_its_devices_where_others_adapt():
    split = make_split(DATA, SplitConfig(("a",), ("b",)))
    assert split.train.tolist() == list(range(0, 40, 2))


def test_an_unknown_population_tests_as_a_whole():
    split = make_split(DATA, SplitConfig(("a",), ("b",), ("a",)))
    assert split.test.tolist() == list(range(1, 40, 2))
    assert set(GROUP[split.adapt]) == {"a"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"host_groups": ("c",)}, "no device belongs to the group 'c'"),
        ({"test": 1.0}, "between 0 and 1"),
        ({"adapt": 0.9, "validation": 0.2}, "leave no device for the host"),
    ],
)
def test_wrong_settings(config, message):
    with pytest.raises(ConfigError, match=message):
        make_split(DATA, SplitConfig(**config))


def test_too_few_devices():
    with pytest.raises(DataError, match="leave none for"):
        make_split(toy_images(devices=2), SplitConfig())
