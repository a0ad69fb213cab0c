"""The ways to train an editor, and the choice among them by validation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic

from persona.methods import WHOLE, Method, ProblemT, TrainedT


@dataclass(frozen=True)
class Bracket:
    """Modes whose editors start alike, so that a few epochs tell them apart.

    Attributes:
        modes: of training, more than one to have anything to choose.
        epochs: of the first round.
    """

    modes: tuple[str, ...]
    epochs: int = 1


@dataclass(frozen=True)
class Modes(Generic[ProblemT, TrainedT]):
    """The ways to train an editor.

    Attributes:
        trainers: by name; the training of the mode ``m`` is called ``persona_m``.
        brackets: those that ``auto`` tries.
    """

    trainers: Mapping[str, Method[ProblemT, TrainedT]]
    brackets: Callable[[ProblemT], Sequence[Bracket]]

    def selected(self, problem: ProblemT) -> tuple[str, TrainedT]:
        """The mode of training that validation prefers, the first of equals, and what it trained.

        Successive halving: in each bracket all modes are trained for a few epochs, the better half goes on for twice as many, until
        one is left. Those that are left, one a bracket, are trained to their ends, and the best by ``problem.preference`` is taken. A
        training goes on from its checkpoint, so that no epoch is trained twice. A round looks at the first epochs of a training,
        even if more of them are there already, so that the choice is the same whatever was trained before.
        Source: Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization", AISTATS'16.
        """
        whole: dict[str, TrainedT] = {}
        left = [self._left(problem, bracket, whole) for bracket in self.brackets(problem)]
        trained = {mode: whole.get(mode) or self.trainers[mode](problem) for mode in left}
        best = max(trained, key=lambda mode: problem.preference(trained[mode].model))
        trained[best].chosen = {**trained[best].chosen, best: 1.0}
        return best, trained[best]

    def configured(self, problem: ProblemT) -> tuple[str, TrainedT]:
        """The mode of the settings, or the one that validation prefers where they say ``auto``, and what it trained."""
        mode = problem.config.mode
        return self.selected(problem) if mode == "auto" else (mode, self.trainers[mode](problem))

    def _left(self, problem: ProblemT, bracket: Bracket, whole: dict[str, TrainedT]) -> str:
        """The mode that is left of a bracket; what had to be trained to its end, for want of a folder, is put into ``whole``."""
        modes, epochs = list(bracket.modes), bracket.epochs
        while len(modes) > 1:
            value = {}
            for mode in modes:
                with problem.trainings.at_most(epochs, f"{WHOLE}_{mode}"):
                    trained = whole.get(mode) or self.trainers[mode](problem)
                if problem.trainings.root is None:
                    whole[mode] = trained
                value[mode] = max(row[problem.config.monitor] for row in trained.result.history[:epochs])
            modes = sorted(modes, key=lambda mode: -value[mode])[: (len(modes) + 1) // 2]
            epochs *= 2
        return modes[0]
