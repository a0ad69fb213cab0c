"""What a version of a recommender, or of its bank, leaves to be compared by: metrics of every user, and answers to a few histories.

Everything is taken at the test rows: a user's segment is how many events came before the first of them, the prototype is the one
nearest to what was known then, and the answers are to that history.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from persona.comparison import Measured, metric_name
from persona.storage import digest_json
from pipelines.versions import snapshots
from pipelines.versions.snapshots import INPUT, ITEM, RANK, TITLE, UNIT, Snapshot
from recsys.data.batches import Context
from recsys.data.sequences import SequenceData
from recsys.evaluation import ROWS, Evaluated, Evaluation
from recsys.methods import Problem
from recsys.methods.prototypes import ServedAtLevel
from recsys.serving.release import Release

# Metrics that decide; the rest is in the run.
METRICS = ("uauc", "ndcg_10", "hr_10")
# The level at which prototypes alone answer, and its name behind the protocol.
PROTOTYPE = "prototype"
# Users whose answers are kept, and what of their history is shown.
ASKED, SHOWN, ANSWERED = 200, 3, 10


def of_release(problem: Problem, measured: Measured, recommender: Release) -> Snapshot:
    """The snapshot of a bundle on the test rows of its problem.

    Args:
        problem: rows and protocol.
        measured: what the bundle achieved on them with whole edits.
        recommender: the bundle; with a bank, what its prototypes alone achieve is measured, too.
    """
    levels = {"": Evaluated(measured.summary, measured.per_unit, measured.units)}
    if recommender.server is not None:
        served = ServedAtLevel(recommender.model, recommender.server, PROTOTYPE)
        levels[PROTOTYPE] = problem.test.run(served)
    return taken(problem.test, levels, recommender, protocol=problem.config.protocol)


def taken(
    evaluation: Evaluation,
    measured: Mapping[str, Evaluated],
    recommender: Release,
    *,
    protocol: str,
    level: str = "edit",
) -> Snapshot:
    """The snapshot of a version.

    Args:
        evaluation: the test rows.
        measured: what the version achieved on them at one or more levels; a key is put behind the protocol in the names of
            the metrics (``time prototype/ndcg_10``), an empty one adds nothing.
        recommender: the version itself.
        protocol: of the rows.
        level: at which it answers.
    """
    data, positions = evaluation.data, evaluation.positions
    users, first = np.unique(evaluation.users, return_index=True)
    known = data.basket_start[positions[first]]
    names = data.user_ids.gather(users).to_list()
    metrics = {
        metric_name(f"{protocol} {label}".strip(), metric): result.per_user[metric]
        for label, result in measured.items()
        for metric in METRICS
        if metric in result.per_user
    }
    rows = [data.digest, protocol, evaluation.seed, hashlib.sha256(positions.tobytes()).hexdigest()]
    return snapshots.measured(
        "user",
        protocol,
        digest_json(rows),
        units=names,
        metrics=metrics,
        segments=snapshots.activity_segments(known - data.offsets[users]),
        prototypes=_prototypes(recommender, data, positions[first]),
        answers=_answers(recommender, data, dict(zip(names, known, strict=True)), users, level),
    )


@torch.no_grad()
def _prototypes(recommender: Release, data: SequenceData, positions: NDArray[np.int64]) -> list[int] | None:
    """The prototype nearest to what was known before each position; None without a bank."""
    if recommender.server is None:
        return None
    items, lengths = data.contexts(positions, recommender.model.host.config.max_length)
    context = Context(torch.from_numpy(items), torch.from_numpy(lengths))
    blocks = torch.split(torch.arange(len(context)), ROWS)
    found = [recommender.server.assign(recommender.codes(context.index_select(rows))) for rows in blocks]
    return [int(index) for index in torch.cat(found)]


def _answers(
    recommender: Release,
    data: SequenceData,
    known: Mapping[str, int],
    users: Sequence[int] | NDArray[np.int64],
    level: str,
) -> list[dict[str, Any]]:
    """Ranked items for users spread evenly over all; ``known`` says up to where the history of each is given."""
    chosen = np.unique(np.linspace(0, len(users) - 1, min(ASKED, len(users))).astype(np.int64))
    names = list(known)
    ids = data.item_ids.to_list()
    titles = {} if data.titles is None else dict(zip(ids, data.titles.to_list(), strict=True))
    histories = {
        names[i]: [ids[item - 1] for item in data.items[data.offsets[users[i]] : known[names[i]]]] for i in chosen
    }
    histories = {name: history for name, history in histories.items() if history}
    answers = recommender.recommender().recommend_many(list(histories.values()), ANSWERED, level=level)
    return [
        {UNIT: name, INPUT: _shown(history, titles), RANK: rank, ITEM: item.item_id, TITLE: item.title or ""}
        for (name, history), answer in zip(histories.items(), answers, strict=True)
        for rank, item in enumerate(answer.items, start=1)
    ]


def _shown(history: Sequence[str], titles: Mapping[str, str | None]) -> str:
    """The end of a history in words."""
    return f"{len(history)} events, the last: {', '.join(titles.get(item) or item for item in history[-SHOWN:])}"
