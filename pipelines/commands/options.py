"""Command-line options made from the settings themselves, so that no setting is described twice."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from persona.settings import Settings

WORK_HELP = "Folder that the steps share: data, checkpoints, results, prototypes, bundle."

WorkOption = Annotated[Path, typer.Option("--work", help=WORK_HELP)]
NameOption = Annotated[
    str,
    typer.Option(
        "--name",
        help="What the data is called in MLflow: models are persona-recsys-NAME or persona-vision-NAME. By default as before, or "
        "like the file. Kept in the workspace.",
    ),
]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="TOML file with any of the settings.")]
Seeds = Annotated[int, typer.Option(min=1, help="How many seeds, counting up from --seed.")]
Jobs = Annotated[int, typer.Option(min=1, help="Cells (protocol and seed) worked on at the same time.")]
METHODS_HELP = "Comma-separated methods; all by default. The host and simple rivals are always among them."
Methods = Annotated[str, typer.Option(help=METHODS_HELP)]
Model = Annotated[str, typer.Option(help="A bundle folder or a registered model; the workspace's by default.")]
MaxMissed = Annotated[
    float, typer.Option(min=0, max=1, help="Share of the edits that a prototype may miss before it is split.")
]
# As in ``RefineConfig``, which is not imported before a command runs.
MAX_MISSED = 0.002
# What a switch says of a setting that is also ``auto``.
SWITCHED = {True: "yes", False: "no"}
SECTION = "Settings (kept from step to step in the workspace)"


def with_settings(
    command: Callable[..., Any], record: type[Settings], fixed: Mapping[str, Any] | None = None
) -> Callable[..., Any]:
    """Give ``command(given, ...)`` one option for every setting of ``record``, a dataclass that describes its attributes.

    The options that were used arrive in the dictionary ``given``; the rest are ``None`` in it. Parameters that are ``fixed`` are
    no options.
    """
    fixed = fixed or {}
    described = _descriptions(record)
    types = get_type_hints(record)
    names = [f.name for f in fields(record)]
    settings = []
    for setting in fields(record):
        assert setting.default is not MISSING
        text = f"{described[setting.name]} [default: {setting.default}]"
        flag = f"--{setting.name.replace('_', '-')}"
        switch = types[setting.name] is bool or setting.name in record.switch_names
        flags = [f"{flag}/--no-{flag[2:]}"] if switch else [flag]
        option = typer.Option(*flags, help=text, show_default=False, rich_help_panel=SECTION)
        kept = bool if switch else types[setting.name]
        annotation = Annotated[(kept | None, option)]  # type: ignore[valid-type]
        kind = inspect.Parameter.KEYWORD_ONLY
        settings.append(inspect.Parameter(setting.name, kind, default=None, annotation=annotation))

    @functools.wraps(command)
    def wrapped(**values: Any) -> Any:
        given = {name: values.pop(name) for name in names}
        given |= {name: SWITCHED[given[name]] for name in record.switch_names if given[name] is not None}
        return command(given=given, **fixed, **values)

    return _signed(wrapped, [*_own(command, {"given", *fixed}), *settings])


def with_source(command: Callable[..., Any], record: type[Any]) -> Callable[..., Any]:
    """Give ``command(source, ...)`` one option for every field of ``record``, a dataclass whose annotations are options."""
    types = get_type_hints(record, include_extras=True)
    options = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=types[field.name],
        )
        for field in fields(record)
    ]

    @functools.wraps(command)
    def wrapped(**values: Any) -> Any:
        return command(source=record(**{option.name: values.pop(option.name) for option in options}), **values)

    return _signed(wrapped, [*options, *_own(command, {"source"})])


def _own(command: Callable[..., Any], left: Collection[str]) -> list[inspect.Parameter]:
    """The parameters of ``command`` but those that are ``left`` out."""
    own = inspect.signature(command, eval_str=True).parameters.values()
    return [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own if p.name not in left]


def _signed(wrapped: Callable[..., Any], parameters: list[inspect.Parameter]) -> Callable[..., Any]:
    """``wrapped``, which shows typer these parameters."""
    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in parameters}
    del wrapped.__wrapped__  # type: ignore[attr-defined]
    return wrapped


def _descriptions(record: type[Any]) -> dict[str, str]:
    """What the docstrings of ``record`` and its bases say of each setting."""
    found: dict[str, str] = {}
    for part in reversed(record.__mro__):
        attributes = inspect.cleandoc(part.__doc__ or "").partition("Attributes:")[2].partition("Raises:")[0]
        found |= dict(re.findall(r"^ {4}(\w+): (.+?)(?=^ {4}\w|\Z)", attributes, re.MULTILINE | re.DOTALL))
    return {name: " ".join(text.replace("``", "").split()) for name, text in found.items()}


def split(text: str) -> list[str]:
    """The parts of a comma-separated option, none of them empty."""
    return [part.strip() for part in text.split(",") if part.strip()]
