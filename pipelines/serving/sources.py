"""Where a service finds its model, and notices a newer one: a folder, or MLflow's registry."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from persona.errors import ConfigError, DataError

if TYPE_CHECKING:
    from mlflow import MlflowClient

SCHEME = "models:/"


class Source(Protocol):
    """Names the newest version, and brings it here."""

    name: str

    def newest(self) -> str:
        """The version that should be in use.

        Raises:
            DataError: it cannot be found out.
        """

    def fetch(self, version: str) -> Path:
        """The folder of that version's bundle.

        Raises:
            DataError: it cannot be fetched.
        """


class FolderSource:
    """A bundle in a folder; its version is a digest of its header, so that a bundle put in its place is noticed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name

    def newest(self) -> str:
        """First twelve digits of the header's SHA-256."""
        try:
            return hashlib.sha256((self.folder / "bundle.json").read_bytes()).hexdigest()[:12]
        except OSError as error:
            raise DataError(
                f"{self.folder} holds no bundle (no bundle.json): run `persona recsys release` first"
            ) from error

    def fetch(self, version: str) -> Path:
        """The folder itself."""
        return self.folder


class RegistrySource:
    """A registered model by alias or number: ``models:/persona-recsys-movielens-small@champion``; the alias is followed when it moves.

    Raises:
        ConfigError: the address names neither an alias nor a number.
    """

    def __init__(self, uri: str) -> None:
        rest = uri.removeprefix(SCHEME)
        self.name, at, self.alias = rest.partition("@")
        self.number = ""
        if not at:
            self.name, _, self.number = rest.partition("/")
        self._client: MlflowClient | None = None
        self._files: tempfile.TemporaryDirectory[str] | None = None
        self._fetched = ("", Path())
        if not self.name or not (self.alias or self.number.isdecimal()):
            raise ConfigError(f"{uri!r} names no version of a model: give models:/NAME@ALIAS or models:/NAME/NUMBER")

    def newest(self) -> str:
        """The number that the alias stands for now."""
        if self.number:
            return self.number
        from mlflow.exceptions import MlflowException

        try:
            return str(self._store().get_model_version_by_alias(self.name, self.alias).version)
        except MlflowException as error:
            reason = str(error).partition("\n")[0]
            raise DataError(f"the alias {self.alias!r} of {self.name} cannot be looked up ({reason})") from error

    def fetch(self, version: str) -> Path:
        """Download that version's files."""
        from pipelines.tracking.registry import download

        self._store()
        if self._fetched[0] == version:
            return self._fetched[1]
        # What is loaded is held in memory, so the files of the version before are of no more use.
        self._files = tempfile.TemporaryDirectory(prefix="persona-")
        self._fetched = version, download(f"{SCHEME}{self.name}/{version}", Path(self._files.name))
        return self._fetched[1]

    def _store(self) -> MlflowClient:
        """A client of the store in use, which is opened once."""
        if self._client is None:
            from pipelines import tracking

            self._client = tracking.client()
        return self._client


def source_of(model: str) -> Source:
    """The source that ``model`` names: an address that begins with ``models:/``, or a folder."""
    return RegistrySource(model) if model.startswith(SCHEME) else FolderSource(Path(model))
