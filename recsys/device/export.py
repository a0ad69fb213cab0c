"""Recommenders for devices: history in, scores of the whole catalogue out, adaptive weights as inputs.

Shapes: T context length, V items, d width, N contexts.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from persona.bounds import Bound
from persona.device.policy import RequestPolicy, fit_policy
from persona.errors import ConfigError
from persona.export import DeviceModel, write_device_bundle
from persona.prototypes import HeadMetric
from recsys.data.batches import Context
from recsys.data.sequences import SequenceData
from recsys.device.recommender import ITEMS_FILE, TASK
from recsys.hosts import Host
from recsys.personalised import Personalised
from recsys.serving.release import Release

# Weights of the averages of a summary: each item counts so much of the one that came after it.
DECAYS = (1.0, 0.8, 0.5)
ROWS = 4096
# Share of all events, the latest ones, that a request policy is calibrated on.
LATEST = 0.2


class _OnDevice(nn.Module):
    """Items (1, T) and lengths (1,) -> logits (1, V + 1) and the summary of the context (1, S)."""

    item_vectors: Tensor

    def __init__(self, host: Host) -> None:
        super().__init__()
        self.host = host
        with torch.no_grad():
            self.register_buffer("item_vectors", host.item_vectors())

    def forward(self, items: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        embedded = self.host.embed(items)
        scores = self.host.match(self.host.encode_history(embedded, lengths), self.item_vectors)
        return scores, summarise(embedded, lengths)


def summarise(embedded: Tensor, lengths: Tensor) -> Tensor:
    """What the request policy reads: averages of the context's embeddings, and how full it is.

    Args:
        embedded: (B, T, d), 0 at padding.
        lengths: (B,).

    Returns:
        (B, S), S = 3 d + 1: the averages with weights 1, .8^age and .5^age, and the share of T that is filled.
    """
    length = embedded.shape[1]
    age = lengths.unsqueeze(1) - 1 - torch.arange(length, device=lengths.device)
    valid = (age >= 0).to(embedded.dtype)
    averages = []
    for decay in DECAYS:
        weights = valid * decay ** age.clamp(min=0).to(embedded.dtype)
        weights = weights / weights.sum(1, keepdim=True).clamp(min=1.0)
        averages.append((embedded * weights.unsqueeze(-1)).sum(1))
    return torch.cat([*averages, lengths.unsqueeze(1).to(embedded.dtype) / length], dim=1)


def device_model(recommender: Release, policy: RequestPolicy | None = None) -> DeviceModel:
    """What a device needs of a recommender."""
    host, editor = recommender.model.host, recommender.model.editor
    length = host.config.max_length
    vocabulary = {"ids": recommender.item_ids, "titles": recommender.titles}
    told = {"seen": True} if recommender.info.get("seen") else {}
    return DeviceModel(
        task=TASK,
        module=_OnDevice(host),
        layers=host.adaptive,
        host=recommender.host_digest,
        data={"items": torch.ones(1, length, dtype=torch.int64), "lengths": torch.tensor([length])},
        outputs=("scores", "summary"),
        bound=Bound("none") if editor is None else editor.bound,
        scales=host.adaptive.weight_scales() if editor is None else editor.weight_scales,
        bank=recommender.bank,
        policy=policy,
        settings={"length": length, "items": len(recommender.item_ids), "host": host.config.as_dict(), **told},
        files={ITEMS_FILE: json.dumps(vocabulary, ensure_ascii=False).encode()},
    )


def export_recommender(
    recommender: Release, folder: Path, *, form: str = "onnx", policy: RequestPolicy | None = None
) -> None:
    """Write a recommender as a device bundle; arguments and errors as in ``persona.export.write_device_bundle``."""
    write_device_bundle(device_model(recommender, policy), folder, form)


@torch.no_grad()
def summaries(host: Host, context: Context) -> np.ndarray:
    """(N, S) summaries of N contexts, as the graph computes them."""
    blocks = torch.split(torch.arange(len(context)), ROWS)
    parts = [context.index_select(rows) for rows in blocks]
    return torch.cat([summarise(host.embed(part.items), part.lengths) for part in parts]).numpy()


@torch.no_grad()
def edit_points(model: Personalised, context: Context) -> np.ndarray:
    """(N, L d) coordinates of the edits of N contexts, in which distances are those of the unbounded edits.

    Raises:
        ConfigError: the model has no editor.
    """
    host, editor = model.host, model.editor
    if editor is None:
        raise ConfigError("a host without an editor has no edits to ask for: release one with an editor")
    metric = HeadMetric(editor)
    blocks = torch.split(torch.arange(len(context)), ROWS)
    parts = [context.index_select(rows) for rows in blocks]
    codes = [editor.codes(host.context_features(part), part.lengths) for part in parts]
    return torch.cat([metric.points(part.double()) for part in codes]).numpy()


def fit_request_policy(recommender: Release, data: SequenceData, rate: float) -> RequestPolicy:
    """A policy fitted on the histories of prepared data, and calibrated on the latest fifth of its events.

    How fast contexts change is a matter of the season: the latest events tell most about the next ones.

    Args:
        recommender: with an editor.
        data: the events before release; each with a past is an event at which a device could ask.
        rate: wanted requests an event.

    Raises:
        ConfigError: the rate is not in (0, 1], or the recommender has no editor.
        DataError: no event has a past.
    """
    positions = np.flatnonzero(data.basket_start > np.repeat(data.offsets[:-1], np.diff(data.offsets)))
    items, lengths = data.contexts(positions, recommender.model.host.config.max_length)
    context = Context(torch.from_numpy(items), torch.from_numpy(lengths))
    read = summaries(recommender.model.host, context)
    policy = fit_policy(read, edit_points(recommender.model, context))
    times = data.times[positions]
    latest = np.ones(len(positions), bool) if data.ordered_only else times >= np.quantile(times, 1 - LATEST)
    users = data.user_of(positions[latest])
    first = np.append(True, users[1:] != users[:-1])
    return policy.calibrated(policy.coordinates(read[latest]), first, rate)
