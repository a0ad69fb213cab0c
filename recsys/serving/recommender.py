"""The recommender that every door answers with: command line, notebook, MLflow, service. Graphs and tables, without torch.

    history ─> edit.onnx ─> codes, edits ─> EditTables: level, trust ─> rank.onnx ─> best items

One run of each graph answers a batch of histories, each at a level of its own (see ``persona.answering``). ``recsys.serving.compile``
makes the files at release; they lie in the folder ``compiled`` of a bundle.

Shapes: B histories, T context length, V items, L layers, d code width, P entries of a flat edit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from persona.answering import Answering, Contexts, Plan, check_level, plan
from persona.bundles import check_tables, fitting
from persona.errors import ConfigError
from recsys.serving.bundle import HEADER_OF, Vocabulary, read_vocabulary
from recsys.serving.graphs import RANK, CompiledModel
from recsys.serving.index import EXACT, IndexConfig

NO_ITEM = "the history has no known item"


@dataclass(frozen=True)
class Ask:
    """What one device asks for.

    Attributes:
        history: item ids, oldest first; unknown ids are skipped, and only the last T known ones count.
        k: how many items.
        level: one of ``persona.wire.LEVELS``.
        exclude: ids that must not be recommended.
        only: recommend none but these, if given.
        seen: whether items of the history may be recommended again; as the bundle says by default.
    """

    history: Sequence[Any]
    k: int = 10
    level: str = "edit"
    exclude: Sequence[Any] = ()
    only: Sequence[Any] | None = None
    seen: bool | None = None


@dataclass(slots=True)  # freezing would triple what it costs to make one, of which every answer has ten
class Ranked:
    """One recommended item: its id, its logit, and its title where the log had one."""

    item_id: str
    score: float
    title: str | None = None


@dataclass(frozen=True)
class Recommendation:
    """The answer for one history.

    Attributes:
        items: best first.
        level: what answered, one of ``persona.wire.LEVELS``.
        unknown: ids of the history that are not in the vocabulary; they were skipped.
        edit_norm: Frobenius norm of the edit that was applied, 0 at level ``host``.
        prototype: nearest prototype, whatever the level, if there is a bank and a known item.
        bank: version of the bundle's prototype bank, empty if it has none.
        fallback: why a lower level answered than the one asked for; empty if none did.
        distance: norm of the remaining edit from the nearest prototype.
        unread: how many known items of the history are older than the model reads.
    """

    items: list[Ranked]
    level: str
    unknown: list[Any] = field(default_factory=list)
    edit_norm: float = 0.0
    prototype: int | None = None
    bank: str = ""
    fallback: str = ""
    distance: float | None = None
    unread: int = 0


@dataclass(frozen=True)
class _Ranking:
    """Best scores (B, n) and their items, -inf where no more were found, and all scores (B, V) if they are wanted."""

    scores: NDArray[np.float32]
    items: NDArray[np.int64]
    every: NDArray[np.float32] | None

    def first(self, row: int, banned: set[int], k: int, allowed: list[int] | None) -> list[tuple[int, float]]:
        """The first k items of a row, with their scores, that are not banned, and among the allowed ones if only those are wanted."""
        if allowed is not None and self.every is not None:
            items = [i for i in allowed if i not in banned]
            scores = self.every[row, np.array(items, dtype=np.int64) - 1]
            order = np.argsort(-scores, kind="stable")[:k]
            return [(items[i], score) for i, score in zip(order.tolist(), scores[order].tolist(), strict=True)]
        found = int(np.isfinite(self.scores[row]).sum())
        pairs = zip(self.items[row, :found].tolist(), self.scores[row, :found].tolist(), strict=True)
        return [(item, score) for item, score in pairs if item not in banned][:k]


class Recommender(Answering):
    """A bundle, ready to answer.

    Args:
        model: graphs and tables.
        vocabulary: the items.
        host: digest of the host.
        seen: whether items of a history are recommended again where nothing else is asked for.

    Example::

        recommender = Recommender.load("work/bundle")
        answer = recommender.recommend(["1193", "661", "914"], k=10)
        print([item.title for item in answer.items], answer.level)
    """

    model: CompiledModel

    def __init__(self, model: CompiledModel, vocabulary: Vocabulary, host: str, seen: bool = False) -> None:
        self.model, self.vocabulary, self.host, self.seen = model, vocabulary, host, seen

    @property
    def item_ids(self) -> list[str]:
        """(V,) ids; item i is ``item_ids[i - 1]``."""
        return self.vocabulary.ids

    @classmethod
    def load(cls, folder: Path | str, index: IndexConfig = EXACT) -> Recommender:
        """Read what answers are made with, and build the index that finds the best items of large catalogues.

        Raises:
            ConfigError: an index is asked for that there is no use for, or that cannot be built.
            DataError: there is no bundle in the folder, or it was never compiled.
            FormatError: a file is damaged.
            MismatchError: files of the folder belong to different bundles.
        """
        folder = Path(folder)
        header, files = HEADER_OF.answering(folder, RANK, "recsys")
        vocabulary = read_vocabulary(folder, header["items_digest"])
        with fitting(folder):
            model = CompiledModel(files, int(header["host"]["max_length"]), index)
        check_tables(folder, header["host_digest"], header.get("bank_version"), model.tables)
        return cls(model, vocabulary, header["host_digest"], bool(header["info"].get("seen")))

    def known_items(self, history: Sequence[Any]) -> tuple[list[int], list[Any]]:
        """Item indices of a history, and the ids in it that the vocabulary does not have."""
        return self.vocabulary.known(history)

    def contexts(self, known: Sequence[Sequence[int]]) -> Contexts:
        """One pass of the editor over histories that are not empty."""
        return self.model.contexts(self.model.inputs(known))

    def recommend(
        self,
        history: Sequence[Any],
        k: int = 10,
        *,
        level: str = "edit",
        exclude: Sequence[Any] = (),
        seen: bool | None = None,
        only: Sequence[Any] | None = None,
    ) -> Recommendation:
        """The ``k`` best items for one history; arguments and errors as ``Ask`` and ``answer`` have them."""
        return self.answer([Ask(history, k, level, exclude, only, seen)])[0]

    def recommend_many(
        self,
        histories: Sequence[Sequence[Any]],
        k: int = 10,
        *,
        level: str = "edit",
        exclude: Sequence[Sequence[Any]] | None = None,
        seen: bool | None = None,
    ) -> list[Recommendation]:
        """Answers for B histories at once, each as ``recommend`` gives it, with one ``exclude`` a history."""
        without = [()] * len(histories) if exclude is None else exclude
        pairs = zip(histories, without, strict=True)
        return self.answer([Ask(history, k, level, left_out, None, seen) for history, left_out in pairs])

    def answer(self, asks: Sequence[Ask]) -> list[Recommendation]:
        """Answers to a batch; each has the level, length and exclusions of its own.

        Raises:
            ConfigError: a level is unknown, or a ``k`` is below 1.
            DataError: a history is a text, whose letters would pass for ids.
        """
        for ask in asks:
            check_level(ask.level)
            if ask.k < 1:
                raise ConfigError(f"k is {ask.k}, but at least one item has to be asked for")
        if not asks:
            return []
        read = [self.known_items(ask.history) for ask in asks]
        known = [items for items, _ in read]
        inputs = self.model.inputs(known)
        nothing = ["" if items else NO_ITEM for items in known]
        chosen = plan(self.tables, [ask.level for ask in asks], nothing, lambda: self.model.contexts(inputs))
        banned = [self._banned(ask, items) for ask, items in zip(asks, known, strict=True)]
        best = min(len(self.item_ids), max(ask.k + len(out) for ask, out in zip(asks, banned, strict=True)))
        ranking = self._rank(inputs, chosen, best, whole=any(ask.only is not None for ask in asks))
        answers = []
        for row, (ask, (items, unknown)) in enumerate(zip(asks, read, strict=True)):
            first = self._ranked(ranking.first(row, banned[row], ask.k, self._allowed(ask)))
            level, fallback, prototype, distance, norm = chosen.of(row)
            unread = max(0, len(items) - self.model.length)
            answers.append(
                Recommendation(first, level, unknown, norm, prototype, self.bank, fallback, distance, unread)
            )
        return answers

    def _rank(self, inputs: Mapping[str, NDArray[np.int64]], chosen: Plan, best: int, *, whole: bool) -> _Ranking:
        """The ranking of every row under its edit; by the host, where what that makes of the scores is not finite."""
        scores, items, every = self.model.rank(inputs, chosen.edits, best, whole=whole)
        # Where an index finds too few items the last scores are -inf; a row that finds none is broken.
        broken = np.flatnonzero(np.isnan(scores).any(axis=1) | ~np.isfinite(scores[:, 0]))
        if broken.size:
            some = {name: array[broken] for name, array in inputs.items()}
            scores[broken], items[broken], plain = self.model.rank(some, None, best, whole=whole)
            if every is not None:
                every[broken] = plain
            for row in broken.tolist():
                chosen.refuse(row)
        return _Ranking(scores, items, every)

    def _ranked(self, found: Sequence[tuple[int, float]]) -> list[Ranked]:
        ids, titles = self.vocabulary.ids, self.vocabulary.titles
        if titles is None:
            return [Ranked(ids[i - 1], score) for i, score in found]
        return [Ranked(ids[i - 1], score, titles[i - 1]) for i, score in found]

    def _allowed(self, ask: Ask) -> list[int] | None:
        """Indices of the items that alone are wanted, in their order; ``None`` if any will do."""
        return None if ask.only is None else sorted(set(self.known_items(ask.only)[0]))

    def _banned(self, ask: Ask, known: Sequence[int]) -> set[int]:
        """Item indices that must not be recommended."""
        seen = self.seen if ask.seen is None else ask.seen
        return {*(() if seen else known), *(self.known_items(ask.exclude)[0] if ask.exclude else ())}
