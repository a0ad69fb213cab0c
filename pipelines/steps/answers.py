"""What a released bundle answers: items for a user, classes of a device's images. Needs no torch for the bundle of a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from persona.errors import ConfigError, DataError, nearest

if TYPE_CHECKING:
    from pipelines.steps.workspace import Workspace
    from recsys.data.sequences import SequenceData
    from recsys.serving.recommender import Recommendation
    from vision.serving.classifier import Classification

# How addresses begin that MLflow resolves.
SCHEMES = ("models:", "runs:")


@dataclass(frozen=True)
class Recommended:
    """What a user should see, and on which history the answer stands."""

    history: list[str]
    recommendation: Recommendation


@dataclass(frozen=True)
class Classified:
    """Which images were classified, what they are where that is known, files that could not be read, and the answer."""

    images: list[str]
    truth: list[str]
    skipped: list[str]
    classification: Classification


def bundle_folder(source: str | Path) -> Path:
    """The folder of a bundle: ``source`` itself, or where a registered model's files were fetched to.

    Raises:
        DataError: there is no such model, or it holds no bundle.
    """
    if not str(source).startswith(SCHEMES):
        return Path(source)
    from pipelines import tracking
    from pipelines.tracking import registry

    tracking.client()
    return registry.download(str(source))


def recommend(
    source: str | Path,
    *,
    work: Workspace | None = None,
    user: str | None = None,
    history: Sequence[str] | None = None,
    k: int = 10,
    level: str = "edit",
    drop_last: int = 0,
    seen: bool | None = None,
) -> Recommended:
    """Answer "what should this user see now".

    Args:
        source: a bundle folder, or a registered model such as ``models:/persona-recsys-movielens-small@candidate``.
        work: where ``user`` is looked up.
        user: an id of the prepared log, whose history is used; or
        history: item ids, oldest first, of anybody.
        k: how many items.
        level: one of ``persona.wire.LEVELS``.
        drop_last: leave out this many of the latest events, to see what they change.
        seen: whether items of the history may be recommended again; as the bundle says by default.

    Raises:
        ConfigError: neither or both of ``user`` and ``history`` are given.
    """
    from recsys.serving.recommender import Recommender

    if (user is None) == (history is None):
        raise ConfigError("give either a user of the prepared log (--user) or a history of item ids (--history)")
    recommender = Recommender.load(bundle_folder(source))
    if user is not None:
        if work is None:
            raise ConfigError("a user is looked up in a workspace: give --work, or a --history instead")
        data = prepared_log(work)
        history = [data.item_ids[int(i) - 1] for i in data.history_of(user)]
    assert history is not None
    kept = list(history[: max(0, len(history) - drop_last)])
    return Recommended(kept, recommender.recommend(kept, k, level=level, seen=seen))


def latest_user(work: Workspace) -> str:
    """The user whose last event is the latest among those with a history worth showing."""
    import numpy as np

    data = prepared_log(work)
    last = data.times[data.offsets[1:] - 1]
    enough = np.diff(data.offsets) > min(10, np.diff(data.offsets).max() - 1)
    return str(data.user_ids[int(np.where(enough, last, last.min() - 1).argmax())])


def prepared_log(work: Workspace) -> SequenceData:
    """The log that ``prepare`` left, read without torch.

    Raises:
        DataError: nothing was prepared here yet.
    """
    from recsys.task import RECSYS

    data: SequenceData = work.data(RECSYS)
    return data


def classify(
    source: str | Path,
    *,
    work: Workspace | None = None,
    device: str | None = None,
    images: Sequence[Path] | None = None,
    level: str = "edit",
) -> Classified:
    """Answer "what do these images of one device show".

    Args:
        source: a bundle folder, or a registered model such as ``models:/persona-vision-digits@candidate``.
        work: where ``device`` is looked up.
        device: an id of the prepared data, whose last images are classified; or
        images: files, oldest first, or folders of them.
        level: one of ``persona.wire.LEVELS``.

    Raises:
        ConfigError: neither or both of ``device`` and ``images`` are given.
        DataError: the device is unknown, or no image can be read.
    """
    from vision.serving.classifier import Classifier

    if (device is None) == (not images):
        raise ConfigError("give either a device of the prepared data (--device) or files of images (--images)")
    classifier = Classifier.load(bundle_folder(source))
    if images:
        pixels, kept, skipped = classifier.read(_files(images))
        return Classified([str(path) for path in kept], [], skipped, classifier.classify(pixels, level=level))
    if work is None:
        raise ConfigError("a device is looked up in a workspace: give --work, or --images instead")
    import numpy as np

    from vision.task import VISION

    data = work.data(VISION)
    if device not in data.device_ids:
        raise DataError(f"no device {device!r} in {work.root}: {nearest(str(device), data.device_ids)}")
    own = data.positions_of(np.array([data.device_ids.index(device)]))[-classifier.context_images :]
    names = [data.class_names[i] for i in data.labels[own]]
    numbers = [f"{device} image {i}" for i in own - own[0] + 1]
    return Classified(numbers, names, [], classifier.classify(data.pixels[own], level=level))


def _files(given: Sequence[Path]) -> list[Path]:
    """Files as they are, and those of folders in the order of their names."""
    found: list[Path] = []
    for path in given:
        if not path.exists():
            raise DataError(f"{path} does not exist: give image files or folders of them")
        found += sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return found
