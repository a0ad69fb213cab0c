"""Settings that are kept as JSON: unknown names and missing ones are refused as they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, ClassVar, Self

from persona.errors import ConfigError, check_known


@dataclass(frozen=True)
class Record:
    """Base of settings that are kept as JSON, a frozen dataclass.

    Attributes:
        kind_of_field: what an error calls one of them.
    """

    kind_of_field: ClassVar[str] = "setting"

    def check_integer(self, name: str, least: int) -> None:
        """Refuse a setting that is no whole number from ``least`` up.

        Raises:
            ConfigError: it is not.
        """
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(f"{name} has to be a whole number from {least} up, not {value!r}")

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; ``from_dict`` reads them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of ``as_dict``; an unknown name is refused.

        Raises:
            ConfigError: a name is unknown or missing, or a value is out of its range.
        """
        known = [f.name for f in fields(cls)]
        for name in values:
            check_known(cls.kind_of_field, name, known)
        for f in fields(cls):
            if f.default is MISSING and f.name not in values:
                raise ConfigError(f"the {cls.kind_of_field} {f.name!r} is missing: add it")
        return cls(**values)
