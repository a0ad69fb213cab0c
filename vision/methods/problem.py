"""What every method of a comparison of classifiers is given, and what it returns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from persona import methods
from persona.comparison import Measured
from persona.edits import Edit, FactoredEdit
from persona.methods import FLOAT_BYTES
from persona.prototypes import BankConfig
from persona.torch_device import resolve
from persona.training.kept import OnEpoch
from persona.training.objective import FitConfig, FitResult, Objective
from vision.config import VisionConfig
from vision.contexts import ContextReader
from vision.data.images import DeviceImages
from vision.data.protocols import Split, make_split
from vision.data.shifts import ShiftedImages
from vision.evaluation import Classifier, Evaluated, Evaluation
from vision.features import FeatureCache, all_features, body_digest, window_features
from vision.hosts import Host, make_host
from vision.objectives import DeviceObjective, ImageObjective, Mixture, batched_logits
from vision.personalised import Personalised, make_editor

# Images whose features give a context reader its scale.
READER_IMAGES = 4000
# The settings of editors say which layers are adaptive.
EDITED = ("persona", "duet", "finetune_adaptive", "finetune_interpolated", "finetune_device")

Devices = NDArray[np.int64]


@dataclass
class Trained(methods.Trained[Classifier]):
    """A method, ready to be evaluated.

    Attributes:
        forward_passes: passes of the host through an image before it is classified.
        backward_passes: likewise, backwards.
        seconds: wall time of its own training.
        keeps_body: whether it classifies, or reads as its context, the features of the shared host.
    """

    forward_passes: float = 1.0
    backward_passes: float = 0.0
    seconds: float = 0.0
    keeps_body: bool = False

    @property
    def classifier(self) -> Classifier:
        """What classifies the windows of streams."""
        return self.model


class Problem(methods.Problem[DeviceImages, VisionConfig, Evaluation]):
    """One split, host and seed on one data set: devices, evaluations, and the host that methods share.

    Args:
        data: the images.
        config: all settings.
        folder: as in ``persona.methods.Problem``.
        on_epoch: likewise.

    Attributes:
        deployed: names of the populations that the host is deployed on; known before any of their devices is.

    Raises:
        ConfigError: a graphics card is asked for that cannot be used.
    """

    edited = EDITED
    banked = ("persona_prototypes", "persona_refined", "persona_basis", methods.WHOLE)
    rules: ClassVar[Mapping[str, str]] = {
        "finetune_all": "everything",
        "persona_gated": "by intervals",
        methods.WHOLE: "by intervals",
    }

    def __init__(
        self, data: DeviceImages, config: VisionConfig, *, folder: Path | None = None, on_epoch: OnEpoch | None = None
    ) -> None:
        self.split: Split = make_split(data, config.split_config())
        super().__init__(data, config, folder=folder, on_epoch=on_epoch)
        self.device = resolve(config.device)
        self.deployed = frozenset(data.groups[d] for d in self.split.test)
        self._caches: dict[str, FeatureCache] = {}

    @cached_property
    def validation(self) -> Evaluation:
        """Devices that select epochs and settings."""
        return self.evaluation(self.split.validation, self.config.validation_devices)

    def score(self, model: Personalised, evaluation: Evaluation | None = None) -> float:
        """The metric that selects, of ``model`` on the validation devices or others."""
        return self._judgement(model, evaluation).summary[self.config.monitor]

    def selecting(self, model: Personalised, evaluation: Evaluation | None = None) -> NDArray[np.float64]:
        """The metric that selects, of every device; accuracy where it is none of devices."""
        found = self._judgement(model, evaluation).per_device
        return found.get(self.config.monitor, found["accuracy"])

    def judged(self, model: Personalised) -> dict[str, NDArray[np.float64]]:
        """As in ``persona.methods.Problem``: accuracy by device."""
        return {"accuracy": self._judgement(model).per_device["accuracy"]}

    def _judgement(self, model: Personalised, evaluation: Evaluation | None = None) -> Evaluated:
        """``model`` on the validation devices or others; features that no edit changes are computed once a body."""
        judges = evaluation or self.validation
        known = self.features_of(model.host) if model.host.shared_features else None
        with torch.no_grad():
            positions, logits = batched_logits(model.eval(), judges, known)
        return judges.judge(logits, positions)

    def tested(self, trained: Trained) -> Measured:
        """Metrics on the test devices, with ``forward_passes`` and ``backward_passes`` an image and ``ms_per_image``.

        Where the body is given, features are computed once for all methods that keep it, in tests as well, and these are not
        timed.
        """
        known = self.given_body and trained.keeps_body
        evaluated = (self.test.cached(self.features) if known else self.test).run(trained.classifier)
        cost = {"forward_passes": trained.forward_passes, "backward_passes": trained.backward_passes}
        return Measured(
            method="",
            summary=evaluated.summary | cost,
            per_unit=evaluated.per_device,
            units=evaluated.devices,
            seconds=trained.seconds,
        )

    @property
    def bank_config(self) -> BankConfig:
        """How the banks of methods are made: of as many prototypes as the settings allow at most."""
        return BankConfig(max_k=self.config.prototypes)

    def _make_test(self) -> Evaluation:
        return self.evaluation(self.split.test)

    @property
    def given_body(self) -> bool:
        """Whether the body is that of the given weights, and only the classifier learns."""
        return self.config.learns == "classifier"

    @cached_property
    def features(self) -> FeatureCache:
        """Features of all images by the shared host, or by the given body, without an edit."""
        return self.features_of(self.new_host().eval() if self.given_body else self.base_host())

    def features_of(self, host: Host, copy: int = 0) -> FeatureCache:
        """Features of all images, or of a shifted ``copy`` of them, by a host whose body is fixed; computed once a body."""
        key = f"{body_digest(host)}-{copy}"
        if key not in self._caches:
            images, variant = (ShiftedImages(self.data, copy), f"shift-{copy}") if copy else (None, "")
            self._caches[key] = all_features(host, self.data, self.trainings.root, images, variant)
        return self._caches[key]

    def features_under(self, prior: float) -> FeatureCache:
        """Features of all images by the shared host, each normalised by its window's statistics; computed once a prior."""
        host = self.base_host()
        key = f"{body_digest(host)}-prior-{prior}"
        if key not in self._caches:
            everyone = self.evaluation(np.arange(self.data.n_devices))
            windows = (window for device in everyone.devices.tolist() for window in everyone.windows(device))
            self._caches[key] = window_features(host, self.data, windows, prior, self.trainings.root)
        return self._caches[key]

    @property
    def everything(self) -> Devices:
        """All devices that a method may learn from."""
        return np.sort(np.concatenate([self.split.train, self.split.adapt]))

    @property
    def window_passes(self) -> float:
        """How often an image is passed through the host by a method that reads whole windows."""
        return self.config.context_images / self.config.step

    def new_host(self, adaptive: str | None = None) -> Host:
        """An untrained host, or one with the given weights; the same one each time."""
        torch.manual_seed(self.config.seed)
        config = self.config.host_config(self.data.n_classes, self.data.image_shape)
        config = replace(config, adaptive=adaptive or config.adaptive)
        return make_host(config, self.config.weights or None).to(self.device)

    def base_host(self, adaptive: str | None = None) -> Host:
        """The host trained on the split's training devices, a copy for every caller.

        Devices have it before anybody knows theirs, so it is never selected on a population that it has not learned from.
        """
        validation = self.evaluation(self._host_validation, self.config.validation_devices)
        devices = np.setdiff1d(self.split.train, self._host_validation)
        return self.trained_host("host", devices, validation, adaptive=adaptive)

    @cached_property
    def _host_validation(self) -> Devices:
        """Validation devices of the populations that the host learns from; where there are none, some of its own devices."""
        groups = np.array(self.data.groups)
        known = np.isin(groups[self.split.validation], groups[self.split.train])
        if known.any() or len(self.split.train) < 2:
            return self.split.validation[known]
        count = max(1, round(self.config.validation_share * len(self.split.train)))
        rng = np.random.default_rng([self.config.seed, 67])
        return np.sort(rng.choice(self.split.train, count, replace=False))

    def owner(self) -> dict[str, Any]:
        """As in ``persona.methods.Problem``; and on what the host is selected, where that is not simply what validates."""
        own = not np.array_equal(self._host_validation, self.split.validation)
        return {**super().owner(), **({"host_validation": "own populations"} if own else {})}

    def trained_host(
        self, name: str, devices: Devices, validation: Evaluation | None = None, *, adaptive: str | None = None
    ) -> Host:
        """A host trained on some devices, a copy for every caller; ``validation`` is the problem's by default."""

        def train() -> Host:
            model = Personalised(self.new_host(), fixed_body=self.given_body)
            learned = model.host.head.parameters() if self.given_body else model.parameters()
            self.trainings.results[name] = self.train(name, model, learned, devices, validation=validation)
            return model.host

        return self.trainings.network(name, train, partial(self.new_host, adaptive))

    def personalise(
        self, host: Host, known: Devices | None = None, *, generate: bool = False, **options: Any
    ) -> Personalised:
        """``host`` with an untrained editor; ``generate`` means no bound, no zero start, no transfer.

        Args:
            host: one with a trained body, whose features give the reader its scale; for DUET a fresh one.
            known: the devices that the host has learned from; those of the split by default.
            generate: for DUET.
            **options: of ``Personalised``.
        """
        reader = ContextReader(self.config.context, host)
        positions = self.data.positions_of(self.split.train if known is None else known)
        if len(positions) > READER_IMAGES:
            positions = np.random.default_rng([self.config.seed, 43]).choice(positions, READER_IMAGES, replace=False)
        fresh = generate and not self.given_body
        cache = FeatureCache(host.eval(), self.data, positions) if fresh else self.features_of(host.eval())
        features = cache[positions]
        reader.fit(features, self.data.label_tensor(positions))
        config = self.config.editor_config(reader.dim)
        if generate:
            config = replace(config, bound="none", zero_start=False, transfer="none")
        torch.manual_seed(self.config.seed + 1)
        return Personalised(host, reader, make_editor(host, config), **options)

    def train(
        self,
        name: str,
        model: Personalised,
        parameters: Iterable[nn.Parameter],
        devices: Devices,
        *,
        keep_start: bool = False,
        fit_config: FitConfig | None = None,
        validation: Evaluation | None = None,
    ) -> FitResult:
        """Train ``parameters`` of ``model`` on ``devices``; a training that is already in the folder is taken from there."""
        plain = self.objective(model, devices, validation)
        objective: Objective = plain
        if self.config.shifts and name.startswith(self.edited):
            # What is learned for shifts is selected under shifts: without them, a host that knows none looks best.
            parts = [plain, *self.shifted_objectives(model, devices, validation)]
            objective = Mixture(parts, parts, self.config.seed)
        return self.fit(name, model, parameters, objective, keep_start=keep_start, fit_config=fit_config)

    def objective(
        self, model: Personalised, devices: Devices, validation: Evaluation | None = None, copy: int = 0
    ) -> ImageObjective | DeviceObjective:
        """What ``model`` learns from ``devices``: images for a host, windows for an editor; those of a shifted ``copy``."""
        kind = ImageObjective if model.editor is None else DeviceObjective
        fixed = model.reads_features if model.editor is None else model.fixed_host
        cache = self.features_of(model.host.eval(), copy) if fixed else None
        config = self.config
        return kind(model, self.data, devices, validation or self.validation, config.loss_config(), config.seed, cache)

    def shifted_objectives(
        self, model: Personalised, devices: Devices, validation: Evaluation | None = None
    ) -> list[ImageObjective | DeviceObjective]:
        """What ``model`` learns from copies of ``devices`` under simulated shifts, where the settings ask for some."""
        return [self.objective(model, devices, validation, copy) for copy in range(1, self.config.shifts + 1)]

    def fit(
        self,
        name: str,
        model: Personalised,
        parameters: Iterable[nn.Parameter],
        objective: Objective,
        *,
        keep_start: bool = False,
        fit_config: FitConfig | None = None,
    ) -> FitResult:
        """Train by any objective; a training that is already in the folder is taken from there."""
        return self.trainings.fit(
            name, model, parameters, objective, fit_config or self.config.host_fit(), keep_start=keep_start
        )

    def evaluation(self, devices: Devices, limit: int | None = None) -> Evaluation:
        """Windows of some devices, as the settings cut them."""
        return Evaluation(
            self.data,
            devices,
            context=self.config.context_images,
            step=self.config.step,
            limit=limit,
            seed=self.config.seed,
        )


def edit_bytes(edit: Edit) -> int:
    """Bytes in float32 of what is generated for one device: cores of factored layers, whole matrices of the others."""
    numbers = 0
    for layer in edit.layers.values():
        numbers += layer.core[0].numel() if isinstance(layer, FactoredEdit) else layer.dense().weight[0].numel()
        numbers += 0 if layer.bias is None else layer.bias[0].numel()
    return FLOAT_BYTES * numbers
