"""What becomes a bundle: a trained model with its vocabulary and its prototype bank. Needs torch; answers do not.

    Release(model, item_ids, titles, info, bank).compile().save(folder)  ->  Recommender.load(folder)

What trains, refines or exports a released model reads it here; what answers is ``recsys.serving.recommender.Recommender``.

Shapes: B histories, V items, L layers, d code width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from torch import Tensor, nn

from persona import release
from persona.bundles import EDITOR, HOST
from persona.editor import EditorConfig, ParameterEditor
from persona.prototypes import PrototypeBank
from persona.storage import digest_json
from recsys.data.batches import Context
from recsys.hosts import HostConfig, make_host
from recsys.personalised import Personalised
from recsys.serving.bundle import HEADER_OF, ITEMS, Vocabulary, read_vocabulary
from recsys.serving.compile import compile_model, compile_tables
from recsys.serving.graphs import RANK, CompiledModel
from recsys.serving.recommender import Recommender


class Release(release.Release[Personalised]):
    """A trained recommender and all that a bundle says of it; ``info``, ``bank``, ``compiled`` and errors as in the base.

    Args:
        model: host and editor.
        item_ids: (V,) ids; item i is ``item_ids[i - 1]``.
        titles: (V,) titles, or ``None``.
    """

    bundle, needed = HEADER_OF, RANK

    def __init__(
        self,
        model: Personalised,
        item_ids: Sequence[str],
        titles: Sequence[str | None] | None = None,
        info: Mapping[str, Any] | None = None,
        bank: PrototypeBank | None = None,
        compiled: Mapping[str, bytes] | None = None,
    ) -> None:
        super().__init__(model, info, bank, compiled)
        self.vocabulary = Vocabulary(list(item_ids), None if titles is None else list(titles))

    @property
    def item_ids(self) -> list[str]:
        """(V,) ids; item i is ``item_ids[i - 1]``."""
        return self.vocabulary.ids

    @property
    def titles(self) -> list[str | None] | None:
        """(V,) titles, or ``None``."""
        return self.vocabulary.titles

    def compile(self, item_table: str = "") -> Release:
        """Make what answers are made with, which ``save`` keeps in the bundle; takes some seconds.

        Args:
            item_table: ``float32``, ``int8`` or ``int4`` keeps the items in tables beside the graphs, and ranks them in blocks;
                by default only large catalogues are, in float32 (see ``recsys.serving.compile.compile_model``).
        """
        self.compiled = compile_model(self.model, self.bank, item_table)
        return self

    def with_bank(self, bank: PrototypeBank) -> Release:
        """The same model with another bank. Graphs do not depend on banks, so they need not be compiled again."""
        assert self.model.editor is not None
        files = self.compiled if self.compiled is None else self.compiled | compile_tables(self.model.editor, bank)
        return Release(self.model, self.item_ids, self.titles, self.info, bank, files)

    def recommender(self) -> Recommender:
        """What answers from the bundle that ``save`` would write."""
        model = CompiledModel(self.compiled_files, self.model.host.config.max_length)
        return Recommender(model, self.vocabulary, self.host_digest, bool(self.info.get("seen")))

    def codes(self, context: Context) -> Tensor:
        """(B, L, d) editing codes, what ``server`` reads of every row.

        Raises:
            ConfigError: the bundle is the host alone.
        """
        return self.model.codes(context)

    def context_of(self, histories: Sequence[Sequence[Any]]) -> Context:
        """The model's view of histories of item ids, oldest first; unknown ids are skipped.

        Raises:
            DataError: a history is a text, whose letters would pass for ids.
        """
        return self.context([self.vocabulary.known(history)[0] for history in histories])

    def context(self, known: Sequence[Sequence[int]]) -> Context:
        """The model's view of item index histories: the last T of each."""
        return Context.from_lists(known, self.model.host.config.max_length)

    @staticmethod
    def _parts(model: Personalised) -> dict[str, nn.Module]:
        return {HOST: model.host} | ({} if model.editor is None else {EDITOR: model.editor})

    @staticmethod
    def _built(header: Mapping[str, Any]) -> Personalised:
        host = make_host(HostConfig.from_dict(header["host"]))
        if header["editor"] is None:
            return Personalised(host)
        config = EditorConfig.from_dict(header["editor"])
        return Personalised(host, ParameterEditor(config, host.adaptive.specs, host.adaptive.weight_scales()))

    def _entries(self, of_parts: Mapping[str, str]) -> dict[str, Any]:
        editor = self.model.editor
        return {
            "host": self.model.host.config.as_dict(),
            "editor": None if editor is None else editor.config.as_dict(),
            "host_digest": of_parts[HOST],
            "editor_digest": of_parts.get(EDITOR),
            "bank_version": None if self.bank is None else self.bank.version,
            "items_digest": digest_json(self.vocabulary.columns()),
        }

    @staticmethod
    def _digests(header: Mapping[str, Any]) -> dict[str, str]:
        return {HOST: header["host_digest"], EDITOR: header["editor_digest"]}

    def _save_more(self, new: Path) -> None:
        pl.DataFrame(self.vocabulary.columns()).write_parquet(new / ITEMS)

    @staticmethod
    def _own(folder: Path, header: Mapping[str, Any]) -> dict[str, Any]:
        items = read_vocabulary(folder, header["items_digest"])
        return {"item_ids": items.ids, "titles": items.titles}
