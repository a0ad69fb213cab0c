"""The folder that a recommender is kept in, and what is read of it without torch; nothing in it has to be unpickled.

    bundle.json             format, settings, digests, metrics, lineage
    host.safetensors        the host's parameters
    editor.safetensors      the editor's parameters (absent if the bundle is the host alone)
    bank/                   the prototype bank (see ``persona.prototypes``; absent if there is none)
    items.parquet           the vocabulary: item i is row i - 1, with its title where there is one
    compiled/               what answers are made with (see ``recsys.serving.compile``)

``recsys.serving.release`` writes it. Version 1 of the format, which had no bank, is read as well.

Shapes: V items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from persona.bundles import BundleFormat
from persona.errors import DataError, FormatError
from persona.storage import digest_json
from recsys.data.columns import ITEM, TITLE
from recsys.data.ids import canonical_id

HEADER, ITEMS = "bundle.json", "items.parquet"
_ENTRIES = ("host", "editor", "host_digest", "editor_digest", "items_digest", "info")
HEADER_OF = BundleFormat(
    "persona-recsys-bundle",
    HEADER,
    {1: _ENTRIES, 2: (*_ENTRIES, "bank_version")},
    "run `persona recsys release` first",
)


@dataclass(frozen=True)
class Vocabulary:
    """The items that a bundle knows.

    Attributes:
        ids: (V,) item i is ``ids[i - 1]``.
        titles: (V,) or ``None``.
    """

    ids: list[str]
    titles: list[str | None] | None = None

    @cached_property
    def index(self) -> dict[str, int]:
        """Item id -> item index 1..V."""
        return {item: i for i, item in enumerate(self.ids, start=1)}

    def title(self, index: int) -> str | None:
        """The title of an item, where the log had one."""
        return None if self.titles is None else self.titles[index - 1]

    def known(self, history: Sequence[Any]) -> tuple[list[int], list[Any]]:
        """Item indices of a history, and the ids in it that there are no items of.

        Raises:
            DataError: the history is a text, whose letters would pass for ids.
        """
        if isinstance(history, str):
            raise DataError(f"a history is a list of item ids, not the text {history!r}: give [{history!r}]")
        found = [self.index.get(given) for given in history]
        if None in found:  # else every id is spelt as the catalogue spells it
            found = [self.index.get(canonical_id(given)) for given in history]
        unknown = [given for given, i in zip(history, found, strict=True) if i is None]
        return [i for i in found if i is not None], unknown

    def columns(self) -> dict[str, list[Any]]:
        """What the file of items holds."""
        return {ITEM: self.ids} | ({} if self.titles is None else {TITLE: self.titles})


def read_vocabulary(folder: Path, digest: str | None) -> Vocabulary:
    """The vocabulary of the bundle in ``folder``.

    Raises:
        FormatError: the file is missing, damaged, or of another bundle.
    """
    import polars as pl

    path = folder / ITEMS
    try:
        items: dict[str, list[Any]] = pl.read_parquet(path).to_dict(as_series=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise FormatError(f"{path} cannot be read: fetch the bundle again") from error
    if digest_json(items) != digest:
        raise FormatError(f"{path} is damaged, or of another bundle (its digest differs): fetch the bundle again")
    return Vocabulary(items[ITEM], items.get(TITLE))
