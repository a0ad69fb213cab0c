import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from persona.training.ranks import Ranks
from recsys import evaluation
from recsys.evaluation import Evaluation, _shared
from tests.recsys.distributed.common import on_threads
from tests.recsys.toy import personalised, walks

DATA = walks(users=20, events=10)


@settings(max_examples=40)
@given(rows=st.integers(1, 40), height=st.integers(1, 12), size=st.integers(1, 5))
def test_blocks_come_back_in_order_whoever_did_them(rows, height, size):
    split = torch.split(torch.arange(rows), height)
    done = [[] for _ in range(size)]

    def work(ranks):
        def block(of):
            done[ranks.rank].append(of.tolist())
            return torch.stack([of * 10, of + 0.5], dim=1)

        return _shared(split, block, ranks)

    expected = _shared(split, lambda of: torch.stack([of * 10, of + 0.5], dim=1), Ranks())
    assert expected[:, 0].tolist() == [10 * row for row in range(rows)]
    for found in on_threads(size, work):
        assert torch.equal(found, expected)
    assert len({len(blocks) for blocks in done}) == 1, "all look up together, equally often"


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(("size", "events"), [(2, 40), (3, 37), (4, 5), (3, 1)])
def test_metrics_over_ranks_are_those_of_one_process(full, size, events, monkeypatch):
    """Whatever the users, the shards and the last block."""
    rng = np.random.default_rng(events)
    everything = np.setdiff1d(np.arange(DATA.n_events), DATA.offsets)
    positions = np.sort(rng.choice(everything, events, replace=False))
    monkeypatch.setattr(evaluation, "ROWS", 6)
    monkeypatch.setattr(evaluation, "FULL_ROWS", 6)
    rows, model = Evaluation(DATA, positions, max_length=5, full=full, negatives=7), personalised(learned=True)
    expected = rows.run(model)
    _ = rows.candidates  # drawn once, before threads ask for them

    def run(ranks):
        return _shared(torch.split(torch.arange(events), 6), score, ranks)

    def score(of):
        if full:
            return rows._full_ranks(model, of)
        return model.score(rows.contexts.index_select(of), rows.candidates[of])

    run = torch.no_grad()(run)  # a thread starts with gradients
    one, everywhere = run(Ranks()), on_threads(size, run)
    assert all(torch.equal(found, one) for found in everywhere)
    for found in everywhere:
        monkeypatch.setattr(evaluation, "_shared", lambda blocks, work, ranks, found=found: found)
        again = rows.run(model)
        assert again.summary == expected.summary
        assert all(np.array_equal(again.per_user[name], expected.per_user[name]) for name in expected.per_user)
