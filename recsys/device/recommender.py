"""A recommender on a device, without torch: a history of item ids in, ranked items out, online or not.

Needs numpy, safetensors and onnxruntime, like ``persona.device``.

Shapes: T context length, V items.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from persona.device import Device, DeviceBundle, Received
from persona.errors import ConfigError, DataError, FormatError
from recsys.data.ids import canonical_id

TASK = "recommendation"
ITEMS_FILE = "items.json"


@dataclass(frozen=True)
class DeviceItem:
    """One recommended item: its id, its logit, and its title where the log had one."""

    item_id: str
    score: float
    title: str | None = None


@dataclass(frozen=True)
class DeviceAnswer:
    """The answer for one history.

    Attributes:
        items: best first.
        level: what answered, see ``persona.device``.
        unknown: ids of the history that the vocabulary does not have; they were skipped.
    """

    items: list[DeviceItem]
    level: str
    unknown: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class Catalogue:
    """The items of a bundle, shared by all devices that run it.

    Attributes:
        ids: (V,) item i is ``ids[i - 1]``.
        titles: (V,) titles, or ``None``.
    """

    ids: list[str]
    titles: list[str | None] | None

    @cached_property
    def index(self) -> dict[str, int]:
        """Item id -> item index 1..V."""
        return {item: i for i, item in enumerate(self.ids, start=1)}

    @classmethod
    def of(cls, bundle: DeviceBundle) -> Catalogue:
        """The items of a bundle.

        Raises:
            MismatchError: the bundle is of another task.
            FormatError: its list of items is damaged.
        """
        bundle.expect(TASK)
        try:
            vocabulary = json.loads(bundle.files[ITEMS_FILE])
            catalogue = cls(list(vocabulary["ids"]), vocabulary["titles"])
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"{bundle.folder} lacks its list of items: export the bundle again") from error
        if len(catalogue.ids) != bundle.settings.get("items"):
            raise FormatError(f"{bundle.folder} lists other items than its graph has: export the bundle again")
        return catalogue


class DeviceRecommender:
    """One user's recommender.

    Args:
        device: runs the bundle under the user's edit.
        catalogue: of the bundle; read from it if not given.

    Raises:
        MismatchError: the bundle is of another task.
        FormatError: its list of items is damaged.

    Example::

        recommender = DeviceRecommender.load("film-bundle", "film-state")
        answer = recommender.recommend(["1193", "661", "914"], k=10)
        if recommender.wants_edit(history):
            ...                                            # ask the cloud, then
            recommender.receive(message, "basis", history)
    """

    def __init__(self, device: Device, catalogue: Catalogue | None = None) -> None:
        self.device = device
        self.catalogue = Catalogue.of(device.bundle) if catalogue is None else catalogue
        self.length = int(device.bundle.settings["length"])
        self._asked: NDArray[np.float32] | None = None

    @classmethod
    def load(cls, folder: Path | str, state: Path | str | None = None) -> DeviceRecommender:
        """A recommender on the bundle in ``folder``; its own memory is in ``state``. Errors as ``DeviceBundle.load``."""
        return cls(Device(DeviceBundle.load(folder), state))

    def recommend(
        self,
        history: Sequence[Any],
        k: int = 10,
        *,
        exclude: Sequence[Any] = (),
        seen: bool | None = None,
        plain: bool = False,
    ) -> DeviceAnswer:
        """The ``k`` best items for a history, by the best level the device has.

        Args:
            history: item ids, oldest first; unknown ids are skipped, and only the last T known ones count. One without a
                known item is answered by the host, since there is nothing to personalise by.
            k: how many items.
            exclude: ids that must not be recommended.
            seen: whether items of the history may be recommended again; as the bundle says by default.
            plain: answer by the host, for comparison.

        Raises:
            ConfigError: ``k`` is below 1.
            DataError: the history is a text, whose letters would pass for ids.
        """
        if k < 1:
            raise ConfigError(f"k is {k}, but at least one item has to be asked for")
        known, unknown = self.known_items(history)
        outputs = self.device.run(self._inputs(known), plain=plain or not known)
        scores = outputs.arrays["scores"][0]
        again = self.device.bundle.settings.get("seen", False) if seen is None else seen
        scores[[0, *([] if again else known), *self.known_items(exclude)[0]]] = -np.inf
        count = min(k, len(scores))
        best = np.argpartition(-scores, count - 1)[:count]
        best = best[np.lexsort((best, -scores[best]))]
        items = [self._item(int(i), float(scores[i])) for i in best if np.isfinite(scores[i])]
        return DeviceAnswer(items, outputs.level, unknown)

    def wants_edit(self, history: Sequence[Any]) -> bool:
        """Whether the context has drifted enough since the last edit to ask for a new one: decided without the cloud.

        A history without a known item has nothing to ask by.

        Raises:
            ConfigError: the bundle was exported without a request policy.
        """
        policy = self.device.bundle.policy
        if policy is None:
            raise ConfigError(
                f"{self.device.bundle.folder} has no request policy: export it with --policy-data, or ask at a fixed rate"
            )
        known = self.known_items(history)[0]
        return bool(known) and policy.wants(policy.coordinates(self._summary(known)), self._asked)

    def receive(self, message: bytes, level: str, history: Sequence[Any]) -> Received:
        """Take the edit that was made from ``history``; errors as in ``Device.receive``, after which nothing has changed."""
        received = self.device.receive(message, level)
        policy, known = self.device.bundle.policy, self.known_items(history)[0]
        if policy is not None and known:
            self._asked = policy.coordinates(self._summary(known))
        return received

    def known_items(self, history: Sequence[Any]) -> tuple[list[int], list[Any]]:
        """Item indices of a history, and the ids in it that the vocabulary does not have.

        Raises:
            DataError: the history is a text.
        """
        if isinstance(history, str):
            raise DataError(f"a history is a list of item ids, not the text {history!r}: give [{history!r}]")
        found = [(given, self.catalogue.index.get(canonical_id(given))) for given in history]
        return [i for _, i in found if i is not None], [given for given, i in found if i is None]

    def _inputs(self, known: Sequence[int]) -> dict[str, NDArray[np.int64]]:
        """The last T items, left-aligned (1, T), and how many there are (1,)."""
        tail = list(known[-self.length :])
        items = np.zeros((1, self.length), dtype=np.int64)
        items[0, : len(tail)] = tail
        return {"items": items, "lengths": np.array([len(tail)], dtype=np.int64)}

    def _summary(self, known: Sequence[int]) -> NDArray[np.float32]:
        summary: NDArray[np.float32] = self.device.run(self._inputs(known), plain=True).arrays["summary"][0]
        return summary

    def _item(self, index: int, score: float) -> DeviceItem:
        titles = self.catalogue.titles
        return DeviceItem(self.catalogue.ids[index - 1], score, None if titles is None else titles[index - 1])
