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
from torch import Tensor

from persona.bundles import digests, load_state, read_bank, read_compiled, write_compiled
from persona.editor import EditorConfig, ParameterEditor
from persona.errors import ConfigError, FormatError
from persona.prototypes import PrototypeBank, Server, save_bank
from persona.storage import atomic_folder, digest_json, digest_tensors, save_tensors, write_json
from recsys.data.batches import Context
from recsys.hosts import Host, HostConfig, make_host
from recsys.personalised import Personalised
from recsys.serving.bundle import (
    BANK,
    EDITOR,
    FORMAT,
    FORMAT_VERSION,
    HEADER,
    HEADER_OF,
    HOST,
    ITEMS,
    Vocabulary,
    read_vocabulary,
)
from recsys.serving.compile import compile_model, compile_tables
from recsys.serving.graphs import RANK, CompiledModel
from recsys.serving.recommender import Recommender


class Release:
    """A trained recommender and all that a bundle says of it.

    Args:
        model: host and editor.
        item_ids: (V,) ids; item i is ``item_ids[i - 1]``.
        titles: (V,) titles, or ``None``.
        info: what ``bundle.json`` tells about training: settings, metrics, data digest, lineage.
        bank: prototypes made with this host and editor.
        compiled: what ``compile`` made before, files by name.

    Attributes:
        server: serving levels of the bank, ``None`` without one: codes in, edits and messages to devices out.
        host_digest: what edits of this host carry.

    Raises:
        ConfigError: a bank without an editor.
        MismatchError: the bank was made with another host or editor.
    """

    def __init__(
        self,
        model: Personalised,
        item_ids: Sequence[str],
        titles: Sequence[str | None] | None = None,
        info: Mapping[str, Any] | None = None,
        bank: PrototypeBank | None = None,
        compiled: Mapping[str, bytes] | None = None,
    ) -> None:
        self.model = model.eval()
        self.vocabulary = Vocabulary(list(item_ids), None if titles is None else list(titles))
        self.info = dict(info or {})
        self.host_digest = model.host.digest()
        self.compiled = None if compiled is None else dict(compiled)
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

    @property
    def item_ids(self) -> list[str]:
        """(V,) ids; item i is ``item_ids[i - 1]``."""
        return self.vocabulary.ids

    @property
    def titles(self) -> list[str | None] | None:
        """(V,) titles, or ``None``."""
        return self.vocabulary.titles

    @property
    def compiled_files(self) -> dict[str, bytes]:
        """What answers are made with, files by name; compiled now if that was not done yet."""
        if self.compiled is None:
            self.compile()
        assert self.compiled is not None
        return self.compiled

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

    def save(self, folder: Path) -> None:
        """Write the bundle; the folder appears at once or not at all."""
        host, editor, of_host = self.model.host, self.model.editor, self.host_digest
        items = self.vocabulary.columns()
        header = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "host": host.config.as_dict(),
            "editor": None if editor is None else editor.config.as_dict(),
            "host_digest": of_host,
            "editor_digest": None if editor is None else digest_tensors(editor.state_dict()),
            "bank_version": None if self.bank is None else self.bank.version,
            "items_digest": digest_json(items),
            "compiled": None if self.compiled is None else digests(self.compiled),
            "info": self.info,
        }
        with atomic_folder(Path(folder)) as new:
            save_tensors(new / HOST, host.state_dict(), {"host": of_host})
            if editor is not None:
                save_tensors(new / EDITOR, editor.state_dict(), {"host": of_host})
            if self.bank is not None:
                save_bank(new / BANK, self.bank)
            if self.compiled is not None:
                write_compiled(new, self.compiled)
            pl.DataFrame(items).write_parquet(new / ITEMS)
            write_json(new / HEADER, header)

    @classmethod
    def load(cls, folder: Path | str) -> Release:
        """Read what ``save`` wrote.

        Raises:
            DataError: there is no bundle in the folder.
            FormatError: the bundle is damaged, or of a version that this release cannot read.
            MismatchError: files of the folder belong to different bundles.
        """
        folder = Path(folder)
        header = HEADER_OF.read(folder)
        host, config = _built(header, folder / HEADER)
        of_host = header["host_digest"]
        load_state(host, folder / HOST, of_host, of_host)
        editor = None
        if config is not None:
            editor = ParameterEditor(config, host.adaptive.specs, host.adaptive.weight_scales(), of_host)
            load_state(editor, folder / EDITOR, of_host, header["editor_digest"])
        items = read_vocabulary(folder, header["items_digest"])
        bank = read_bank(folder / BANK, of_host, header.get("bank_version"), edited=editor is not None)
        compiled = read_compiled(folder, header, RANK)
        return cls(Personalised(host, editor), items.ids, items.titles, header["info"], bank, compiled)


def _built(header: Mapping[str, Any], path: Path) -> tuple[Host, EditorConfig | None]:
    """The host, yet without its parameters, and the settings of its editor."""
    try:
        host = make_host(HostConfig.from_dict(header["host"]))
        return host, None if header["editor"] is None else EditorConfig.from_dict(header["editor"])
    except (ConfigError, TypeError) as error:
        raise FormatError(f"{path} has settings that make no model ({error}): release the bundle again") from error
