import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from persona.training.ranks import Dropout, Ranks, blocks, current, draw, in_pieces, working_on


@given(total=st.integers(1, 50), size=st.integers(1, 12))
def test_every_row_is_one_ranks_own(total, size):
    parts = [Ranks(rank, size).rows(total) for rank in range(size)]
    own = [row for part in parts if part.counted for row in range(part.start, part.stop)]
    assert own == list(range(total))
    assert sum(part.share for part in parts) == pytest.approx(1)
    sizes = [part.stop - part.start for part in parts if part.counted]
    assert max(sizes) - min(sizes) <= 1
    assert all(part.stop - part.start == 1 and part.share == 0 for part in parts if not part.counted)


def test_a_process_alone_is_rank_0_of_1_and_changes_nothing():
    ranks, tensor = current(), torch.arange(3.0)
    assert ranks == Ranks(0, 1)
    assert ranks.main
    assert torch.equal(ranks.sum(tensor), tensor)
    assert torch.equal(ranks.gather(tensor)[0], tensor)
    assert ranks.agree("x") == "x"
    layer = nn.Linear(2, 1)
    layer(torch.ones(1, 2)).sum().backward()
    before = layer.weight.grad.clone()
    ranks.mean_gradients(layer.parameters())
    assert torch.equal(layer.weight.grad, before)
    assert not in_pieces(tensor)
    assert [block.tolist() for block in blocks(tensor)] == [[0, 1, 2]]


def strided(rows):
    """Rows inside of time, as a recurrent layer leaves them."""
    return torch.randn(4, rows, 3).transpose(0, 1)


@pytest.mark.parametrize("make", [lambda rows: torch.randn(rows, 5, 3), strided, lambda rows: torch.randn(rows, 7)])
@pytest.mark.parametrize("size", [1, 2, 3, 40])
def test_dropout_of_parts_is_dropout_of_the_whole(make, size):
    x, dropout = make(33), Dropout(0.3)
    torch.manual_seed(5)
    whole, after = nn.Dropout(0.3)(x), torch.rand(1)
    parts = []
    for rank in range(size):
        rows = Ranks(rank, size).rows(len(x))
        torch.manual_seed(5)
        with working_on(rows):
            part = dropout(rows.of(x))
        assert torch.equal(torch.rand(1), after), "the generators of all ranks stay together"
        parts += [part] if rows.counted else []
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(dropout.eval()(x), x)


def test_draws_are_those_of_the_whole_batch():
    torch.manual_seed(1)
    whole = torch.rand(7)
    rows = Ranks(1, 2).rows(7)
    torch.manual_seed(1)
    with working_on(rows):
        assert torch.equal(draw(torch.rand, 4), whole[3:])
        with pytest.raises(ValueError, match="3 rows are drawn for, but this rank works on 4"):
            draw(torch.rand, 3)
    torch.manual_seed(1)
    assert torch.equal(draw(torch.rand, 7), whole)
