"""Who may import whom, read from the source: no circle of modules, and the arrows of docs/architecture.md."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("persona", "recsys", "vision", "pipelines")
# What each package may import besides itself, of ours and of what is heavy or a task's own.
OURS = {
    "persona": set(),
    "recsys": {"persona"},
    "vision": {"persona"},
    "pipelines": {"persona", "recsys", "vision"},
}
FOREIGN = {
    "persona": {"torchrec", "torchvision", "mlflow"},
    "recsys": {"torchvision", "mlflow"},
    "vision": {"torchrec", "mlflow"},
    "pipelines": set(),
}
OUTSIDE = {"benchmarks", "tests", "examples"}
# The rooms of pipelines, from the command line down: each imports itself and those after it alone.
ROOMS = ("cli", "commands", "steps", "versions", "tracking", "console")
# Rooms beside them, that commands and the command line alone use.
SIDE_ROOMS = ("serving", "doctor")


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def modules() -> dict[str, Path]:
    return {name_of(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


def checked_types_alone(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports_of(tree: ast.AST, name: str, package: bool) -> set[str]:
    """Every module that a module imports anywhere, those for type checks aside; ``from a import b`` is ``a.b`` or ``a``."""
    found: set[str] = set()
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if checked_types_alone(node):
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = name.split(".")
                above = parts[: len(parts) - node.level + package]
                base = ".".join([*above, *([base] if base else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
        waiting += ast.iter_child_nodes(node)
    return found


def known(target: str) -> str:
    """The module of ours that a dotted name means, or the name itself."""
    while target not in modules() and "." in target and target.split(".", maxsplit=1)[0] in PACKAGES:
        target = target.rpartition(".")[0]
    return target


@cache
def imports() -> dict[str, frozenset[str]]:
    found = {}
    for name, path in modules().items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        targets = {known(t) for t in imports_of(tree, name, path.name == "__init__.py")}
        found[name] = frozenset(targets - {name})
    return found


def arrows() -> list[tuple[str, str]]:
    return [(name, target) for name, targets in imports().items() for target in sorted(targets)]


def room(name: str) -> str:
    parts = name.split(".")
    return parts[1] if parts[0] == "pipelines" and len(parts) > 1 else ""


def package_breach(name: str, target: str) -> bool:
    mine, theirs = name.split(".", maxsplit=1)[0], target.split(".", maxsplit=1)[0]
    if theirs in PACKAGES:
        return theirs != mine and theirs not in OURS[mine]
    return theirs in FOREIGN[mine] | OUTSIDE


def room_breach(name: str, target: str) -> bool:
    mine, theirs = room(name), room(target)
    if not mine or not theirs or mine == theirs:
        return False
    if theirs in SIDE_ROOMS:
        return mine not in ("cli", "commands")
    if mine in SIDE_ROOMS:
        return theirs in ("cli", "commands", "steps")
    return ROOMS.index(theirs) < ROOMS.index(mine)


def breaches() -> set[tuple[str, str]]:
    return {(a, b) for a, b in arrows() if package_breach(a, b) or room_breach(a, b)}


def circles() -> list[list[str]]:
    """Modules that import each other by any way round: strongly connected components of two or more (Tarjan, 1972)."""
    graph = {name: [t for t in targets if t in modules()] for name, targets in imports().items()}
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for target in graph[name]:
            if target not in index:
                visit(target)
            if target in stack:
                low[name] = min(low[name], low[target])
        if low[name] == index[name]:
            cut = stack.index(name)
            component = stack[cut:]
            del stack[cut:]
            if len(component) > 1:
                found.append(sorted(component))

    for name in graph:
        if name not in index:
            visit(name)
    return found


def test_the_rooms_of_pipelines_are_those_of_the_rules():
    """A new room needs a place among the rules."""
    assert {room(name) for name in modules()} - {""} == {*ROOMS, *SIDE_ROOMS}


def test_arrows_of_packages_and_rooms():
    assert breaches() == set(), "this import runs against docs/architecture.md"


def test_no_module_imports_itself_by_a_way_round():
    assert circles() == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import torch\nfrom persona import edits", {"torch", "persona.edits"}),
        ("def f():\n    from recsys.hosts import base", {"recsys.hosts.base"}),
        ("if TYPE_CHECKING:\n    import torch\nelse:\n    import numpy", {"numpy"}),
        ("from . import edits\nfrom .device import bank", {"persona.edits", "persona.device.bank"}),
        ("from .. import recsys", {"recsys"}),
    ],
)
def test_imports_are_found_wherever_they_stand(source, found):
    assert {t.removeprefix(".") for t in imports_of(ast.parse(source), "persona.x", package=False)} == found


@pytest.mark.parametrize(
    ("name", "target", "refused"),
    [
        ("persona.x", "recsys.y", True),
        ("recsys.x", "vision.y", True),
        ("recsys.x", "pipelines.y", True),
        ("recsys.x", "mlflow.pyfunc", True),
        ("recsys.x", "torchrec", False),
        ("pipelines.commands.x", "benchmarks.evidence", True),
        ("pipelines.commands.x", "recsys.y", False),
        ("pipelines.steps.x", "pipelines.commands.y", True),
        ("pipelines.commands.x", "pipelines.steps.y", False),
        ("pipelines.steps.x", "pipelines.serving.y", True),
        ("pipelines.commands.x", "pipelines.serving.y", False),
        ("pipelines.serving.x", "pipelines.steps.y", True),
        ("pipelines.serving.x", "pipelines.tracking.y", False),
        ("pipelines.console", "pipelines.tracking.y", True),
    ],
)
def test_the_rules_refuse_what_they_should(name, target, refused):
    assert (package_breach(name, target) or room_breach(name, target)) == refused
