"""What adapts devices while a stream is replayed: each policy serves a window, then may learn from it for the next one.

    host               nothing changes
    edits              every device is edited from its context of the moment
    prototypes         the nearest prototype of the bank as it was released
    refined            the same, but after each window the bank follows that window's contexts; no labels, no gradients
    refined_checked    a refined version is taken only if it would have served the window's own events no worse than its
                       parent: this does use labels, those of past events
    finetune_adaptive  after each window the adaptive layers are tuned on its events, for everybody
    finetune_all       the same with every parameter of the host

Letters: B rows, K prototypes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from persona.methods import adaptive_bytes, all_bytes
from persona.prototypes import HeadMetric, PrototypeBank, RefineConfig, Server, UserStatistics, refine, same_prototypes
from persona.training.loop import fit
from recsys.config import RecsysConfig
from recsys.data.sequences import SequenceData
from recsys.evaluation import Evaluation, Scorer
from recsys.hosts import Host
from recsys.objectives import make_objective
from recsys.personalised import Personalised
from recsys.prototypes import ServedAtLevel
from recsys.replay.windows import Window

EPOCHS, PATIENCE = 5, 2
# A window holds few events: with the batches of the first training, an epoch would be a step or two.
BATCH = 128
# The last share of a window's events stops the fine-tuning on the others early.
VALIDATION = 0.2
PROTOTYPE_BYTES = 1


@dataclass
class Spent:
    """What a policy used in a window.

    Attributes:
        bytes_sent: to all devices together.
        editor_passes: contexts that the editor read.
        gradient_steps: of fine-tuning.
        serving_seconds: of the processor, scoring the window's candidates included.
        learning_seconds: of the processor, after the window.
    """

    bytes_sent: int = 0
    editor_passes: int = 0
    gradient_steps: int = 0
    serving_seconds: float = 0.0
    learning_seconds: float = 0.0


class Policy(ABC):
    """One way to keep devices up to date.

    Attributes:
        name: in results.
        scorer: what serves the present window.
        parent: what served the window before, where a version has taken its place; else None.
    """

    name: str
    scorer: Scorer
    parent: Scorer | None = None

    @abstractmethod
    def serve(self, window: Window) -> Spent:
        """What serving a window takes besides time."""

    def learn(self, window: Window) -> int:
        """Learn from a window that was served; returns the gradient steps it took."""
        return 0


class Frozen(Policy):
    """The host as it is."""

    name = "host"

    def __init__(self, host: Host) -> None:
        self.scorer = Personalised(host).eval()

    def serve(self, window: Window) -> Spent:
        """Nothing is sent."""
        return Spent()


class Edits(Policy):
    """A fresh edit with every request, in float32."""

    name = "edits"

    def __init__(self, model: Personalised) -> None:
        self.scorer, self.host = model, model.host

    def serve(self, window: Window) -> Spent:
        """A whole edit a row."""
        rows = len(window.positions)
        return Spent(bytes_sent=rows * adaptive_bytes(self.host), editor_passes=rows)


class Prototypes(Policy):
    """The nearest prototype of a bank that devices hold."""

    name = "prototypes"

    def __init__(self, model: Personalised, bank: PrototypeBank) -> None:
        assert model.editor is not None
        self.model, self.editor = model, model.editor
        self._read: tuple[Window, Tensor] | None = None
        self.use(bank)

    def use(self, bank: PrototypeBank) -> None:
        """Serve ``bank`` from now on."""
        self.bank, self.server = bank, Server(self.editor, bank)
        self.scorer = ServedAtLevel(self.model, self.server, "prototype")

    def serve(self, window: Window) -> Spent:
        """One byte a row."""
        rows = len(window.positions)
        return Spent(bytes_sent=rows * PROTOTYPE_BYTES, editor_passes=rows)

    def codes(self, window: Window) -> Tensor:
        """(E, L, d) codes of all contexts of a window; read once, for no bank changes them."""
        if self._read is None or self._read[0] is not window:
            self._read = window, self.model.codes(window.evaluation.contexts)
        return self._read[1]

    def unexplained(self, window: Window) -> float:
        """Share of the energy of the window's edits that its nearest prototypes miss: sum ||E - P||^2 / sum ||E||^2.

        Of an editor that changes nothing there is nothing to miss.
        """
        codes = self.codes(window)
        whole = float(self.server.energy(codes, "host")[1].sum())
        return float(self.server.energy(codes, "prototype")[1].sum()) / whole if whole > 0 else 0.0


class Refined(Prototypes):
    """Prototypes that follow the contexts of every window.

    Args:
        model: host and editor.
        bank: the first version.
        config: limits of a refinement.
        monitor: with it, a version is taken only if this metric of the window's own events, mean over users, is not below
            that of its parent.
    """

    def __init__(
        self, model: Personalised, bank: PrototypeBank, config: RefineConfig, monitor: str | None = None
    ) -> None:
        super().__init__(model, bank)
        self.name = "refined" if monitor is None else "refined_checked"
        self.config, self.monitor, self.versions = config, monitor, 0
        self.metric = HeadMetric(self.editor)

    def serve(self, window: Window) -> Spent:
        """One byte a row; and each user downloads the prototypes they use that are not those of the release."""
        spent = super().serve(window)
        if self.versions:
            used = self.server.assign(self.codes(window)).numpy()
            pairs = np.unique(np.column_stack([window.evaluation.users, used]), axis=0)
            spent.bytes_sent += len(pairs) * adaptive_bytes(self.model.host)
        return spent

    def learn(self, window: Window) -> int:
        """Refine the bank from the contexts of a window."""
        codes = self.codes(window)
        assigned = self.server.assign(codes)
        users = torch.from_numpy(window.evaluation.users)
        statistics = UserStatistics.collect(codes, users, assigned, len(self.bank))
        new = refine(self.bank, self.metric, statistics, self.config).bank
        old, self.parent = self.scorer, None
        if same_prototypes(new, self.bank) or not self._passes(new, window):
            return 0
        self.use(new)
        self.parent, self.versions = old, self.versions + 1
        return 0

    def _passes(self, new: PrototypeBank, window: Window) -> bool:
        if self.monitor is None:
            return True
        candidate = ServedAtLevel(self.model, Server(self.editor, new), "prototype")
        before, after = (window.run(scorer).per_user[self.monitor] for scorer in (self.scorer, candidate))
        return float((after - before).mean()) >= 0.0


class Finetuned(Policy):
    """A host that is tuned on every window, with the labels of its events, and sent to all users of the next one.

    Args:
        host: a copy of its own.
        whole: tune every parameter instead of the adaptive layers.
        data: the log.
        config: loss, batch size, learning rate.
    """

    def __init__(self, host: Host, whole: bool, data: SequenceData, config: RecsysConfig) -> None:
        self.name = "finetune_all" if whole else "finetune_adaptive"
        self.model, self.data, self.config = Personalised(host).eval(), data, config
        self.scorer: Scorer = self.model
        self.layers: Iterable[nn.Parameter] = list(host.parameters() if whole else host.adaptive_parameters())
        self.bytes = all_bytes(host) if whole else adaptive_bytes(host)
        self.tuned = False

    def serve(self, window: Window) -> Spent:
        """The tuned parameters to each user, once they differ from the release."""
        return Spent(bytes_sent=len(window.users) * self.bytes if self.tuned else 0)

    def learn(self, window: Window) -> int:
        """A few epochs, stopped early on the window's latest events."""
        order = window.positions[np.argsort(self.data.times[window.positions], kind="stable")]
        kept = math.ceil(len(order) * (1 - VALIDATION))
        rows, later = np.sort(order[:kept]), np.sort(order[kept:])
        if not len(later):
            return 0
        evaluation = Evaluation(
            self.data, later, max_length=self.model.host.config.max_length, seed=window.evaluation.seed
        )
        loss = self.config.loss_config()
        loss = replace(loss, batch_size=min(loss.batch_size, BATCH))
        objective = make_objective(self.model, self.data, rows, evaluation, loss, window.index)
        limits = replace(
            self.config.fit_config(self.config.learning_rate), epochs=EPOCHS, patience=PATIENCE, min_epochs=0
        )
        result = fit(self.model, self.layers, objective, limits, keep_start=True)
        self.tuned = self.tuned or result.best_epoch >= 0
        return result.epochs * math.ceil(len(rows) / loss.batch_size)
