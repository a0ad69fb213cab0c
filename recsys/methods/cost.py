"""What a method costs beyond its accuracy: seconds of a refresh and parameters beyond the host's."""

from __future__ import annotations

import time
from typing import Any

import torch

from persona.methods import Trained
from persona.torch_device import device_of, moved
from recsys.data.batches import Context
from recsys.personalised import Personalised

DEVICES = 256
REPEATS = 3


@torch.no_grad()
def refresh_seconds(trained: Trained[Any], contexts: Context) -> float:
    """Seconds of computing that adapting once takes.

    Where every device is adapted by itself, seconds of the processor for one device in a batch of (at most) 256, best of
    three, which a busy machine does not change; where one training adapts everybody, the wall time of that training; 0 where
    nothing is ever refreshed.
    """
    model = trained.model
    few = moved(contexts.index_select(torch.arange(min(DEVICES, len(contexts)))), device_of(model))
    if not isinstance(model, Personalised) or model.edit(few) is None:
        return trained.result.seconds if trained.refresh_bytes else 0.0
    return min(_seconds(model, few) for _ in range(REPEATS)) / len(few)


def extra_parameters(trained: Trained[Any]) -> int:
    """Parameters of the method that are not the host's: an editor, a generator, layers for every cluster."""
    model = trained.model
    if not isinstance(model, Personalised):
        return 0
    return sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in model.host.parameters())


def _seconds(model: Personalised, contexts: Context) -> float:
    started = time.process_time()
    model.edit(contexts)
    if device_of(model).type == "cuda":
        torch.cuda.synchronize()  # the processor waits, so that its time is the card's
    return time.process_time() - started
