"""The recommender as a service runs it: two compiled graphs and the edit tables, without torch.

    history ─> edit.onnx ─> codes, edits ─> EditTables: level, trust ─> rank.onnx ─> best items

One run of each graph answers a batch of histories, each at a level of its own. ``recsys.serving.compile`` makes the files at release;
they lie in the folder ``compiled`` of a bundle. The answers are those of ``recsys.serving.recommender.Recommender``.

Shapes: B histories, T context length, V items, L layers, d code width, P entries of a flat edit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from persona.cloud import Chosen, EditTables
from persona.errors import ConfigError, DataError, FormatError, MismatchError, PersonaError, nearest
from persona.storage import digest_json, read_json
from persona.wire import LEVELS, NOT_FINITE
from recsys.data.columns import ITEM, TITLE
from recsys.data.ids import canonical_id
from recsys.serving.graphs import RANK, CompiledModel, Contexts
from recsys.serving.index import EXACT, IndexConfig

FOLDER = "compiled"
HEADER, ITEMS = "bundle.json", "items.parquet"

NO_ITEM = "the history has no known item"
NO_EDITOR = "the bundle has no editor"
NO_BANK = "the bundle has no prototypes"


@dataclass(frozen=True)
class Ask:
    """What one device asks for.

    Attributes:
        history: item ids, oldest first; unknown ids are skipped, and only the last T known ones count.
        k: how many items.
        level: one of ``LEVELS``.
        exclude: ids that must not be recommended.
        only: recommend none but these, if given.
        seen: whether items of the history may be recommended again.
    """

    history: Sequence[Any]
    k: int = 10
    level: str = "edit"
    exclude: Sequence[Any] = ()
    only: Sequence[Any] | None = None
    seen: bool = False


@dataclass(frozen=True)
class Answer:
    """The answer to one ``Ask``.

    Attributes:
        items: indices of the best items, best first; item i is ``item_ids[i - 1]``.
        scores: their logits.
        level: what answered.
        fallback: why it is a lower level than the one asked for; empty if it is not.
        prototype: nearest prototype, if there is a bank and a known item.
        distance: norm of the remaining edit from it.
        edit_norm: of the edit that was applied, 0 at level ``host``.
        unknown: ids of the history that the vocabulary does not have.
        unread: how many known items of the history are older than the model reads.
    """

    items: list[int]
    scores: list[float]
    level: str
    fallback: str = ""
    prototype: int | None = None
    distance: float | None = None
    edit_norm: float = 0.0
    unknown: list[Any] = field(default_factory=list)
    unread: int = 0


@dataclass(frozen=True)
class _Plan:
    """Level of every row, why it is less than was asked for, and what the rows apply; without edits, the host alone."""

    levels: list[str]
    reasons: list[str]
    chosen: Chosen | None

    def of(self, row: int, personal: bool) -> tuple[str, str, int | None, float | None, float]:
        """Level, fallback, prototype, distance and norm of one row's answer."""
        level, reason, chosen = self.levels[row], self.reasons[row], self.chosen
        if chosen is None or not personal:
            return level, reason, None, None, 0.0
        norm = 0.0 if level == "host" else float(chosen.norms[row])
        if chosen.prototypes is None or chosen.distances is None:
            return level, reason, None, None, norm
        nearest_one = int(chosen.prototypes[row])
        distance = float(chosen.distances[row, nearest_one])
        if not np.isfinite(distance):
            return level, reason, None, None, norm
        return level, reason, nearest_one, distance, norm


@dataclass(frozen=True)
class _Ranking:
    """Best scores (B, n) and their items, -inf where no more were found, and all scores (B, V) if they are wanted."""

    scores: NDArray[np.float32]
    items: NDArray[np.int64]
    every: NDArray[np.float32] | None

    def first(self, row: int, banned: set[int], k: int, allowed: list[int] | None) -> tuple[list[int], list[float]]:
        """The first k items of a row that are not banned, and among the allowed ones if only those are wanted."""
        if allowed is not None and self.every is not None:
            items = [i for i in allowed if i not in banned]
            scores = self.every[row, np.array(items, dtype=np.int64) - 1]
            order = np.argsort(-scores, kind="stable")[:k]
            return [items[i] for i in order.tolist()], scores[order].tolist()
        found = int(np.isfinite(self.scores[row]).sum())
        if not banned:
            return self.items[row, : min(k, found)].tolist(), self.scores[row, : min(k, found)].tolist()
        pairs = zip(self.items[row, :found].tolist(), self.scores[row, :found].tolist(), strict=True)
        kept = [(item, score) for item, score in pairs if item not in banned][:k]
        return [item for item, _ in kept], [score for _, score in kept]


