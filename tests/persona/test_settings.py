from dataclasses import dataclass
from typing import ClassVar

import pytest

from persona.errors import ConfigError
from persona.settings import Settings


@dataclass(frozen=True)
class Small(Settings):
    editor_names: ClassVar[tuple[str, ...]] = ("rate",)

    mode: str = "joint"
    steps: int = 3
    rate: float = 0.5
    quick: bool = False

    def __post_init__(self):
        self.check_types()


def test_a_whole_number_of_a_file_is_the_decimal_one():
    assert Small(rate=1) == Small(rate=1.0)
    assert type(Small(rate=1).rate) is float


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"steps": 1.5}, "steps is 1.5, but it has to be a whole number"),
        ({"steps": True}, "steps is True, but it has to be a whole number"),
        ({"quick": 1}, "quick is 1, but it has to be true or false"),
        ({"rat": 1.0}, "unknown setting 'rat': did you mean 'rate'"),
    ],
)
def test_what_is_wrong_is_named(values, said):
    with pytest.raises(ConfigError, match=said):
        Small.from_dict(values)


def test_settings_are_split_between_host_and_editor_and_read_back():
    small = Small(steps=4)
    assert small.host_settings() == {"steps": 4, "quick": False}
    assert small.editor_settings() == {"rate": 0.5}
    assert Small.from_dict(small.as_dict()) == small
