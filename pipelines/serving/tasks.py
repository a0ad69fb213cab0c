"""Which task a bundle belongs to."""

from __future__ import annotations

from persona.errors import DataError, FormatError, nearest
from persona.storage import read_json
from pipelines.serving.recsys import RecommenderTask
from pipelines.serving.servable import Task
from pipelines.serving.sources import Source
from pipelines.serving.vision import ClassifierTask

TASKS: dict[str, type[RecommenderTask] | type[ClassifierTask]] = {
    "persona-recsys-bundle": RecommenderTask,
    "persona-vision-bundle": ClassifierTask,
}


def task_of(source: Source) -> Task:
    """The task of the newest bundle of ``source``.

    Raises:
        DataError: there is no bundle.
        FormatError: it is none that can be served.
    """
    folder = source.fetch(source.newest())
    path = folder / "bundle.json"
    if not path.is_file():
        raise DataError(f"{folder} holds no bundle (no bundle.json): run `persona recsys release` first")
    header = read_json(path)
    kind = str(header.get("format")) if isinstance(header, dict) else ""
    if kind not in TASKS:
        raise FormatError(f"{path} has format {kind!r}, which cannot be served: {nearest(kind, TASKS)}")
    return TASKS[kind]()