class CompiledRecommender:
    """A bundle, ready to answer batches of different wishes at once.

    Args:
        model: graphs and tables.
        item_ids: (V,) ids; item i is ``item_ids[i - 1]``.
        titles: (V,) titles, or ``None``.
        host: digest of the host.

    Raises:
        MismatchError: the tables were made for another host.

    Example::

        recommender = CompiledRecommender.load("work/bundle")
        answer = recommender.recommend([Ask(["1193", "661", "914"], k=10)])[0]
    """

    def __init__(
        self, model: CompiledModel, item_ids: Sequence[str], titles: Sequence[str | None] | None, host: str
    ) -> None:
        self.model, self.host = model, host
        self.item_ids = list(item_ids)
        self.titles = None if titles is None else list(titles)
        self.index = {item: i for i, item in enumerate(self.item_ids, start=1)}
        if model.tables is not None and model.tables.host != host:
            raise MismatchError(
                f"the edit tables were made for the host {model.tables.host[:12]}, but the bundle holds {host[:12]}: "
                "release the bundle again"
            )

    @property
    def tables(self) -> EditTables | None:
        """Prototypes and levels; ``None`` for a host alone."""
        return self.model.tables

    @property
    def bank(self) -> str:
        """Version of the prototype bank, empty without one."""
        return "" if self.tables is None else self.tables.bank

    @classmethod
    def load(cls, folder: Path | str, index: IndexConfig = EXACT) -> CompiledRecommender:
        """Read the compiled part of a bundle, and build the index that finds the best items of large catalogues.

        Raises:
            ConfigError: an index is asked for that there is no use for, or that cannot be built.
            DataError: there is no bundle in the folder, or it was never compiled.
            FormatError: a file is damaged.
            MismatchError: files of the folder belong to different bundles.
        """
        folder = Path(folder)
        if not (folder / HEADER).is_file():
            raise DataError(f"{folder} holds no bundle (no {HEADER}): run `persona recsys release` first")
        header = read_json(folder / HEADER)
        files = read_files(folder, header)
        if files is None:
            raise DataError(f"{folder} was released without its compiled form: run `persona recsys release` again")
        items = read_items(folder / ITEMS, header.get("items_digest"))
        try:
            model = CompiledModel(files, int(header["host"]["max_length"]), index)
            made = cls(model, items[ITEM], items.get(TITLE), header["host_digest"])
        except PersonaError:
            raise
        except Exception as error:  # onnxruntime raises many kinds, and a damaged header lacks any key
            raise FormatError(f"{folder} does not fit together ({type(error).__name__}): release it again") from error
        if (header.get("bank_version") or "") != made.bank:
            raise MismatchError(f"{folder} holds the tables of another prototype bank: release the bundle again")
        return made

    def known_items(self, history: Sequence[Any]) -> tuple[list[int], list[Any]]:
        """Item indices of a history, and the ids in it that the vocabulary does not have."""
        found = [self.index.get(given) for given in history]
        if None in found:  # else every id is spelt as the catalogue spells it
            found = [self.index.get(canonical_id(given)) for given in history]
        unknown = [given for given, i in zip(history, found, strict=True) if i is None]
        return [i for i in found if i is not None], unknown

    def contexts(self, known: Sequence[Sequence[int]]) -> Contexts:
        """One pass of the editor over histories that are not empty."""
        return self.model.contexts(self.model.inputs(known))

    def recommend(self, asks: Sequence[Ask]) -> list[Answer]:
        """Answers to a batch; each has the level, length and exclusions of its own.

        Raises:
            ConfigError: a level is unknown, or a ``k`` is below 1.
        """
        for ask in asks:
            if ask.level not in LEVELS:
                raise ConfigError(f"unknown level {ask.level!r}: {nearest(ask.level, LEVELS)}")
            if ask.k < 1:
                raise ConfigError(f"k is {ask.k}, but at least one item has to be asked for")
        if not asks:
            return []
        read = [self.known_items(ask.history) for ask in asks]
        known = [items for items, _ in read]
        inputs = self.model.inputs(known)
        plan = self._plan(asks, known, inputs)
        banned = [self._banned(ask, items) for ask, items in zip(asks, known, strict=True)]
        best = min(len(self.item_ids), max(ask.k + len(out) for ask, out in zip(asks, banned, strict=True)))
        ranking = self._rank(inputs, plan, best, whole=any(ask.only is not None for ask in asks))
        answers = []
        for row, (ask, (items, unknown)) in enumerate(zip(asks, read, strict=True)):
            first, scores = ranking.first(row, banned[row], ask.k, self._allowed(ask))
            unread = max(0, len(items) - self.model.length)
            answers.append(Answer(first, scores, *plan.of(row, bool(items)), unknown, unread))
        return answers

    def _plan(
        self, asks: Sequence[Ask], known: Sequence[Sequence[int]], inputs: Mapping[str, NDArray[np.int64]]
    ) -> _Plan:
        """What every row applies, and why it is less than was asked for."""
        available = ("host",) if self.tables is None else self.tables.levels
        missing = NO_EDITOR if self.tables is None else NO_BANK
        wanted, reasons = [], []
        for ask, items in zip(asks, known, strict=True):
            reason = "" if ask.level == "host" else NO_ITEM if not items else "" if ask.level in available else missing
            reasons.append(reason)
            wanted.append("host" if reason else ask.level)
        # The nearest prototype is told of at every level, the host's own included.
        if self.tables is None or not any(known):
            return _Plan(wanted, reasons, None)
        contexts = self.model.contexts(inputs)
        chosen = self.tables.choose(contexts.codes, contexts.unbounded, wanted)
        reasons = [mine or theirs for mine, theirs in zip(reasons, chosen.reasons, strict=True)]
        return _Plan(list(chosen.levels), reasons, chosen)

    def _rank(self, inputs: Mapping[str, NDArray[np.int64]], plan: _Plan, best: int, *, whole: bool) -> _Ranking:
        """The ranking of every row under its edit; by the host, where what that makes of the scores is not finite."""
        edits = None if plan.chosen is None else plan.chosen.edits
        scores, items, every = self.model.rank(inputs, edits, best, whole=whole)
        # Where an index finds too few items the last scores are -inf; a row that finds none is broken.
        broken = np.flatnonzero(np.isnan(scores).any(axis=1) | ~np.isfinite(scores[:, 0]))
        if broken.size:
            some = {name: array[broken] for name, array in inputs.items()}
            scores[broken], items[broken], plain = self.model.rank(some, None, best, whole=whole)
            if every is not None:
                every[broken] = plain
            for row in broken.tolist():
                plan.levels[row], plan.reasons[row] = "host", NOT_FINITE
        return _Ranking(scores, items, every)

    def _allowed(self, ask: Ask) -> list[int] | None:
        """Indices of the items that alone are wanted, in their order; ``None`` if any will do."""
        return None if ask.only is None else sorted(set(self.known_items(ask.only)[0]))

    def _banned(self, ask: Ask, known: Sequence[int]) -> set[int]:
        """Item indices that must not be recommended."""
        return {*(() if ask.seen else known), *(self.known_items(ask.exclude)[0] if ask.exclude else ())}


