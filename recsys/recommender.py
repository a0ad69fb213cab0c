"""The servable bundle: a history in, ranked items out.

A bundle is a folder that holds all a server needs and nothing that has to be unpickled:

    bundle.json             format, settings, digests, metrics, lineage
    host.safetensors        the host's parameters
    editor.safetensors      the editor's parameters (absent if the bundle is the host alone)
    items.parquet           the vocabulary: item i is row i - 1, with its title where there is one
    single.onnx             the answer to a single history, compiled (absent if ``compile`` was not called)

Shapes: B histories, V items.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from persona.editor import EditorConfig, ParameterEditor
from persona.edits import Edit
from persona.errors import ConfigError, DataError, FormatError, MismatchError, nearest
from persona.storage import (
    atomic_folder,
    digest_json,
    digest_tensors,
    load_tensors,
    read_json,
    save_tensors,
    write_json,
)
from recsys.batches import Context
from recsys.columns import ITEM, TITLE
from recsys.hosts import Host, HostConfig, SequentialHost, make_host
from recsys.ids import canonical_id
from recsys.personalised import Personalised

if TYPE_CHECKING:  # onnxruntime is loaded by those who use it
    from recsys.compiled import CompiledModel

FORMAT = "persona-recsys-bundle"
FORMAT_VERSION = 1
LEVELS = ("host", "edit")

HEADER, HOST, EDITOR, ITEMS = "bundle.json", "host.safetensors", "editor.safetensors", "items.parquet"
COMPILED = "single.onnx"


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
        level: what answered, ``host`` or ``edit``. A history without a single known item is answered by the host, since
            there is nothing to personalise by.
        unknown: ids of the history that are not in the vocabulary; they were skipped.
        edit_norm: Frobenius norm of the edit, 0 at level ``host``.
    """

    items: list[Ranked]
    level: str
    unknown: list[Any] = field(default_factory=list)
    edit_norm: float = 0.0


