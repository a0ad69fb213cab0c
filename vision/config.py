"""Every setting of a vision experiment in one flat, typed record: what a run logs and what makes it repeatable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from persona.errors import ConfigError, check_each, check_known
from persona.settings import EDITOR_SHAPE, Settings

if TYPE_CHECKING:  # the command line reads the settings without waiting for torch
    from persona.training.objective import FitConfig
    from vision.data.protocols import SplitConfig
    from vision.hosts import HostConfig
    from vision.objectives import LossConfig

MODES = ("auto", "held_back", "cross_fitted", "tuned", "gated", "joint", "frozen")
LEARNS = ("all", "classifier")
# Larger has to be better, so logloss and ece are none of them.
MONITORS = ("accuracy", "accuracy_worst", "accuracy_pooled")
# What a host does not depend on: it is shared between settings that differ here.
EDITOR_SETTINGS = (
    "adaptive",
    "context",
    "devices_per_batch",
    "steps_per_epoch",
    "editor_epochs",
    "editor_patience",
    "editor_learning_rate",
    "edit_dropout",
    *EDITOR_SHAPE,
    "shifts",
    "prototypes",
)


@dataclass(frozen=True)
class VisionConfig(Settings):
    """Settings of one split, host and seed; those of the editor's form are described in the base.

    Attributes:
        host_groups: populations that the host learns from, separated by commas; empty for all.
        test_groups: populations that it is deployed on; empty for all.
        adapt_groups: populations of the devices that the editor learns from; empty takes ``test_groups``.
        adapt_share: share of devices that the editor learns from, where the host wants them as well.
        validation_share: share of devices that validate.
        test_share: share of devices that test, where the source reserves none.
        host: ``mobilenet_v3_small``, ``mobilenet_v3_large``, ``resnet18``, ``shufflenet_v2``, ``compact`` or
            ``efficientnet_lite0``.
        weights: a file of weights that the host starts from, ``torchvision``, or ``package``; empty for fresh ones.
        learns: what of a host learns: ``all`` of it, or the ``classifier`` on the features of given weights.
        seed: of the split, of initialisation and of the order of images.
        context_images: n, unlabelled images that a method is given at most.
        step: images that arrive between two predictions, at most n.
        batch_size: images a step of the host's training.
        monitor: validation metric that selects epochs and choices; larger is better.
        epochs: at most this many for a host.
        patience: epochs without a better validation value before training stops.
        min_epochs: patience is not counted before.
        learning_rate: of Adam, for hosts.
        weight_decay: decoupled.
        mode: which devices the editor learns from, and over which host: ``held_back``, ``cross_fitted``, ``tuned`` (over adaptive
            layers that were fine-tuned for everybody), ``gated`` (the same, and validation chooses how much of an edit is
            applied), ``joint`` or ``frozen``; ``auto`` tries those that validation can tell apart and takes the best.
        adaptive: what an edit changes: ``classifier``, ``norms`` or ``all``.
        context: what the editor reads: ``images``, ``pooled``, ``features``, ``beliefs`` or ``classes``.
        devices_per_batch: windows a step of the editor's training.
        steps_per_epoch: steps of an epoch of the editor.
        editor_epochs: at most this many for an editor, and for whatever else learns from its devices alone.
        editor_patience: likewise, as ``patience``.
        editor_learning_rate: of Adam, for editors.
        edit_dropout: share of windows trained without an edit in mode ``joint``.
        shifts: copies of the editor's devices under simulated photometric shifts that it learns from as well.
        prototypes: K, at most.
        validation_devices: at most this many devices validate an epoch.
        device: where torch computes, ``auto``, ``cpu``, ``cuda`` or ``cuda:1``; ``auto`` is a graphics card where there is one.
        precision: of the products in training steps, ``float32`` or ``bf16``, which is faster on a graphics card.

    Raises:
        ConfigError: a setting is unknown, out of range, or contradicts another one.
    """

    editor_names: ClassVar[tuple[str, ...]] = EDITOR_SETTINGS

    host_groups: str = ""
    test_groups: str = ""
    adapt_groups: str = ""
    adapt_share: float = 0.3
    validation_share: float = 0.1
    test_share: float = 0.2
    host: str = "mobilenet_v3_small"
    weights: str = ""
    learns: str = "all"
    seed: int = 0
    context_images: int = 20
    step: int = 20
    batch_size: int = 128
    monitor: str = "accuracy"
    epochs: int = 30
    patience: int = 3
    min_epochs: int = 0
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    mode: str = "auto"
    adaptive: str = "all"
    context: str = "pooled"
    devices_per_batch: int = 16
    steps_per_epoch: int = 50
    editor_epochs: int = 40
    editor_patience: int = 5
    editor_learning_rate: float = 1e-3
    edit_dropout: float = 0.5
    transfer: str = "none"
    head: str = "low_rank"
    rank: int = 8
    bound: str = "frobenius"
    tau: float = 1.0
    width: int = 32
    shifts: int = 0
    prototypes: int = 16
    validation_devices: int = 60
    device: str = "auto"
    precision: str = "float32"

    def __post_init__(self) -> None:
        from vision.contexts import CONTEXTS

        self.check_types()
        self.check_device()
        kinds = (("mode", MODES), ("context", CONTEXTS), ("monitor", MONITORS), ("learns", LEARNS))
        for name, known in kinds:
            check_known(name, getattr(self, name), known)
        if self.learns == "classifier" and not self.weights:
            raise ConfigError("only the classifier of the host learns, but no weights are given: give --weights")
        if not 0 < self.edit_dropout < 1:
            raise ConfigError(f"edit_dropout is {self.edit_dropout}, but it is a share between 0 and 1")
        check_each(self, ("prototypes", "validation_devices"), 1)
        if self.shifts < 0 or (self.shifts and self.adaptive != "classifier"):
            raise ConfigError(
                f"shifts is {self.shifts} and adaptive {self.adaptive}, but simulated shifts are counted from 0 up and are made "
                "where edits change the classifier alone: give --adaptive classifier"
            )
        if not 1 <= self.step <= self.context_images:
            raise ConfigError(
                f"step is {self.step} images and context_images {self.context_images}, but it takes "
                "1 <= step <= context_images"
            )
        # The parts check themselves; here they are built once, so that a wrong setting is named before any work.
        self.split_config()
        self.host_config(n_classes=2, image_shape=(1, 32, 32))
        self.editor_config(context_dim=1)
        self.host_fit()
        self.editor_fit()
        self.loss_config()

    @property
    def protocol(self) -> str:
        """There is one: streams of devices that nobody has learned from."""
        from vision.data.protocols import PROTOCOL

        return PROTOCOL

    def epochs_of(self, training: str) -> int:
        """At most how many epochs the training of this name takes; editors have epochs of their own."""
        return self.editor_epochs if training.startswith("persona") else self.epochs

    def split_config(self) -> SplitConfig:
        """Which devices train, adapt, validate and test."""
        from vision.data.protocols import SplitConfig

        return SplitConfig(
            host_groups=_names(self.host_groups),
            test_groups=_names(self.test_groups),
            adapt_groups=_names(self.adapt_groups),
            adapt=self.adapt_share,
            validation=self.validation_share,
            test=self.test_share,
            seed=self.seed,
        )

    def host_config(self, n_classes: int, image_shape: tuple[int, int, int]) -> HostConfig:
        """The host's settings for images (C, H, W)."""
        from vision.hosts import HostConfig

        channels, height, width = image_shape
        return HostConfig(self.host, n_classes, channels, max(height, width), self.adaptive)

    def host_fit(self) -> FitConfig:
        """The training loop's settings for hosts."""
        return self._fit(self.epochs, self.patience, self.learning_rate)

    def editor_fit(self) -> FitConfig:
        """The training loop's settings for editors."""
        return self._fit(self.editor_epochs, self.editor_patience, self.editor_learning_rate)

    def loss_config(self) -> LossConfig:
        """The objective's settings."""
        from vision.objectives import LossConfig

        return LossConfig(
            self.batch_size, self.devices_per_batch, self.context_images, self.steps_per_epoch, self.monitor
        )

    def _fit(self, epochs: int, patience: int, learning_rate: float) -> FitConfig:
        from persona.training.objective import FitConfig

        return FitConfig(
            epochs=epochs,
            patience=patience,
            min_epochs=self.min_epochs,
            learning_rate=learning_rate,
            weight_decay=self.weight_decay,
            seed=self.seed,
            precision=self.precision,
        )


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())