def read_files(folder: Path, header: Mapping[str, Any]) -> dict[str, bytes] | None:
    """The compiled files of a bundle by name; ``None`` if it was not compiled.

    Raises:
        FormatError: a file is missing or damaged.
    """
    listed = header.get("compiled")
    if listed is None:
        return None
    files = {}
    for name, digest in listed.items():
        path = folder / FOLDER / Path(name).name
        try:
            files[name] = path.read_bytes()
        except OSError as error:
            raise FormatError(f"{path} cannot be read ({error.strerror}): fetch the bundle again") from error
        if hashlib.sha256(files[name]).hexdigest() != digest:
            raise FormatError(f"{path} is damaged (its digest differs): fetch the bundle again")
    if RANK not in files:
        raise FormatError(f"{folder} lacks the graph {RANK}: fetch the bundle again")
    return files


def digests(files: Mapping[str, bytes]) -> dict[str, str]:
    """SHA-256, in hex, of every compiled file: what the bundle's header lists."""
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def read_items(path: Path, digest: str | None) -> dict[str, list[Any]]:
    """The vocabulary of a bundle: ids, and titles where there are any.

    Raises:
        FormatError: the file is missing, damaged, or of another bundle.
    """
    import polars as pl

    try:
        items: dict[str, list[Any]] = pl.read_parquet(path).to_dict(as_series=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise FormatError(f"{path} cannot be read: fetch the bundle again") from error
    if digest_json(items) != digest:
        raise FormatError(f"{path} is damaged, or of another bundle (its digest differs): fetch the bundle again")
    return items
