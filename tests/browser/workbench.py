"""A store with all that the workbench shows: a pipeline run, a bank with two refinements, champions, comparisons, a lineage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from pipelines.doctor import free_port

CHROMIUM = Path("/usr/bin/chromium")
BUNDLES, BANKS = "persona-recsys-films", "persona-recsys-films-prototypes"
# Where the prepared log is cut into windows for the two refinements.
WINDOWS = ((0.85, 0.925), (0.925, 1.0))
PROTOTYPES = 4


@dataclass(frozen=True)
class Workbench:
    """A working directory, and what its commands said, by name."""

    folder: Path
    said: dict[str, Any]

    @property
    def uri(self) -> str:
        """The store."""
        return f"sqlite:///{self.folder}/mlruns/mlflow.db"


def environment() -> dict[str, str]:
    """This process's variables without what concerns MLflow."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    return {**kept, "MLFLOW_DISABLE_TELEMETRY": "true"}


def build(folder: Path, log: Path, settings: tuple[str, ...], prototypes: int = PROTOTYPES) -> Workbench:
    """Do what an engineer does in a week, with the commands of the command line.

    Args:
        folder: working directory.
        log: events with a column ``timestamp`` in seconds.
        settings: of the pipeline.
        prototypes: of the bank that is refined.
    """

    def persona(*arguments: str) -> Any:
        command = [sys.executable, "-m", "pipelines.cli", *arguments, "--json"]
        done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(arguments)}: {done.stderr[-3000:]}")
        return json.loads(done.stdout)

    times = pl.read_csv(log)["timestamp"].cast(pl.Int64)
    windows = [[str(int(times.quantile(q) or 0)) for q in window] for window in WINDOWS]
    said = {"run": persona("recsys", "run", "--data", str(log), "--name", "films", *settings)}
    said["promote"] = persona("promote", f"{BUNDLES}/1", "--why", "the first release")
    said["bank"] = persona("recsys", "prototypes", "--prototypes", str(prototypes))
    said["refine 1"] = persona("recsys", "refine", "--window", *windows[0], "--min-users", "2")
    said["refine 2"] = persona("recsys", "refine", "--window", *windows[1], "--min-users", "2")
    said["release"] = persona("recsys", "release")
    said["compare bundles"] = persona("compare", f"{BUNDLES}@champion", f"{BUNDLES}@candidate")
    first = said["bank"][-1]["registered"]["version"]
    said["compare"] = persona("compare", f"{BANKS}/{first}", f"{BANKS}@candidate")
    if first > 1:  # else the bank is that of the run, which was the first and is the champion
        persona("promote", f"{BANKS}/{first}", "--why", "four prototypes for a start", "--force")
    said["lineage"] = persona("lineage", BANKS)
    return Workbench(folder, said)


@contextmanager
def ui(workbench: Workbench) -> Iterator[str]:
    """The address of MLflow's own UI on the store, as ``persona ui`` starts it."""
    port = free_port(24000)
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", "ui", "--port", str(port)],
        cwd=workbench.folder,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address, until = f"http://127.0.0.1:{port}", time.monotonic() + 240
    try:
        while time.monotonic() < until:
            if process.poll() is not None:
                raise RuntimeError("persona ui ended before it answered")
            with suppress(OSError):
                urllib.request.urlopen(f"{address}/health", timeout=2)
                break
            time.sleep(0.3)
        yield address
    finally:
        process.terminate()
        process.wait(60)
