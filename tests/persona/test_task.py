"""Places of values, which are imported when they are asked for."""

import math

import pytest

from persona.task import found_at, later


def test_a_place_names_a_value_or_a_part_of_it():
    assert found_at("math:pi") is math.pi
    assert found_at("pathlib:Path.cwd")().is_dir()


def test_a_later_function_is_imported_when_it_is_called():
    root = later("math:sqrt")
    assert root(9.0) == 3.0
    missing = later("no_such_module:anything")
    with pytest.raises(ModuleNotFoundError):
        missing()
