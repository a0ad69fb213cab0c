"""What only recommenders have of the steps: a log in, recommendations out.

    prepare -> pretrain -> edit -> evaluate -> prototypes -> release -> recommend

Each step finds what it needs in the workspace and can be run again alone; what is already there is not trained again. Run
inside ``mlflow run`` or another run, a step joins it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from persona.errors import ConfigError
from pipelines import tracking
from pipelines.steps.workspace import Workspace
from pipelines.tracking import registry
from recsys.data.log.streaming import PreparedLog
from recsys.data.preparing import prepare_log
from recsys.serving.recommender import Recommendation, Recommender
from recsys.task import RECSYS

# Users that MLflow lists with a data set, at most.
LISTED_USERS = 1_000_000


@dataclass(frozen=True)
class Prepared:
    """What ``prepare`` understood and kept."""

    users: int
    items: int
    events: int
    baskets: bool
    digest: str
    understood: list[str]


def prepare(
    source: str,
    work: Workspace,
    *,
    columns: Mapping[str, Any] | None = None,
    min_events: int = 1,
    baskets: bool | None = None,
) -> Prepared:
    """Read any interaction log and keep it as sequences.

    Args:
        source: a file, a folder of Parquet parts or a pattern of their names, or the name of a data set of a package.
        work: where to.
        columns: explicit names of the columns ``user``, ``item``, ``time``, ``title``, and the ``separator``.
        min_events: leave out users and items with fewer events, counted once.
        baskets: whether events of one user at one time are a set; found out by default.
    """
    tracking.connect(RECSYS.name)
    with tracking.run("prepare", tags={"step": "prepare"}):
        tracking.log_params({"source": source, "min_events": min_events})
        made = prepare_log(
            source,
            work.prepared,
            columns=columns,
            min_user_events=min_events,
            min_item_events=min_events,
            baskets=baskets,
        )
        users, events = len(made.user_ids), int(made.counts.sum())
        tracking.log_params({"data_digest": made.digest})
        tracking.log_metrics_batch({"users": users, "items": made.items, "events": events})
        tracking.log_json(made.meta, "data/report.json")
        _log_data(made, source)
    understood = [*made.report.lines(), f"baskets {made.meta['baskets']}"]
    return Prepared(users, made.items, events, made.baskets, made.digest, understood)


@dataclass(frozen=True)
class Answer:
    """What a user should see, and on which history the answer stands."""

    history: list[str]
    recommendation: Recommendation


def recommend(
    source: str | Path,
    *,
    work: Workspace | None = None,
    user: str | None = None,
    history: Sequence[str] | None = None,
    k: int = 10,
    level: str = "edit",
    drop_last: int = 0,
) -> Answer:
    """Answer "what should this user see now".

    Args:
        source: a bundle folder, or a registered model such as ``models:/persona-recsys@candidate``.
        work: where ``user`` is looked up.
        user: an id of the prepared log, whose history is used; or
        history: item ids, oldest first, of anybody.
        k: how many items.
        level: one of ``recsys.serving.recommender.LEVELS``.
        drop_last: leave out this many of the latest events, to see what they change.

    Raises:
        ConfigError: neither or both of ``user`` and ``history`` are given.
    """
    if (user is None) == (history is None):
        raise ConfigError("give either a user of the prepared log (--user) or a history of item ids (--history)")
    recommender = load_recommender(source)
    if user is not None:
        if work is None:
            raise ConfigError("a user is looked up in a workspace: give --work, or a --history instead")
        data = work.data(RECSYS)
        history = [data.item_ids[int(i) - 1] for i in data.history_of(user)]
    assert history is not None
    kept = list(history[: max(0, len(history) - drop_last)])
    return Answer(kept, recommender.recommend(kept, k, level=level))


def latest_user(work: Workspace) -> str:
    """The user whose last event is the latest among those with a history worth showing."""
    data = work.data(RECSYS)
    last = data.times[data.offsets[1:] - 1]
    enough = np.diff(data.offsets) > min(10, np.diff(data.offsets).max() - 1)
    return str(data.user_ids[int(np.where(enough, last, last.min() - 1).argmax())])


def load_recommender(source: str | Path) -> Recommender:
    """The recommender of a bundle folder or of a registered model's URI."""
    if str(source).startswith(("models:", "runs:")):
        tracking.connect(RECSYS.name)
        return Recommender.load(registry.download(str(source)))
    return Recommender.load(source)


def _log_data(made: PreparedLog, source: str) -> None:
    """The data set, as MLflow shows it beside a run: its users, with how much they did."""
    import polars as pl
    from mlflow.data import polars_dataset

    users = pl.DataFrame({"user_id": made.user_ids.head(LISTED_USERS), "events": made.counts[:LISTED_USERS]})
    tracking.log_dataset(polars_dataset.from_polars(users, name=Path(source).stem, digest=made.digest[:32]))
