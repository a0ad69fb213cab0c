"""The version in use, and its exchange for a newer one while requests are answered.

A newer version is loaded and checked beside the one in use, then takes its place between two batches. A version that cannot be
loaded or does not answer sensibly is never used: the service goes on with what it has, says so once, and tries again at the
next look, for files may have been on their way.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from persona.errors import FormatError, MismatchError, PersonaError
from pipelines.serving.errors import unavailable
from pipelines.serving.servable import Servable, Task
from pipelines.serving.sources import FolderSource, Source

log = logging.getLogger("persona.serving")
REMEMBERED = 8


class Models:
    """Holds the model in use.

    Args:
        task: what kind of bundles these are.
        source: of versions.
        observe: told "loaded" or "refused" for every version that was tried.
    """

    def __init__(self, task: Task, source: Source, observe: Callable[[str], None] = lambda outcome: None) -> None:
        self.task, self.source, self.observe = task, source, observe
        self.refused = ""
        self._current: Servable | None = None
        self._version = ""
        self._lock = threading.Lock()
        self._banks: OrderedDict[str, dict[str, Any]] = OrderedDict()

    @property
    def loaded(self) -> bool:
        """Whether there is a model."""
        return self._current is not None

    def current(self) -> Servable:
        """The model in use.

        Raises:
            Refusal: there is none.
        """
        if self._current is None:
            raise unavailable("no model is loaded yet: ask again later")
        return self._current

    def refresh(self) -> bool:
        """Take up the newest version if it is not in use; True if it was exchanged. Loads in the calling thread.

        Raises:
            PersonaError: there is no model yet, and the newest one cannot be used.
        """
        with self._lock:
            try:
                version = self.source.newest()
                if version == self._version:
                    return False
                model = self._load(version)
            except PersonaError as error:
                self._refuse(error)
                return False
            self._version, self.refused, self._current = version, "", model
            self._remember(model)
            self.observe("loaded")
            log.info("version %s of %s is in use", model.versions.version, model.versions.name)
            return True

    async def follow(self, seconds: float) -> None:
        """Refresh every so many seconds, for ever; what fails is logged, and tried again."""
        while True:
            await asyncio.sleep(seconds)
            try:
                await asyncio.get_running_loop().run_in_executor(None, self.refresh)
            except Exception as error:  # whatever it is, the model in use goes on answering
                log.error("looking for a newer version failed: %s", type(error).__name__)

    def bank(self, version: str | None = None) -> dict[str, Any] | None:
        """What is told of the bank in use, or of one of the last versions of it."""
        if version is None:
            return self.current().prototypes()
        return next((told for name, told in self._banks.items() if name.startswith(version)), None)

    def _load(self, version: str) -> Servable:
        try:
            folder = self.source.fetch(version)
            model = self.task.load(folder, self.source.name, version)
            model.check()
        except PersonaError:
            raise
        except Exception as error:  # a damaged file may break any library that reads it
            raise FormatError(
                f"version {version} of {self.source.name} cannot be loaded ({type(error).__name__}): release it again"
            ) from error
        if isinstance(self.source, FolderSource) and self.source.newest() != version:
            # The folder was exchanged while it was read; its files may be of two bundles.
            raise MismatchError(f"{self.source.folder} was exchanged while it was read: it is read again")
        return model

    def _refuse(self, error: PersonaError) -> None:
        self.observe("refused")
        if self._current is None:
            raise error
        if str(error) != self.refused:
            log.error("a newer version is not used: %s", error)
        self.refused = str(error)

    def _remember(self, model: Servable) -> None:
        told = model.prototypes()
        if told is None:
            return
        self._banks[model.versions.bank] = told
        self._banks.move_to_end(model.versions.bank)
        while len(self._banks) > REMEMBERED:
            self._banks.popitem(last=False)