class Recommender:
    """A personalised recommender, ready to answer.

    Args:
        model: host and editor.
        item_ids: (V,) ids; item i is ``item_ids[i - 1]``.
        titles: (V,) titles, or ``None``.
        info: what ``bundle.json`` tells about training: settings, metrics, data digest, lineage.

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
            level: ``edit`` for a personalised answer, ``host`` for the host's own.
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
        scores, norms = self._score(known, level)
        for row, items in enumerate(known):
            banned = [] if seen else items
            if exclude is not None:
                banned = [*banned, *self.known_items([exclude[row]])[0][0]]
            scores[row, banned] = float("-inf")
        return [
            Recommendation(
                items=self._ranked(scores[row], k),
                level="edit" if items and norms is not None else "host",
                unknown=unknown[row],
                edit_norm=float(norms[row]) if items and norms is not None else 0.0,
            )
            for row, items in enumerate(known)
        ]

    def _score(self, known: Sequence[Sequence[int]], level: str) -> tuple[Tensor, Tensor | None]:
        """Logits (B, V + 1), and the norms (B,) of the edits where there are any."""
        if self.compiled is not None and level == "edit" and len(known) == 1 and known[0]:
            scores, norm = self.compiled.score(known[0])
            return torch.from_numpy(scores).unsqueeze(0), torch.tensor([norm])
        context = self.context(known)
        edit = self.edit(context) if level == "edit" else None
        state = self.model.host.encode(context)
        scores_ = self.model.host.score_catalogue(state, edit, item_vectors=self.item_vectors)
        return scores_, None if edit is None else edit.norm()

    def compile(self) -> Recommender:
        """Compile the answer to a single history, and keep that with the bundle; takes some seconds.

        Nothing is done for a host alone, or for DIN, whose time is in attending every item of the catalogue to the history.
        """
        if self.model.editor is not None and isinstance(self.model.host, SequentialHost):
            from recsys.compiled import CompiledModel, compile_model

            self.compiled = CompiledModel(compile_model(self.model), self.model.host.config.max_length)
        return self

    def edit(self, context: Context) -> Edit | None:
        """The edit of every row; rows without a history get none (a zero edit). ``None`` if there is no editor."""
        edit = self.model.edit(context)
        if edit is None or bool((context.lengths > 0).all()):
            return edit
        personal = (context.lengths > 0).float()
        return edit.map(lambda t: t * personal.reshape(-1, *[1] * (t.ndim - 1)))

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
        editor = self.model.editor
        with atomic_folder(Path(folder)) as new:
            save_tensors(new / HOST, self.model.host.state_dict(), {"host": self.host_digest})
            if editor is not None:
                save_tensors(new / EDITOR, editor.state_dict(), {"host": self.host_digest})
            if self.compiled is not None:
                (new / COMPILED).write_bytes(self.compiled.graph)
            items = {ITEM: self.item_ids} | ({} if self.titles is None else {TITLE: self.titles})
            pl.DataFrame(items).write_parquet(new / ITEMS)
            write_json(
                new / HEADER,
                {
                    "format": FORMAT,
                    "version": FORMAT_VERSION,
                    "host": self.model.host.config.as_dict(),
                    "editor": None if editor is None else editor.config.as_dict(),
                    "host_digest": self.host_digest,
                    "editor_digest": None if editor is None else digest_tensors(editor.state_dict()),
                    "items_digest": digest_json(items),
                    "compiled_digest": None if self.compiled is None else _sha256(self.compiled.graph),
                    "info": self.info,
                },
            )

    @classmethod
    def load(cls, folder: Path | str) -> Recommender:
        """Read what ``save`` wrote.

        Raises:
            DataError: there is no bundle in the folder.
            FormatError: the bundle is damaged, or of a version that this release cannot read.
            MismatchError: files of the folder belong to different bundles.
        """
        folder = Path(folder)
        header = _read_header(folder)
        host, config = _built(header, folder / HEADER)
        of_host = header["host_digest"]
        _load_state(host, folder / HOST, of_host, of_host)
        editor = None
        if config is not None:
            editor = ParameterEditor(config, host.adaptive.specs, host.adaptive.weight_scales(), of_host)
            _load_state(editor, folder / EDITOR, of_host, header["editor_digest"])
        items = _read_items(folder / ITEMS, header["items_digest"])
        recommender = cls(Personalised(host, editor), items[ITEM], items.get(TITLE), header["info"])
        if header["compiled_digest"] is not None:
            from recsys.compiled import CompiledModel

            graph = _read_graph(folder / COMPILED, header["compiled_digest"])
            recommender.compiled = CompiledModel(graph, host.config.max_length)
        return recommender

    def _ranked(self, scores: Tensor, k: int) -> list[Ranked]:
        top = scores.topk(min(k, len(self.item_ids)))
        return [
            Ranked(self.item_ids[i - 1], score, None if self.titles is None else self.titles[i - 1])
            for score, i in zip(top.values.tolist(), top.indices.tolist(), strict=True)
            if np.isfinite(score)
        ]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _read_graph(path: Path, digest: str) -> bytes:
    try:
        graph = path.read_bytes()
    except OSError as error:
        raise FormatError(f"{path} cannot be read ({error.strerror}): fetch the bundle again") from error
    if _sha256(graph) != digest:
        raise FormatError(f"{path} is damaged (its digest differs): fetch the bundle again")
    return graph


def _read_header(folder: Path) -> dict[str, Any]:
    path = folder / HEADER
    if not path.is_file():
        raise DataError(f"{folder} holds no bundle (no {HEADER}): run `persona recsys release` first")
    header = read_json(path)
    found = header if isinstance(header, dict) else {}
    if found.get("format") != FORMAT or found.get("version") != FORMAT_VERSION:
        raise FormatError(
            f"{folder} has format {found.get('format')!r} version {found.get('version')!r}, but {FORMAT!r} version "
            f"{FORMAT_VERSION} is needed: release the bundle again"
        )
    missing = {
        "host",
        "editor",
        "host_digest",
        "editor_digest",
        "items_digest",
        "compiled_digest",
        "info",
    } - found.keys()
    if missing:
        raise FormatError(f"{path} lacks {min(missing)!r}: release the bundle again")
    return found


def _built(header: Mapping[str, Any], path: Path) -> tuple[Host, EditorConfig | None]:
    """The host, yet without its parameters, and the settings of its editor."""
    try:
        host = make_host(HostConfig.from_dict(header["host"]))
        return host, None if header["editor"] is None else EditorConfig.from_dict(header["editor"])
    except (ConfigError, TypeError) as error:
        raise FormatError(f"{path} has settings that make no model ({error}): release the bundle again") from error


def _load_state(module: torch.nn.Module, path: Path, host: str, digest: str) -> None:
    """Fill ``module`` with the parameters of this ``digest``, which belong to the host with the digest ``host``."""
    tensors, header = load_tensors(path)
    if header.get("host") != host:
        raise MismatchError(f"{path} belongs to another host than the rest of its bundle: fetch the bundle again")
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise FormatError(f"{path} does not fit the settings of its bundle: fetch the bundle again") from error
    if digest_tensors(tensors) != digest:
        raise FormatError(f"{path} is damaged (its digest differs): fetch the bundle again")


def _read_items(path: Path, digest: str) -> dict[str, list[str]]:
    """Ids, and titles where there are any."""
    try:
        items = pl.read_parquet(path).to_dict(as_series=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise FormatError(f"{path} cannot be read: fetch the bundle again") from error
    if digest_json(items) != digest:
        raise FormatError(f"{path} is damaged, or of another bundle (its digest differs): fetch the bundle again")
    return items
