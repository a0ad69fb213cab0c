"""The folder that a recommender is kept in: all a server needs, and nothing that has to be unpickled.

    bundle.json             format, settings, digests, metrics, lineage
    host.safetensors        the host's parameters
    editor.safetensors      the editor's parameters (absent if the bundle is the host alone)
    bank/                   the prototype bank (see ``persona.prototypes``; absent if there is none)
    items.parquet           the vocabulary: item i is row i - 1, with its title where there is one
    compiled/               what a service runs (see ``recsys.serving.compile``; absent if it was not compiled)

Version 1 of the format, which had no bank, is read as well.

Shapes: V items.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from persona.bundles import BundleFormat, load_state, read_bank
from persona.editor import EditorConfig, ParameterEditor
from persona.errors import ConfigError, FormatError
from persona.prototypes import PrototypeBank, save_bank
from persona.storage import atomic_folder, digest_json, digest_tensors, save_tensors, write_json
from recsys.data.columns import ITEM, TITLE
from recsys.hosts import Host, HostConfig, make_host
from recsys.personalised import Personalised
from recsys.serving.answers import FOLDER, HEADER, ITEMS, digests, read_files, read_items

FORMAT = "persona-recsys-bundle"
FORMAT_VERSION = 2

HOST, EDITOR, BANK = "host.safetensors", "editor.safetensors", "bank"

_ENTRIES = ("host", "editor", "host_digest", "editor_digest", "items_digest", "info")
HEADER_OF = BundleFormat(
    FORMAT, HEADER, {1: _ENTRIES, FORMAT_VERSION: (*_ENTRIES, "bank_version")}, "run `persona recsys release` first"
)


@dataclass(frozen=True)
class Bundle:
    """What the folder holds.

    Attributes:
        model: host and editor.
        item_ids: (V,) ids; item i is ``item_ids[i - 1]``.
        titles: (V,) titles, or ``None``.
        info: what is told about training: settings, metrics, data digest, lineage.
        bank: prototypes of this host and editor.
        compiled: what a service runs, files by name.
    """

    model: Personalised
    item_ids: list[str]
    titles: list[str | None] | None
    info: dict[str, Any]
    bank: PrototypeBank | None = None
    compiled: dict[str, bytes] | None = None

    def write(self, folder: Path) -> None:
        """Write the folder, which appears at once or not at all."""
        host, editor = self.model.host, self.model.editor
        of_host = host.digest()
        items = {ITEM: self.item_ids} | ({} if self.titles is None else {TITLE: self.titles})
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
                (new / FOLDER).mkdir()
                for name, data in self.compiled.items():
                    (new / FOLDER / name).write_bytes(data)
            pl.DataFrame(items).write_parquet(new / ITEMS)
            write_json(new / HEADER, header)

    @classmethod
    def read(cls, folder: Path | str) -> Bundle:
        """Read what ``write`` wrote.

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
        items = read_items(folder / ITEMS, header["items_digest"])
        return cls(
            Personalised(host, editor),
            items[ITEM],
            items.get(TITLE),
            header["info"],
            read_bank(folder / BANK, of_host, header.get("bank_version"), edited=editor is not None),
            read_files(folder, header),
        )


def _built(header: Mapping[str, Any], path: Path) -> tuple[Host, EditorConfig | None]:
    """The host, yet without its parameters, and the settings of its editor."""
    try:
        host = make_host(HostConfig.from_dict(header["host"]))
        return host, None if header["editor"] is None else EditorConfig.from_dict(header["editor"])
    except (ConfigError, TypeError) as error:
        raise FormatError(f"{path} has settings that make no model ({error}): release the bundle again") from error
