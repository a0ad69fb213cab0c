"""Which task a bundle belongs to."""

from __future__ import annotations

from persona.errors import ConfigError, DataError, FormatError, nearest
from persona.storage import read_json
from pipelines.serving.recsys.servable import RecommenderTask
from pipelines.serving.servable import Task
from pipelines.serving.sources import Source
from pipelines.serving.vision.servable import ClassifierTask
from recsys.serving.index import EXACT, IndexConfig

RECOMMENDER, CLASSIFIER = "persona-recsys-bundle", "persona-vision-bundle"


def task_of(source: Source, index: IndexConfig = EXACT) -> Task:
    """The task of the newest bundle of ``source``; ``index`` finds the best items of a recommender's large catalogue.

    Raises:
        ConfigError: an index for a classifier.
        DataError: there is no bundle.
        FormatError: it is none that can be served.
    """
    folder = source.fetch(source.newest())
    path = folder / "bundle.json"
    if not path.is_file():
        raise DataError(f"{folder} holds no bundle (no bundle.json): run `persona recsys release` first")
    header = read_json(path)
    kind = str(header.get("format")) if isinstance(header, dict) else ""
    if kind == RECOMMENDER:
        return RecommenderTask(index)
    if kind == CLASSIFIER:
        if index.factory:
            raise ConfigError(f"{folder} is a classifier, which has no items to search: serve it without --index")
        return ClassifierTask()
    raise FormatError(f"{path} has format {kind!r}, which cannot be served: {nearest(kind, (RECOMMENDER, CLASSIFIER))}")
