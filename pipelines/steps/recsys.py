"""What only recommenders have of the steps: a log in, recommendations out.

    prepare -> pretrain -> edit -> evaluate -> prototypes -> release -> recommend

Each step finds what it needs in the workspace and can be run again alone; what is already there is not trained again. Run
inside ``mlflow run`` or another run, a step joins it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines import tracking
from pipelines.steps.workspace import Workspace
from recsys.config import REPEATS
from recsys.data.log.streaming import PreparedLog
from recsys.data.preparing import prepare_log
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
    name: str = "",
) -> Prepared:
    """Read any interaction log and keep it as sequences.

    Args:
        source: a file, a folder of Parquet parts or a pattern of their names, or the name of a data set of a package.
        work: where to.
        columns: explicit names of the columns ``user``, ``item``, ``time``, ``title``, and the ``separator``.
        min_events: leave out users and items with fewer events, counted once.
        baskets: whether events of one user at one time are a set; found out by default.
        name: what the data is called in MLflow; by default as before, or like its file.
    """
    name = work.name_of(source, name)
    work.connect(RECSYS, name)
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
        work.call(name, source)
        _log_data(made, name)
    understood = [*made.report.lines(), f"baskets {made.meta['baskets']}"]
    if made.report.repeats_share >= REPEATS:
        understood.append(
            f"from {REPEATS:.0%} on, items that users have had are offered again and ranked with the rest (--no-seen: they are not)"
        )
    return Prepared(users, made.items, events, made.baskets, made.digest, understood)


def _log_data(made: PreparedLog, name: str) -> None:
    """The data set, as MLflow shows it beside a run: its users, with how much they did."""
    import polars as pl
    from mlflow.data import polars_dataset

    users = pl.DataFrame({"user_id": made.user_ids.head(LISTED_USERS), "events": made.counts[:LISTED_USERS]})
    tracking.log_dataset(polars_dataset.from_polars(users, name=name, digest=made.digest[:32]))
