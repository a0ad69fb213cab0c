"""The step `forget`: one user is taken out of everything that a workspace and its runs keep of single users.

    files of statistics, versions of banks, results by user, runs and registered models, and last the prepared log

A run that was killed can be repeated: the log, by which a user is known, comes last. Weights cannot be taken apart by user: what was
trained on their events is named, with the command that makes it again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from persona.errors import DataError, PersonaError
from persona.prototypes import HeadMetric, Lineage, forget_user, is_shard
from persona.prototypes import forget as forget_in_lineage
from persona.storage import load_tensors, read_json, save_tensors
from pipelines import tracking
from pipelines.steps.workspace import Workspace
from pipelines.tracking import personal
from recsys.data.ids import canonical_id
from recsys.prototypes import user_numbers
from recsys.serving.release import Release
from recsys.task import RECSYS


@dataclass(frozen=True)
class Place:
    """A file, folder, run or model, and what was done there or is to be done."""

    where: str
    what: str


@dataclass(frozen=True)
class ForgottenUser:
    """What forgetting a user reached.

    Attributes:
        user: their id.
        reached: places without them now.
        left: places that could not be reached, and what to do about each.
        rebuild: what was trained on their events, and the command that makes it again.
    """

    user: str
    reached: list[Place]
    left: list[Place]
    rebuild: list[Place]


def forget(work: Workspace, user: str, statistics: Sequence[Path] = ()) -> ForgottenUser:
    """Take a user out of a workspace, files of statistics, and the runs and models of the store in use.

    Args:
        work: with the prepared log.
        user: id, as in the log.
        statistics: files that ``collect`` wrote, or folders with them; those in the workspace are found.

    Raises:
        DataError: nobody is known by this id, or nothing was prepared.
    """
    data = work.data(RECSYS)
    name = canonical_id(user)
    number = int(user_numbers([name])[0])
    index, rebuild = data.user_index.get(name), _trained(work)
    rest = None if index is None else data.without(name)
    reached: list[Place] = []
    left: list[Place] = []
    for found in (
        _from_statistics(work, statistics, number),
        _from_lineages(work, number),
        _from_results(work, data.digest, index),
        _from_runs({name, str(number)}),
    ):
        for place, done in found:
            (reached if done else left).append(place)
    if rest is not None:
        rest.save(work.prepared)
        reached.append(Place(str(work.prepared), f"{data.n_events - rest.n_events:,} events"))
    if not reached:
        data.history_of(user)
        raise DataError(f"there is no trace of user {user!r} in {work.root} nor in its runs")
    return ForgottenUser(name, reached, left, rebuild)


Found = Iterator[tuple[Place, bool]]


def _from_statistics(work: Workspace, given: Sequence[Path], number: int) -> Found:
    """Files of ``collect``: those given, and those in the workspace."""
    folders = (sorted(folder.rglob("*.safetensors")) for folder in (work.root, *given) if folder.is_dir())
    shards = [path for found in folders for path in found if is_shard(path)]
    for path in dict.fromkeys([*shards, *(path for path in given if not path.is_dir())]):
        if forget_user(path, number):
            yield Place(str(path), "their sums of codes"), True


def _from_lineages(work: Workspace, number: int) -> Found:
    """Versions of banks, which the released editor makes again without the user."""
    metric = None
    if work.bundle.exists():
        editor = Release.load(work.bundle).model.editor
        metric = None if editor is None else HeadMetric(editor)
    for folder in sorted(path for path in work.prototypes.glob("*") if (path / "head.json").exists()):
        lineage = Lineage(folder, "" if metric is None else metric.host)
        stored = [lineage.statistics(record.version) for record in lineage.history()]
        if not any(sums is not None and sums.has(number) for sums in stored):
            continue
        try:
            if metric is None or folder != work.lineage(metric.host).root:
                raise DataError("the editor that it was made with is not in the bundle")
            done = forget_in_lineage(lineage, number, metric)
            what = f"{len(done.replaced)} versions made again, {len(done.dropped)} dropped; {done.head[:12]} is served"
            yield Place(str(folder), what), True
        except PersonaError as error:
            yield Place(str(folder), f"{error}: remove this folder, and run `persona recsys prototypes` again"), False


def _from_results(work: Workspace, digest: str, index: int | None) -> Found:
    """Metrics by user of the methods that were trained on this log."""
    for settings in sorted(work.cells.glob("*/settings.json")) if index is not None else ():
        if read_json(settings).get("data") != digest:
            continue
        for path in sorted(settings.parent.rglob("results*/*.safetensors")):
            tensors, header = load_tensors(path)
            kept = torch.nonzero(torch.ne(tensors["units"], index or 0)).squeeze(1)
            if len(kept) < len(tensors["units"]):
                save_tensors(path, {key: value[kept] for key, value in tensors.items()}, header)
                yield Place(str(path), "their metrics"), True


def _from_runs(names: set[str]) -> Found:
    """Snapshots, sampled edits and answers in the store in use."""
    for what, address in personal.artifact_folders(tracking.client()):
        folder = personal.local(address)
        if folder is None:
            yield Place(f"{what} in {address}", "its files are elsewhere: delete the run or model there"), False
        elif files := personal.take_out(folder, names):
            yield Place(what, ", ".join(str(path.relative_to(folder)) for path in files)), True


def _trained(work: Workspace) -> list[Place]:
    """What was made of the events of all users."""
    made = [
        (work.cells, "remove it, and run `persona recsys pretrain` and `persona recsys edit`"),
        (work.prototypes, "run `persona recsys prototypes`, after `edit`"),
        (
            work.bundle,
            "run `persona recsys release`, after `prototypes`; it registers a version, and earlier ones go in MLflow",
        ),
        *((path, "run `persona recsys evaluate`") for path in sorted(work.root.glob("comparison-*.json"))),
        *((path, "run `persona recsys replay`") for path in sorted(work.root.glob("replay-*.json"))),
    ]
    return [Place(str(path), f"{command} --work {work.root}") for path, command in made if path.exists()]
