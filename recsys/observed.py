"""What a recommender, or a version of its bank, did on the test rows: metrics of every user, and answers to a few histories.

A user's segment is how many events came before the first of their test rows, the prototype is the one nearest to what was known
then, and the answers are to that history.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from persona.comparison import Measured, labelled
from persona.task import Observed
from recsys.data.batches import Context
from recsys.data.sequences import SequenceData
from recsys.evaluation import ROWS
from recsys.methods import Problem
from recsys.serving.release import Release
from recsys.task import RECSYS

# Users whose answers are kept, and what of their history is shown.
ASKED, SHOWN, ANSWERED = 200, 3, 10


def observe(problem: Problem, measured: Mapping[str, Measured], release: Release, level: str) -> Observed:
    """A version on the test rows of its problem.

    Args:
        problem: rows and protocol.
        measured: what the version achieved on them at one or more levels; a key is put behind the protocol in the names of
            the metrics (``time prototype/ndcg_10``), an empty one adds nothing.
        release: the version itself.
        level: at which it answers.
    """
    evaluation, protocol = problem.test, problem.config.protocol
    data, positions = evaluation.data, evaluation.positions
    users, first = np.unique(evaluation.users, return_index=True)
    known = data.basket_start[positions[first]]
    names = data.user_ids.gather(users).to_list()
    ranked = ["seen"] if evaluation.full and evaluation.seen else []
    return Observed(
        [data.digest, protocol, evaluation.seed, hashlib.sha256(positions.tobytes()).hexdigest(), *ranked],
        names,
        labelled(protocol, measured, RECSYS.compared),
        known - data.offsets[users],
        prototypes=_prototypes(release, data, positions[first]),
        answers=_answers(release, data, dict(zip(names, known, strict=True)), users, level),
    )


@torch.no_grad()
def _prototypes(release: Release, data: SequenceData, positions: NDArray[np.int64]) -> list[int] | None:
    """The prototype nearest to what was known before each position; None without a bank."""
    if release.server is None:
        return None
    items, lengths = data.contexts(positions, release.model.host.config.max_length)
    context = Context(torch.from_numpy(items), torch.from_numpy(lengths))
    blocks = torch.split(torch.arange(len(context)), ROWS)
    found = [release.server.assign(release.codes(context.index_select(rows))) for rows in blocks]
    return [int(index) for index in torch.cat(found)]


def _answers(
    release: Release,
    data: SequenceData,
    known: Mapping[str, int],
    users: Sequence[int] | NDArray[np.int64],
    level: str,
) -> list[tuple[str, str, int, str, str]]:
    """Ranked items for users spread evenly over all; ``known`` says up to where the history of each is given."""
    chosen = np.unique(np.linspace(0, len(users) - 1, min(ASKED, len(users))).astype(np.int64))
    names = list(known)
    ids = data.item_ids.to_list()
    titles = {} if data.titles is None else dict(zip(ids, data.titles.to_list(), strict=True))
    histories = {
        names[i]: [ids[item - 1] for item in data.items[data.offsets[users[i]] : known[names[i]]]] for i in chosen
    }
    histories = {name: history for name, history in histories.items() if history}
    answers = release.recommender().recommend_many(list(histories.values()), ANSWERED, level=level)
    return [
        (name, _shown(history, titles), rank, item.item_id, item.title or "")
        for (name, history), answer in zip(histories.items(), answers, strict=True)
        for rank, item in enumerate(answer.items, start=1)
    ]


def _shown(history: Sequence[str], titles: Mapping[str, str | None]) -> str:
    """The end of a history in words."""
    return f"{len(history)} events, the last: {', '.join(titles.get(item) or item for item in history[-SHOWN:])}"
