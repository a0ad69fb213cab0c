"""What the tests do on one process and on several, and what they compare: `python -m ... folder answers.json`.

Every training has a folder of its own under ``folder``, which may hold checkpoints.
"""

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path

from recsys import evaluation
from recsys.distributed import group
from recsys.methods import Problem, train_configured
from tests.recsys.toy import SMALL, walks

# Hosts of all kinds, all modes, both ways to keep the table, dropout, and batches that no two processes can share equally.
CASES = {
    "gru4rec": replace(SMALL, mode="auto", dropout=0.2, batch_size=33),
    "sasrec": replace(
        SMALL,
        host="sasrec",
        mode="cross_fitted",
        dropout=0.2,
        batch_size=33,
        table_optimizer="rowwise_adagrad",
        table_learning_rate=0.1,
    ),
    "din": replace(
        SMALL, mode="held_back", host="din", protocol="full", monitor="mrr", table_optimizer="rowwise_adagrad"
    ),
    "whole sequences": replace(SMALL, mode="held_back", host="sasrec", sequences=True, negatives=8, batch_size=7),
    "joint": replace(SMALL, mode="joint", table_optimizer="rowwise_adagrad", table_learning_rate=0.1),
}
ROWS = 16  # of a block of evaluation, so that there are several, and not as many for each process


def answers(case, folder):
    """Host and editor trained, what came of it, and the bits of what they say on test rows."""
    problem = Problem(walks(), CASES[case], folder=folder)
    mode, trained = train_configured(problem)
    with problem.reporting():
        tested = problem.test.run(trained.scorer)
    sha = hashlib.sha256()
    for name in sorted(tested.per_user):
        sha.update(tested.per_user[name].tobytes())
    return {
        "mode": mode,
        "trainings": {name: result.history for name, result in problem.trainings.results.items()}
        | {"editor": trained.result.history},
        "digest": trained.scorer.host.digest(),
        "tested": tested.summary,
        "bits": sha.hexdigest(),
    }


def main(folder, target):
    evaluation.ROWS = evaluation.FULL_ROWS = ROWS
    with group.joined() as ranks:
        found = {case: answers(case, Path(folder) / case) for case in CASES}
    if ranks.main:
        Path(target).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
