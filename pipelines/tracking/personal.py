"""What runs and registered models keep of single users, and how a user is taken out of it: snapshots, sampled edits, answers.

    snapshot/units.parquet, answers.parquet    metrics of every user, and answers to some
    edits.parquet, edits.safetensors           the editing matrices of a few users; tables/edits.json shows them
    recommendations.json                       what `persona recsys run` recommended to one user

Only files on this machine are reached; of a store elsewhere the address is told.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
import polars as pl
import torch

from persona.edit_format import load_edit, save_edit
from persona.storage import atomic_file, read_json

if TYPE_CHECKING:
    from mlflow import MlflowClient

KIND = "user"
_PAGE = 1000


def artifact_folders(client: MlflowClient) -> Iterator[tuple[str, str]]:
    """Name and address of the files of every run and every logged model of a store."""
    from mlflow.entities import ViewType

    experiments = [e.experiment_id for e in client.search_experiments(view_type=ViewType.ALL)]
    token = None
    while True:
        runs = client.search_runs(experiments, run_view_type=ViewType.ALL, max_results=_PAGE, page_token=token)
        yield from ((f"run {run.info.run_name} ({run.info.run_id[:8]})", run.info.artifact_uri) for run in runs)
        token = runs.token
        if not token:
            break
    while True:
        models = client.search_logged_models(experiments, page_token=token)
        yield from ((f"model {model.name} ({model.model_id[:8]})", model.artifact_location) for model in models)
        token = models.token
        if not token:
            return


def local(address: str) -> Path | None:
    """The folder that an address names on this machine, if it names one."""
    parts = urlsplit(address)
    return Path(url2pathname(parts.path)) if parts.scheme in ("", "file") else None


def take_out(folder: Path, names: Collection[str]) -> list[Path]:
    """Take a user out of all files under ``folder``; returns those that held a trace.

    Args:
        folder: of a run or model.
        names: by which the user is known: id, and number in statistics.

    Raises:
        FormatError: a file is damaged.
    """
    found: list[Path] = []
    for pattern, change in _CHANGES.items():
        found += [path for path in sorted(folder.rglob(pattern)) if change(path, names)]
    return found


def _snapshot(header: Path, names: Collection[str]) -> bool:
    """A row a user in the files of a snapshot; those of other kinds of units are left alone."""
    if read_json(header).get("kind") != KIND:
        return False
    tables = [header.parent / "units.parquet", header.parent / "answers.parquet"]
    found = [path for path in tables if path.exists() and _without_rows(path, "unit", names)]
    return bool(found)


def _edits(table: Path, names: Collection[str]) -> bool:
    """Rows of the table, and their matrices in the file beside it.

    Matrices are known by their norms, not by their places, which no longer fit the table after a run that was killed here.
    """
    frame = pl.read_parquet(table)
    matrices = table.with_suffix(".safetensors")
    if KIND not in frame.columns:
        return False
    own = frame.filter(pl.col(KIND).cast(pl.String).is_in(list(names)))["norm"].to_numpy()
    if len(own) and matrices.exists():
        edit = load_edit(matrices)
        theirs = np.isclose(edit.norm().numpy()[:, None], own, rtol=1e-5).any(axis=1)
        if theirs.all():
            matrices.unlink()
        elif theirs.any():
            save_edit(matrices, edit[torch.from_numpy(np.flatnonzero(~theirs))])
    return _without_rows(table, KIND, names)


def _without_rows(path: Path, column: str, names: Collection[str]) -> bool:
    frame = pl.read_parquet(path)
    kept = frame.filter(~pl.col(column).cast(pl.String).is_in(list(names)))
    if len(kept) == len(frame):
        return False
    with atomic_file(path) as temporary:
        kept.write_parquet(temporary)
    return True


def _shown_edits(path: Path, names: Collection[str]) -> bool:
    """The table of edits as pages show it: ``columns`` and ``data``."""
    table = read_json(path)
    if KIND not in table.get("columns", ()):
        return False
    place = table["columns"].index(KIND)
    kept = [row for row in table["data"] if str(row[place]) not in names]
    if len(kept) == len(table["data"]):
        return False
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(table | {"data": kept}), encoding="utf-8")
    return True


def _answer(path: Path, names: Collection[str]) -> bool:
    """What one user was recommended: gone if it is this one."""
    if str(read_json(path).get(KIND)) not in names:
        return False
    path.unlink()
    return True


_CHANGES: dict[str, Callable[[Path, Collection[str]], bool]] = {
    "snapshot.json": _snapshot,
    "edits.parquet": _edits,
    "tables/edits.json": _shown_edits,
    "recommendations.json": _answer,
}
