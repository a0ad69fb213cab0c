"""The servable recommender: a history in, ranked items out, at any serving level.

    level       what ranks                                                       falls back to
    host        the host as it is, the same for everybody
    prototype   the prototype nearest to the history                             host
    basis       the prototype, and the remaining edit in the bank's basis        prototype, host
    edit        the whole edit                                                   prototype, host

Do no harm: an edit that is not finite is never used; the next level answers, and says why. So it is where the bundle has no
bank or no editor, and where the history has no known item to personalise by.

Shapes: B histories, V items, L layers, d code width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from persona.edits import Edit
from persona.errors import ConfigError, DataError, nearest
from persona.prototypes import PrototypeBank, Server
from persona.wire import LEVELS, NOT_FINITE
from recsys.data.batches import Context
from recsys.data.ids import canonical_id
from recsys.personalised import Personalised
from recsys.serving.bundle import Bundle
from recsys.serving.graphs import CompiledModel

# What answers in turn where a level cannot.
FALLBACKS = {level: tuple(dict.fromkeys((level, "prototype", "host"))) for level in LEVELS[1:]} | {"host": ("host",)}

NO_ITEM = "the history has no known item"
NO_EDITOR = "the bundle has no editor"
NO_BANK = "the bundle has no prototypes"


@dataclass(frozen=True)
class Ranked:
    """One recommended item: its id, its title where the log had one, and its logit."""

    item_id: str
    score: float
    title: str | None = None


@dataclass(frozen=True)
class Recommendation:
    """The answer for one history.

    Attributes:
        items: best first.
        level: what answered, one of ``LEVELS``.
        unknown: ids of the history that are not in the vocabulary; they were skipped.
        edit_norm: Frobenius norm of the edit that was applied, 0 at level ``host``.
        prototype: index of the prototype that the answer stands on, at levels ``prototype`` and ``basis``.
        bank: version of the bundle's prototype bank, empty if it has none.
        fallback: why a lower level answered than the one asked for; empty if none did.
    """

    items: list[Ranked]
    level: str
    unknown: list[Any] = field(default_factory=list)
    edit_norm: float = 0.0
    prototype: int | None = None
    bank: str = ""
    fallback: str = ""


@dataclass(frozen=True)
class _Scored:
    """Logits (V + 1,) of one history, and what made them."""

    scores: Tensor
    level: str
    norm: float = 0.0
    prototype: int | None = None
    fallback: str = ""


class Recommender:
    """A personalised recommender, ready to answer.

    Args:
        model: host and editor.
        item_ids: (V,) ids; item i is ``item_ids[i - 1]``.
        titles: (V,) titles, or ``None``.
        info: what ``bundle.json`` tells about training: settings, metrics, data digest, lineage.
        bank: prototypes made with this host and editor.

    Attributes:
        server: serving levels of the bank, ``None`` without one: codes in, edits and messages to devices out.
        host_digest: what edits of this host carry.

    Raises:
        ConfigError: a bank without an editor.
        MismatchError: the bank was made with another host or editor.

    Example::

        recommender = Recommender.load("work/bundle")
        answer = recommender.recommend(["1193", "661", "914"], k=10)
        print([item.title for item in answer.items])
    """

    def __init__(
        self,
        model: Personalised,
        item_ids: Sequence[str],
        titles: Sequence[str | None] | None = None,
        info: Mapping[str, Any] | None = None,
        bank: PrototypeBank | None = None,
    ) -> None:
        self.model = model.eval()
        self.item_ids = list(item_ids)
        self.titles = None if titles is None else list(titles)
        self.info = dict(info or {})
        self.index = {item: i for i, item in enumerate(self.item_ids, start=1)}
        self.host_digest = model.host.digest()
        self.compiled: CompiledModel | None = None
        if model.editor is not None:
            model.editor.host = self.host_digest
        self.server: Server | None = None
        if bank is not None:
            if model.editor is None:
                raise ConfigError(
                    "a prototype bank needs the editor that it was made with: give a model with an editor"
                )
            self.server = Server(model.editor, bank)

    @property
    def bank(self) -> PrototypeBank | None:
        """The prototype bank, if there is one."""
        return None if self.server is None else self.server.bank

    @cached_property
    def item_vectors(self) -> Tensor:
        """(V + 1, d) target vectors, which no edit changes."""
        with torch.inference_mode():
            return self.model.host.item_vectors()

    def recommend(
        self,
        history: Sequence[Any],
        k: int = 10,
        *,
        level: str = "edit",
        exclude: Sequence[Any] = (),
        seen: bool = False,
    ) -> Recommendation:
        """The ``k`` best items for one history.

        Args:
            history: item ids, oldest first; unknown ids are skipped and reported, and only the last T known ones count.
            k: how many items.
            level: ``edit`` for a wholly personalised answer, or another of ``LEVELS``.
            exclude: ids that must not be recommended.
            seen: whether items of the history may be recommended again.

        Raises:
            ConfigError: the level is unknown, or ``k`` is below 1.
        """
        return self.recommend_many([history], k, level=level, exclude=[exclude], seen=seen)[0]

    @torch.inference_mode()
    def recommend_many(
        self,
        histories: Sequence[Sequence[Any]],
        k: int = 10,
        *,
        level: str = "edit",
        exclude: Sequence[Sequence[Any]] | None = None,
        seen: bool = False,
    ) -> list[Recommendation]:
        """Answers for B histories at once; arguments as in ``recommend``, with one ``exclude`` a history."""
        if level not in LEVELS:
            raise ConfigError(f"unknown level {level!r}: {nearest(level, LEVELS)}")
        if k < 1:
            raise ConfigError(f"k is {k}, but at least one item has to be asked for")
        if not histories:
            return []
        known, unknown = self.known_items(histories)
        version = "" if self.bank is None else self.bank.version
        answers = []
        for row, found in enumerate(self._score(known, level)):
            banned = [] if seen else known[row]
            if exclude is not None:
                banned = [*banned, *self.known_items([exclude[row]])[0][0]]
            found.scores[banned] = float("-inf")
            items = self._ranked(found.scores, k)
            answers.append(
                Recommendation(items, found.level, unknown[row], found.norm, found.prototype, version, found.fallback)
            )
        return answers

    def _score(self, known: Sequence[Sequence[int]], level: str) -> list[_Scored]:
        """Every history at ``level``, or at the next that can answer it."""
        single = level == "edit" and len(known) == 1 and bool(known[0])
        if single and self.compiled is not None and self.model.editor is not None:
            scores, norm = self.compiled.score(known[0])
            if np.isfinite(norm) and np.isfinite(scores[1:]).all():
                return [_Scored(torch.from_numpy(scores), "edit", norm)]
        context = self.context(known)
        done: dict[int, _Scored] = {}
        reasons = ["" if items or level == "host" else NO_ITEM for items in known]
        for step in FALLBACKS[level]:
            rows = [i for i in range(len(known)) if i not in done and (step == "host" or reasons[i] != NO_ITEM)]
            missing = self._missing(step)
            if missing:
                reasons = [reason or missing for reason in reasons]
            elif rows:
                answered = self._attempt(context.index_select(torch.tensor(rows)), step)
                done |= {
                    i: replace(a, fallback=reasons[i]) for i, a in zip(rows, answered, strict=True) if a is not None
                }
                reasons = [reason or NOT_FINITE for reason in reasons]
        return [done[i] for i in range(len(known))]

    def _missing(self, level: str) -> str:
        """What the bundle lacks for a level, empty if nothing."""
        if level == "host":
            return ""
        if self.model.editor is None:
            return NO_EDITOR
        return NO_BANK if level != "edit" and self.server is None else ""

    def _attempt(self, context: Context, level: str) -> list[_Scored | None]:
        """All rows at exactly this level; ``None`` where an edit, or what it makes of the scores, is not finite."""
        state = self.model.host.encode(context)
        if level == "host":
            plain = self.model.host.score_catalogue(state, item_vectors=self.item_vectors)
            return [_Scored(scores, level) for scores in plain]
        codes = self.codes(context)
        edit, prototypes = self._edit_at(codes, level)
        scores = self.model.host.score_catalogue(state, edit, item_vectors=self.item_vectors)
        norms = edit.norm()
        usable = edit.is_finite() & torch.isfinite(norms)
        usable &= torch.isfinite(codes).all(-1).all(-1) & torch.isfinite(scores[:, 1:]).all(1)
        return [
            _Scored(scores[i], level, float(norms[i]), prototypes[i]) if usable[i] else None
            for i in range(len(context))
        ]

    def _edit_at(self, codes: Tensor, level: str) -> tuple[Edit, list[Any]]:
        """(B, L, d) -> what every row's device applies at a level, and the prototypes that it stands on."""
        if self.server is None or level == "edit":
            assert self.model.editor is not None
            return self.model.editor.bounded(self.model.editor.unbounded(codes)), [None] * len(codes)
        return self.server.edit(codes, level), self.server.assign(codes).tolist()

    def compile(self, item_table: str = "") -> Recommender:
        """Make what a service runs, and keep that with the bundle; takes some seconds. Single answers are faster with it.

        Args:
            item_table: ``float32``, ``int8`` or ``int4`` keeps the items in tables beside the graphs, and ranks them in blocks;
                by default only large catalogues are, in float32 (see ``recsys.serving.compile.compile_model``).
        """
        from recsys.serving.compile import compile_model  # the exporter is loaded at release alone

        self.compiled = CompiledModel(
            compile_model(self.model, self.bank, item_table), self.model.host.config.max_length
        )
        return self

    @torch.no_grad()
    def codes(self, context: Context) -> Tensor:
        """(B, L, d) editing codes, what ``server`` reads of every row.

        Raises:
            ConfigError: the bundle is the host alone.
        """
        editor = self.model.editor
        if editor is None:
            raise ConfigError(
                "this bundle is a host without an editor, so its contexts have no codes: release one with it"
            )
        return editor.codes(self.model.host.context_features(context), context.lengths)

    def context_of(self, histories: Sequence[Sequence[Any]]) -> Context:
        """The model's view of histories of item ids, oldest first; unknown ids are skipped.

        Raises:
            DataError: a history is a text, whose letters would pass for ids.
        """
        return self.context(self.known_items(histories)[0])

    def context(self, known: Sequence[Sequence[int]]) -> Context:
        """The model's view of item index histories: the last T of each."""
        return Context.from_lists(known, self.model.host.config.max_length)

    def known_items(self, histories: Sequence[Sequence[Any]]) -> tuple[list[list[int]], list[list[Any]]]:
        """Item indices of each history, and the ids in it that the vocabulary does not have.

        Raises:
            DataError: a history is a text, whose letters would pass for ids.
        """
        known: list[list[int]] = []
        unknown: list[list[Any]] = []
        for history in histories:
            if isinstance(history, str):
                raise DataError(f"a history is a list of item ids, not the text {history!r}: give [{history!r}]")
            found = [(given, self.index.get(canonical_id(given))) for given in history]
            known.append([index for _, index in found if index is not None])
            unknown.append([given for given, index in found if index is None])
        return known, unknown

    def save(self, folder: Path) -> None:
        """Write the bundle; the folder appears at once or not at all."""
        files = None if self.compiled is None else self.compiled.files
        Bundle(self.model, self.item_ids, self.titles, self.info, self.bank, files).write(folder)

    @classmethod
    def load(cls, folder: Path | str) -> Recommender:
        """Read what ``save`` wrote.

        Raises:
            DataError: there is no bundle in the folder.
            FormatError: the bundle is damaged, or of a version that this release cannot read.
            MismatchError: files of the folder belong to different bundles.
        """
        found = Bundle.read(folder)
        recommender = cls(found.model, found.item_ids, found.titles, found.info, found.bank)
        if found.compiled is not None:
            recommender.compiled = CompiledModel(found.compiled, found.model.host.config.max_length)
        return recommender

    def _ranked(self, scores: Tensor, k: int) -> list[Ranked]:
        top = scores.topk(min(k, len(self.item_ids)))
        return [
            Ranked(self.item_ids[i - 1], score, None if self.titles is None else self.titles[i - 1])
            for score, i in zip(top.values.tolist(), top.indices.tolist(), strict=True)
            if np.isfinite(score)
        ]
