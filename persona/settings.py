"""What the flat settings records of all tasks share: types are checked, files may write 1 for 1.0, unknown names are refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Self

from persona.errors import ConfigError
from persona.record import Record

if TYPE_CHECKING:  # the command line reads the settings without waiting for torch
    from persona.editor import EditorConfig

_KINDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
# Those of an ``EditorConfig``.
EDITOR_SHAPE = ("transfer", "head", "rank", "bound", "tau", "width")
# Where and how exactly torch computes. With their defaults these are in no record, so that what was recorded before there were
# any stays what it is; and no training is another one for the device that it ran on.
PROCESSOR_SETTINGS = ("device", "precision")


@dataclass(frozen=True)
class Settings(Record):
    """Base of a task's settings, a frozen dataclass whose fields all have defaults.

    Among the fields are ``mode``, ``device``, ``precision``, and those of an ``EditorConfig`` under the same names.

    Attributes:
        transfer: cross-layer transfer, ``stacked``, ``recurrent`` or ``none``.
        head: ``full`` or ``low_rank``.
        rank: of the low-rank head.
        bound: ``tanh``, ``clip``, ``frobenius`` or ``none``.
        tau: radius of the bound in units of the layer's root-mean-square weight.
        width: of the editing codes.
        editor_names: fields that only what has an editor depends on: hosts are shared between settings that differ here.
        quiet_names: fields that are in no record while they have their defaults.
        switch_names: fields that are ``yes``, ``no`` or ``auto``, and switches on the command line.
    """

    editor_names: ClassVar[tuple[str, ...]] = ()
    quiet_names: ClassVar[tuple[str, ...]] = PROCESSOR_SETTINGS
    switch_names: ClassVar[tuple[str, ...]] = ()

    def check_types(self) -> None:
        """Settings may come from a file: whole numbers do for decimal ones, and are one and the same setting.

        Raises:
            ConfigError: a value is of another type than its default.
        """
        for f in fields(self):
            value, kind = getattr(self, f.name), type(f.default)
            if kind is float and type(value) is int:
                object.__setattr__(self, f.name, float(value))
            elif type(value) is not kind:
                raise ConfigError(f"{f.name} is {value!r}, but it has to be {_KINDS[kind]}")

    def check_device(self) -> None:
        """Refuse a device that no machine has; whether this one has it is seen where the work begins.

        Raises:
            ConfigError: ``device`` is none of ``auto``, ``cpu``, ``cuda``, ``cuda:0``, ``cuda:1``, ...
        """
        name = getattr(self, "device", "auto")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
            raise ConfigError(f"unknown device {name!r}: give auto, cpu, cuda, or cuda:1 for the second graphics card")

    def editor_config(self, context_dim: int) -> EditorConfig:
        """The editor's settings for a host."""
        from persona.editor import EditorConfig

        return EditorConfig(context_dim=context_dim, **{name: getattr(self, name) for name in EDITOR_SHAPE})

    def host_settings(self) -> dict[str, Any]:
        """What a trained host depends on."""
        others = (*self.editor_names, "mode", "device")
        return {k: v for k, v in self.as_dict().items() if k not in others}

    def editor_settings(self) -> dict[str, Any]:
        """What a trained editor depends on besides its host."""
        return {k: v for k, v in self.as_dict().items() if k in self.editor_names}

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without ``quiet_names`` that have their defaults."""
        usual = {f.name: f.default for f in fields(self) if f.name in self.quiet_names}
        return {k: v for k, v in asdict(self).items() if k not in usual or v != usual[k]}

    def resolved(self, data: Any) -> dict[str, Any]:
        """What settings that follow the data come to on it, where that is not what is usual."""
        return {}

    def under_protocol(self, protocol: str) -> Self:
        """The same settings under another protocol; a task with a single one has nothing to change."""
        return self

    @classmethod
    def own(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Of the values of ``as_dict``, those that were chosen: what stays when another setting changes what is usual."""
        return dict(values)

    @classmethod
    def taken_up(cls, before: Mapping[str, Any], new: Mapping[str, Any]) -> Self:
        """The settings of the step ``before``, changed by ``new`` ones.

        Raises:
            ConfigError: as ``from_dict``.
        """
        return cls.from_dict({**before, **new})
