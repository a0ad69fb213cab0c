"""What share of a pipeline's time goes to MLflow.

    python -m benchmarks.tracking [--data movielens-small] [--epochs 30] [--methods ...]

Runs the recommender's whole pipeline in a folder of its own with clocks in everything that logs: runs, parameters, metrics,
files and figures (logging); and separately the registration of the finished bundle, which packs the code and calls the model
once to check it (registration); making the database, once for all runs that a store will ever have; and the import of MLflow.
Of clocks inside each other only the innermost runs. Time is counted as processor time, which a busy machine does not change,
and as wall time.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, redirect_stdout
from functools import wraps
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

from persona import runtime

runtime.configure()

LOGGING = (
    "connect", "log_params", "log_metrics_batch", "log_epochs", "log_json", "log_table", "log_figure", "commit_tags",
)  # fmt: skip


class Clocks:
    """Processor and wall seconds by name; what a clock inside another one counts is taken off the outer one."""

    def __init__(self) -> None:
        self.processor: dict[str, float] = defaultdict(float)
        self.wall: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self._inner: list[tuple[float, float]] = []

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Count the block, without what other clocks count of it."""
        outer, self._inner = self._inner, []
        cpu, wall = time.process_time(), time.perf_counter()
        try:
            yield
        finally:
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            self.processor[name] += cpu - sum(inner for inner, _ in self._inner)
            self.wall[name] += wall - sum(inner for _, inner in self._inner)
            self.calls[name] += 1
            self._inner = [*outer, (cpu, wall)]

    def wrap(self, module: ModuleType, function: str, name: str) -> None:
        """Count every call of a module's function."""
        original: Callable[..., Any] = getattr(module, function)

        @wraps(original)
        def counted(*args: Any, **more: Any) -> Any:
            with self.of(name):
                return original(*args, **more)

        setattr(module, function, counted)


def install(clocks: Clocks) -> None:
    """Put clocks into everything that logs."""
    with clocks.of("import of mlflow"):
        import mlflow
        import mlflow.pyfunc
    from pipelines import tracking
    from pipelines.steps import recsys as recsys_steps
    from pipelines.tracking import figures, registry, store
    from pipelines.versions import snapshots

    for function in LOGGING:
        clocks.wrap(tracking, function, "logging")
    for function in ("start_run", "end_run", "log_input", "log_metrics"):
        clocks.wrap(mlflow, function, "logging")
    for function in [name for name in vars(figures) if callable(getattr(figures, name)) and not name.startswith("_")]:
        if getattr(getattr(figures, function), "__module__", "") == figures.__name__:
            clocks.wrap(figures, function, "logging")
    clocks.wrap(recsys_steps, "_log_data", "logging")
    clocks.wrap(snapshots, "log", "logging")
    clocks.wrap(registry, "register", "registration")
    clocks.wrap(store, "_create", "making the database")


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="movielens-small")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--methods", default="")
    arguments = parser.parse_args()
    clocks = Clocks()
    install(clocks)
    from pipelines.cli import main as persona

    command = [
        "recsys",
        "run",
        "--preset",
        "paper",
        "--data",
        arguments.data,
        "--epochs",
        str(arguments.epochs),
        "--methods",
        arguments.methods,
    ]
    with tempfile.TemporaryDirectory() as folder, chdir(folder), redirect_stdout(StringIO()):
        Path("mlruns").mkdir()
        cpu, wall = time.process_time(), time.perf_counter()
        code = persona([*command, "--json"])
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    if code:
        sys.exit(code)
    imported = "import of mlflow"
    total = {"processor": cpu + clocks.processor[imported], "wall": wall + clocks.wall[imported]}
    report = {
        "command": "persona " + " ".join(command),
        "seconds": {kind: round(value, 1) for kind, value in total.items()},
        "parts": {
            name: {
                "calls": clocks.calls[name],
                "processor_seconds": round(clocks.processor[name], 2),
                "wall_seconds": round(clocks.wall[name], 2),
                "share_of_processor_time": round(clocks.processor[name] / total["processor"], 4),
                "share_of_wall_time": round(clocks.wall[name] / total["wall"], 4),
            }
            for name in clocks.calls
        },
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
