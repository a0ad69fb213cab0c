"""Prototypes of devices: from the windows that devices show to a bank, and to what a device applies of it.

Shapes: W windows, n images of a window, L adaptive layers, d code width, F features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from persona import methods
from persona.edits import Edit
from persona.prototypes import (
    BankConfig,
    Contexts,
    FittedBank,
    Notify,
    PrototypeBank,
    Server,
    UserStatistics,
)
from persona.torch_device import moved
from vision.evaluation import Evaluation
from vision.features import FeatureCache, features_of
from vision.personalised import Personalised

if TYPE_CHECKING:  # methods are made of banks, and not the other way round
    from vision.methods.problem import Problem

Int64Array = NDArray[np.int64]


class ServedAtLevel(Personalised):
    """A personalised host whose device applies what a serving level sends, rounding included.

    Args:
        model: host, reader and editor.
        server: of the editor's bank.
        level: ``prototype``, ``basis`` or another level of ``persona.prototypes``.
    """

    def __init__(self, model: Personalised, server: Server, level: str) -> None:
        super().__init__(model.host, model.reader, model.editor, fixed_host=True)
        self.server, self.level = server, level
        self.eval()

    def edit(self, features: Tensor) -> Edit | None:
        """What every device applies, from features (B, n, F)."""
        return moved(self.server.edit(self.codes(features), self.level), self.host.device)


def at_level(model: Personalised, bank: PrototypeBank | None, level: str) -> Personalised:
    """As ``persona.methods.at_level``."""
    return methods.at_level(model, bank, level, alone=Personalised, serve=ServedAtLevel)


def fit_bank(
    problem: Problem, model: Personalised, settings: BankConfig, notify: Notify = lambda note: None
) -> FittedBank:
    """The bank of a trained model, from the problem's folder if it was fitted before; ``notify`` hears of each part of the work.

    It stands on the windows of the devices that the editor learned from, and validation devices decide. Prototypes are not trained
    on their members: each would need validation devices of its own, of which data sets of images have few. A model without an
    editor is a ``ConfigError``.
    """
    editor = methods.editor_of(model)
    windows = problem.evaluation(problem.split.adapt)
    codes, owners = window_codes(model, windows, problem.features_of(model.host))
    devices = torch.from_numpy(owners)
    contexts = Contexts(codes, devices, devices, [problem.data.device_ids[d] for d in owners])
    return problem.bank_of(
        editor, contexts, settings, lambda level, bank: problem.score(at_level(model, bank, level)), notify=notify
    )


@torch.no_grad()
def window_codes(
    model: Personalised, evaluation: Evaluation, cache: FeatureCache | None = None
) -> tuple[Tensor, Int64Array]:
    """Codes (W, L, d) of all windows of devices, without their labels, and the device (W,) of each."""
    codes: list[Tensor] = []
    owners: list[int] = []
    for device in evaluation.devices.tolist():
        for own, _ in evaluation.windows(device):
            features = features_of(model.host, evaluation.data.tensor(own)) if cache is None else cache[own]
            codes.append(model.codes(features.unsqueeze(0)))
            owners.append(device)
    return torch.cat(codes), np.array(owners, np.int64)


def window_statistics(server: Server, codes: Tensor, owners: Int64Array) -> UserStatistics:
    """What refinement reads of the windows of devices: codes (W, L, d) and their devices (W,)."""
    return UserStatistics.collect(codes, torch.from_numpy(owners), server.assign(codes), len(server.bank))
