"""What the releases of all tasks share: a trained model with its prototype bank and its compiled form, and how it becomes a bundle."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

from torch import nn

from persona.bundles import BANK, HOST, BundleFormat, digests, load_state, read_bank, read_compiled, write_compiled
from persona.errors import ConfigError, FormatError
from persona.prototypes import PrototypeBank, Server, save_bank
from persona.storage import atomic_folder, digest_tensors, save_tensors, write_json

ModelT = TypeVar("ModelT", bound=Any)


class Release(ABC, Generic[ModelT]):
    """A trained model and all that a bundle says of it.

    Args:
        model: host and editor.
        info: what the header tells about training: settings, metrics, data digest, lineage.
        bank: prototypes made with this host and editor.
        compiled: what ``compile`` made before, files by name.

    Attributes:
        bundle: how the header is recognised.
        needed: the compiled file that every bundle has.
        server: serving levels of the bank, ``None`` without one: codes in, edits and messages to devices out.
        host_digest: what edits of this host carry.

    Raises:
        ConfigError: a bank without an editor.
        MismatchError: the bank was made with another host or editor.
    """

    bundle: ClassVar[BundleFormat]
    needed: ClassVar[str]

    def __init__(
        self,
        model: ModelT,
        info: Mapping[str, Any] | None = None,
        bank: PrototypeBank | None = None,
        compiled: Mapping[str, bytes] | None = None,
    ) -> None:
        self.model: ModelT = model.eval()
        self.info = dict(info or {})
        self.host_digest: str = model.host.digest()
        self.compiled = None if compiled is None else dict(compiled)
        self.server: Server | None = None
        if model.editor is not None:
            model.editor.host = self.host_digest
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
    def compiled_files(self) -> dict[str, bytes]:
        """What answers are made with, files by name; compiled now if that was not done yet."""
        if self.compiled is None:
            self.compile()
        assert self.compiled is not None
        return self.compiled

    @abstractmethod
    def compile(self) -> Self:
        """Make what answers are made with, which ``save`` keeps in the bundle; takes some seconds."""

    def save(self, folder: Path) -> None:
        """Write the bundle; the folder appears at once or not at all."""
        parts = self._parts(self.model)
        header = {
            "format": self.bundle.name,
            "version": max(self.bundle.entries),
            **self._entries({name: digest_tensors(part.state_dict()) for name, part in parts.items()}),
            "compiled": None if self.compiled is None else digests(self.compiled),
            "info": self.info,
        }
        with atomic_folder(Path(folder)) as new:
            for name, part in parts.items():
                save_tensors(new / name, part.state_dict(), {"host": self.host_digest})
            if self.bank is not None:
                save_bank(new / BANK, self.bank)
            if self.compiled is not None:
                write_compiled(new, self.compiled)
            self._save_more(new)
            write_json(new / self.bundle.header, header)

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Read what ``save`` wrote.

        Raises:
            DataError: there is no bundle in the folder.
            FormatError: the bundle is damaged, or of a version that this release cannot read.
            MismatchError: files of the folder belong to different bundles.
        """
        folder = Path(folder)
        header = cls.bundle.read(folder)
        try:
            model = cls._built(header)
        except (ConfigError, TypeError, AttributeError) as error:
            problem = f"{folder / cls.bundle.header} has settings that make no model ({error})"
            raise FormatError(f"{problem}: release the bundle again") from error
        of_parts = cls._digests(header)
        for name, part in cls._parts(model).items():
            load_state(part, folder / name, of_parts[HOST], of_parts.get(name, ""))
        edited = model.editor is not None
        bank = read_bank(folder / BANK, of_parts[HOST], header.get("bank_version"), edited=edited)
        compiled = read_compiled(folder, header, cls.needed)
        return cls(model, **cls._own(folder, header), info=header["info"], bank=bank, compiled=compiled)

    @staticmethod
    @abstractmethod
    def _parts(model: ModelT) -> dict[str, nn.Module]:
        """What a file of its own is kept of, by the file's name."""

    @staticmethod
    @abstractmethod
    def _built(header: Mapping[str, Any]) -> ModelT:
        """The model of a header, yet without its parameters."""

    @abstractmethod
    def _entries(self, of_parts: Mapping[str, str]) -> dict[str, Any]:
        """What the header holds of this model, given the digests of its parts."""

    @staticmethod
    @abstractmethod
    def _digests(header: Mapping[str, Any]) -> Mapping[str, str]:
        """The digests of the parts, by file, of a header."""

    def _save_more(self, new: Path) -> None:
        """Write what only bundles of this task have."""

    @staticmethod
    @abstractmethod
    def _own(folder: Path, header: Mapping[str, Any]) -> dict[str, Any]:
        """What only releases of this task are made from."""
