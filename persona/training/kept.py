"""The trainings of one problem: where each is kept, what was told of it, and the hosts that came of them.

A problem is data, settings and a seed, of any task. Work on the same data with the same settings has the same place, so that a
training that is done is taken from there, one that was interrupted goes on, and only what changed is trained again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from persona.comparison import Measured
from persona.storage import digest_json, write_json
from persona.training.execution import Execution
from persona.training.loop import MakeExecution, fit
from persona.training.objective import FitConfig, FitResult, Objective

OnEpoch = Callable[[str, dict[str, float]], None]
Net = TypeVar("Net", bound=nn.Module)


class Trainings:
    """Folders, listener and trained networks of one problem.

    Args:
        root: of the folders of all problems; without one nothing is kept.
        label: of the problem's folder, for people to read.
        owner: what all trainings of the problem depend on, as JSON values.
        editor: what those with an editor depend on as well.
        edited: how the names of those with an editor begin.
        on_epoch: called with the name of a training and the metrics of each of its epochs.

    Attributes:
        results: of the trainings of ``network``, by name.
    """

    def __init__(
        self,
        root: Path | None,
        label: str,
        owner: Mapping[str, Any],
        editor: Mapping[str, Any],
        edited: tuple[str, ...],
        on_epoch: OnEpoch | None,
    ) -> None:
        self.root, self.edited, self.on_epoch = root, edited, on_epoch
        self.results: dict[str, FitResult] = {}
        self._networks: dict[str, dict[str, Tensor]] = {}
        self._folders: tuple[Path, Path] | None = None
        self._bounds: dict[str, int] = {}
        if root is not None:
            whole = Path(root) / f"{label}-{digest_json(owner)[:8]}"
            self._folders = whole, whole / f"editor-{digest_json(editor)[:8]}"
            for folder, settings in zip(self._folders, (owner, editor), strict=True):
                write_json(folder / "settings.json", settings)

    def folder_of(self, name: str) -> Path | None:
        """Where the work of ``name`` is kept; what has an editor depends on the editor's settings, too."""
        return None if self._folders is None else self._folders[name.startswith(self.edited)]

    @contextmanager
    def at_most(self, epochs: int, name: str) -> Iterator[None]:
        """Within this block the training ``name`` stops after so many epochs, and goes on from there when it is asked for again.

        Without a folder to go on from it is trained to its end.
        """
        if self._folders is not None:
            self._bounds[name] = epochs
        try:
            yield
        finally:
            self._bounds.pop(name, None)

    def fit(
        self,
        name: str,
        module: nn.Module,
        parameters: Iterable[nn.Parameter],
        objective: Objective,
        config: FitConfig,
        *,
        keep_start: bool = False,
        about: Mapping[str, Any] | None = None,
        execution: MakeExecution = Execution,
    ) -> FitResult:
        """``persona.training.loop.fit`` in the folder of this training; what is in it already is taken from there."""
        on_epoch, folder = self.on_epoch, self.folder_of(name)
        epochs = min(config.epochs, self._bounds.get(name, config.epochs))
        return fit(
            module,
            parameters,
            objective,
            replace(config, epochs=epochs),
            folder=None if folder is None else folder / name,
            on_epoch=None if on_epoch is None else lambda metrics: on_epoch(name, metrics),
            keep_start=keep_start,
            about=None if folder is None else about,
            execution=execution,
        )

    def network(self, name: str, train: Callable[[], nn.Module], new: Callable[[], Net]) -> Net:
        """A copy for every caller of the network that ``train`` makes once: its parameters in a ``new`` one."""
        if name not in self._networks:
            self._networks[name] = {key: value.clone() for key, value in train().state_dict().items()}
        made = new()
        made.load_state_dict(self._networks[name])
        return made.eval()

    def measured(
        self,
        name: str,
        measure: Callable[[], Measured],
        depends: Mapping[str, Any] | None = None,
        needed: Collection[str] = (),
    ) -> Measured:
        """The result of ``name`` that is in its folder, or else what ``measure`` makes, which is kept there.

        ``depends`` are settings, as JSON values, that this result depends on besides those of the folder. A result of an earlier
        release that lacks one of the metrics ``needed`` is made again.
        """
        folder = self.folder_of(name)
        results = None if folder is None else folder / (f"results-{digest_json(depends)[:8]}" if depends else "results")
        if results is not None and Measured.exists(results, name):
            kept = Measured.load(results, name)
            if kept.summary.keys() >= set(needed):
                return kept
        found = measure()
        if results is not None:
            found.save(results)
        return found
