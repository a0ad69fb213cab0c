"""How the house stands: imports, circles, longest functions, and what the two tasks write twice.

Everything is read from the sources with ``ast``; nothing is run. Two checkouts side by side show what a redesign brought.

    python -m benchmarks.structure                 # this checkout
    python -m benchmarks.structure --root ../old   # another one
"""

import argparse
import ast
import io
import json
import keyword
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOMS = ("persona", "recsys", "vision", "pipelines")
BLOCK = 6  # lines that make a repeated block,
DISTINCT = 5  # if so many of them differ: lists of names repeat nothing


def modules(root: Path) -> dict[str, Path]:
    """Dotted name -> file of every module of the four packages."""
    files = [file for room in ROOMS for file in sorted((root / room).rglob("*.py"))]
    return {".".join(f.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): f for f in files}


def imports(known: dict[str, Path]) -> dict[str, set[str]]:
    """Which modules each module imports, anywhere in it, but for the sake of types; faces (``__init__``) aside."""
    return {
        name: {to for to in _imported(ast.parse(file.read_text(encoding="utf-8")), known) if to != name}
        for name, file in known.items()
        if file.name != "__init__.py"
    }


def _imported(tree: ast.Module, known: dict[str, Path]) -> Iterator[str]:
    typed = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
    skipped = {id(inner) for node in typed for inner in ast.walk(node)}
    for node in ast.walk(tree):
        found: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module:
            found = [full if (full := f"{node.module}.{alias.name}") in known else node.module for alias in node.names]
        elif isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        yield from (
            name for name in found if id(node) not in skipped and name in known and known[name].name != "__init__.py"
        )


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other in a loop (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for to in sorted(graph[name]):
            if to not in index:
                visit(to)
                low[name] = min(low[name], low[to])
            elif to in stack:
                low[name] = min(low[name], index[to])
        if low[name] == index[name]:
            loop = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(loop) > 1:
                found.append(sorted(loop))

    for name in sorted(graph):
        if name not in index:
            visit(name)
    return found


def levels(graph: dict[str, set[str]], within: str) -> int:
    """The longest chain of imports among the modules of a package; a circle counts once."""
    own = {
        name: {to for to in found if to.startswith(within)} for name, found in graph.items() if name.startswith(within)
    }
    depth: dict[str, int] = {}

    def of(name: str, above: frozenset[str]) -> int:
        if name not in depth:
            depth[name] = 1 + max((of(to, above | {name}) for to in own[name] if to not in above), default=0)
        return depth[name]

    return max((of(name, frozenset()) for name in own), default=0)


def arrows(graph: dict[str, set[str]], within: str) -> int:
    """Pairs of rooms of a package of which one imports the other; a file at its root is a room of its own."""
    return len({(_room(a), _room(b)) for a in graph for b in graph[a] if _pair(a, b, within)})


def _pair(a: str, b: str, within: str) -> bool:
    return a.startswith(within) and b.startswith(within) and _room(a) != _room(b)


def _room(name: str) -> str:
    parts = name.split(".")
    return ".".join(parts[:2])


def longest(known: dict[str, Path], count: int = 3) -> list[tuple[int, str]]:
    """Lines and names of the longest functions."""
    found = (
        (node.end_lineno - node.lineno + 1, f"{name}.{node.name}")
        for name, file in known.items()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno
    )
    return sorted(found, reverse=True)[:count]


def repeated(known: dict[str, Path]) -> list[tuple[str, str]]:
    """Pairs of a file of the recommender and one of images that share ``BLOCK`` lines, alike but for names and values."""
    seen: dict[str, dict[tuple[str, ...], set[str]]] = {"recsys": defaultdict(set), "vision": defaultdict(set)}
    for name, file in known.items():
        task = "recsys" if "recsys" in name else "vision" if "vision" in name else ""
        if task:
            lines = _shapes(file.read_text(encoding="utf-8"))
            for start in range(len(lines) - BLOCK + 1):
                block = tuple(lines[start : start + BLOCK])
                if len(set(block)) >= DISTINCT:
                    seen[task][block].add(name)
    shared = seen["recsys"].keys() & seen["vision"].keys()
    return sorted({(a, b) for block in shared for a in seen["recsys"][block] for b in seen["vision"][block]})


def _shapes(text: str) -> list[str]:
    """Every line of code with names, numbers and strings taken out; imports, comments and lone brackets are no lines."""
    rows: dict[int, list[str]] = defaultdict(list)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            continue
        plain = token.type == tokenize.OP or keyword.iskeyword(token.string)
        rows[token.start[0]].append(token.string if plain else "_")
    lines = [" ".join(row) for _, row in sorted(rows.items())]
    return [line for line in lines if "_" in line and len(line) > 5 and not line.startswith(("from", "import"))]


def measure(root: Path) -> dict[str, object]:
    """All figures of a checkout."""
    known = modules(root)
    graph = imports(known)
    lines = {room: sum(len(f.read_text().splitlines()) for f in (root / room).rglob("*.py")) for room in ROOMS}
    pairs = repeated(known)
    return {
        "files at the root of pipelines": len(list((root / "pipelines").glob("*.py"))),
        "import levels in pipelines": levels(graph, "pipelines."),
        "arrows between rooms of pipelines": arrows(graph, "pipelines."),
        "circles": [" <-> ".join(loop) for loop in circles(graph)],
        "pairs of files of the two tasks with repeated blocks": len(pairs),
        "these pairs": [" ~ ".join(pair) for pair in pairs],
        "lines": lines | {"all": sum(lines.values())},
        "longest functions": [f"{name}: {count}" for count, name in longest(known)],
    }


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(), help="checkout to read; this one by default")
    print(json.dumps(measure(parser.parse_args().root), indent=1))


if __name__ == "__main__":
    main()
