import math

import pytest
import torch

from recsys.hosts import din
from tests.recsys.hosts.common import HISTORIES, candidates, context, random_edit, small_host

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.mark.parametrize("preset", ["paper", "modern"])
def test_scores_are_the_published_formula(preset):
    host = small_host("din", preset)
    table, attention = host.embedding.embeddings["item"].weight, host.attention
    wanted = candidates()
    scores = host.score(host.encode(context()), wanted)
    for row, history in enumerate(HISTORIES):
        for column, item in enumerate(wanted[row].tolist()):
            target = host.target(table[item])
            found = torch.zeros(host.config.dim)
            if history:
                read = host.history(table[history])
                logits = attention.key(read) @ attention.query(target) / math.sqrt(host.config.dim)
                found = logits.softmax(0) @ attention.value(read)
            torch.testing.assert_close(scores[row, column], host.head(torch.cat([target, found])).squeeze(), **CLOSE)


def test_the_catalogue_does_not_depend_on_its_blocks(monkeypatch):
    host = small_host("din", "paper")
    edit, state = random_edit(host, len(HISTORIES)), host.encode(context())
    whole = host.score_catalogue(state, edit)
    for pairs in (1, 7 * len(HISTORIES)):
        monkeypatch.setattr(din, "PAIRS", pairs)
        torch.testing.assert_close(host.score_catalogue(state, edit), whole, **CLOSE)
