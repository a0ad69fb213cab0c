"""What the tests do on one process and on several, and what they compare: `python -m ... folder answers.json`.

Every training has a folder of its own under ``folder``, which may hold checkpoints.
"""

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path

from recsys import evaluation
from recsys.baselines import Problem
from recsys.baselines.persona import train_held_back
from recsys.distributed import group
from tests.recsys.toy import SMALL, walks

# Hosts of all kinds, both ways to keep the table, dropout, and batches that no two processes can share equally.
CASES = {
    "gru4rec": replace(SMALL, dropout=0.2, batch_size=33),
    "sasrec": replace(
        SMALL,
        host="sasrec",
        dropout=0.2,
        batch_size=33,
        table_optimizer="rowwise_adagrad",
        table_learning_rate=0.1,
    ),
    "din": replace(SMALL, host="din", protocol="full", monitor="mrr", table_optimizer="rowwise_adagrad"),
    "whole sequences": replace(SMALL, host="sasrec", sequences=True, negatives=8, batch_size=7),
}
ROWS = 16  # of a block of evaluation, so that there are several, and not as many for each process


def answers(case, folder):
    """Host and editor trained, what came of it, and the bits of what they say on test rows."""
    problem = Problem(walks(), CASES[case], folder=folder)
    trained = train_held_back(problem)
    tested = problem.test.run(trained.scorer)
    sha = hashlib.sha256()
    for name in sorted(tested.per_user):
        sha.update(tested.per_user[name].tobytes())
    return {
        "host": problem.host_results["host_early"].history,
        "editor": trained.result.history,
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
