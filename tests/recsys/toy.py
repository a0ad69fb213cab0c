"""A small log with structure to learn: every user walks round the catalogue with a stride of their own."""

from itertools import accumulate
from pathlib import Path

import numpy as np
import polars as pl
import torch

from persona.editor import EditorConfig, ParameterEditor
from recsys.config import RecsysConfig
from recsys.data.sequences import SequenceData
from recsys.hosts import HostConfig, make_host
from recsys.personalised import Personalised

ITEMS = 30
STRIDES = (1, 2, 5)

# Two epochs are enough for the first signs of learning, and take a second.
SMALL = RecsysConfig(
    host="gru4rec",
    protocol="paper",
    preset="paper",
    dim=8,
    max_length=5,
    width=8,
    batch_size=32,
    epochs=2,
    learning_rate=0.03,
    editor_learning_rate=0.02,
)


def sequences(histories: list[list[int]], times: list[list[int]] | None = None, n_items: int = ITEMS) -> SequenceData:
    """Data of users with these items (1..n_items); with ``times``, events of a user at one time are baskets."""
    lengths = [len(history) for history in histories]
    offsets = np.array([0, *accumulate(lengths)], dtype=np.int64)
    positions = np.arange(offsets[-1], dtype=np.int64)
    starts, flat_times = positions.copy(), positions.copy()
    if times is not None:
        flat_times = np.array([time for own in times for time in own], dtype=np.int64)
        user = np.repeat(np.arange(len(lengths)), lengths)
        for position in positions[1:]:
            before = position - 1
            if user[before] == user[position] and flat_times[before] == flat_times[position]:
                starts[position] = starts[before]
    return SequenceData(
        items=np.array([item for history in histories for item in history], dtype=np.int32),
        times=flat_times,
        offsets=offsets,
        basket_start=starts,
        user_ids=pl.Series([f"u{u}" for u in range(len(lengths))], dtype=pl.String),
        item_ids=pl.Series([str(100 + i) for i in range(1, n_items + 1)]),
        titles=pl.Series([f"Film {i}" for i in range(1, n_items + 1)]),
        baskets=times is not None,
        ordered_only=False,
    )


def walks(users: int = 60, events: int = 12, seed: int = 0, turn: int | None = None) -> SequenceData:
    """Users who go from item i to i + stride, with a slip now and then; all walk at the same time.

    From event number ``turn`` on, everybody's stride is longer by three.
    """
    rng = np.random.default_rng(seed)
    steps = rng.choice(STRIDES, users)[:, None] + (rng.random((users, events)) < 0.1)
    if turn is not None:
        steps[:, turn:] += 3
    items = (rng.integers(ITEMS, size=(users, 1)) + np.cumsum(steps, axis=1)) % ITEMS + 1
    data = sequences(items.tolist())
    moments = np.arange(events)[None] * users + np.arange(users)[:, None]
    return SequenceData(**{**vars(data), "times": moments.reshape(-1).astype(np.int64)})


def write_walks(path: Path, users: int = 60, events: int = 12) -> Path:
    """The same users as a CSV file with titles."""
    data = walks(users, events)
    owner = data.user_of(np.arange(data.n_events))
    items = data.items - 1
    columns = {
        "user_id": data.user_ids.gather(owner),
        "item_id": data.item_ids.gather(items),
        "timestamp": 1_700_000_000 + data.times,
        "title": pl.Series(data.titles).gather(items),
    }
    pl.DataFrame(columns).write_csv(path)
    return path


def personalised(
    kind: str = "gru4rec", *, editor: bool = True, learned: bool = False, **options: object
) -> Personalised:
    """A small model; ``learned`` moves the editor's heads away from their zero start."""
    torch.manual_seed(0)
    config = HostConfig.preset(kind, "paper", ITEMS, dim=8, max_length=5)
    host = make_host(config)
    host.embedding.embeddings["item"].weight.data.mul_(20)
    made = None
    if editor:
        made = ParameterEditor(
            EditorConfig(context_dim=host.context_dim, width=8), host.adaptive.specs, host.adaptive.weight_scales()
        )
        if learned:
            for head in made.heads:
                for parameter in head.parameters():
                    torch.nn.init.normal_(parameter, std=0.3)
    return Personalised(host, made, **options).eval()  # type: ignore[arg-type]
