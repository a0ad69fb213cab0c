import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torchrec import KeyedJaggedTensor
from torchrec.distributed.train_pipeline import TrainPipelineBase
from torchrec.streamable import Pipelineable

from persona.errors import DataError
from recsys.data.batches import Batch, Context, features

histories = st.lists(st.lists(st.integers(1, 99), max_size=8), min_size=1, max_size=6)


@given(histories, st.integers(1, 6))
def test_a_context_holds_the_last_items_in_order(lists, length):
    context = Context.from_lists(lists, length)
    assert context.items.shape == (len(lists), length)
    assert context.items.dtype == context.lengths.dtype == torch.int64
    for row, history in enumerate(lists):
        kept = history[-length:]
        assert context.items[row].tolist() == kept + [0] * (length - len(kept))
        assert context.lengths[row] == len(kept)
        assert context.mask[row].tolist() == [True] * len(kept) + [False] * (length - len(kept))


def test_a_history_may_be_a_tuple_and_no_history_is_a_context_of_no_rows():
    assert Context.from_lists([(1, 2)], 3).items.tolist() == [[1, 2, 0]]
    assert Context.from_lists([], 3).items.shape == (0, 3)
    assert len(Context.from_lists([], 3)) == 0


@pytest.mark.parametrize("item", [0, -4])
def test_the_padding_is_no_item(item):
    with pytest.raises(DataError, match=f"start at 1, but one is {item}"):
        Context.from_lists([[3], [5, item]], 4)


@pytest.mark.parametrize(("items", "lengths"), [((3,), (3,)), ((3, 4), (4,)), ((3, 4), (3, 1))])
def test_shapes_that_do_not_fit_are_refused(items, lengths):
    with pytest.raises(DataError, match="from_lists"):
        Context(torch.zeros(items, dtype=torch.int64), torch.zeros(lengths, dtype=torch.int64))


def test_rows_are_selected_and_repeated():
    context = Context.from_lists([[1], [2, 3], []], 2).index_select(torch.tensor([2, 1, 1]))
    assert context.items.tolist() == [[0, 0], [2, 3], [2, 3]]
    assert context.lengths.tolist() == [0, 2, 2]


def test_features_are_laid_out_as_documented():
    context = Context.from_lists([[3], [2, 3, 4]], 4)
    jagged = features(context, torch.tensor([[7, 5], [9, 1]]))
    assert jagged.keys() == ["history", "candidates"]
    assert jagged.values().tolist() == [3, 2, 3, 4, 7, 5, 9, 1]
    assert jagged.lengths().tolist() == [1, 3, 2, 2]


@given(histories, st.integers(0, 4))
def test_features_carry_what_torchrec_would_compute(lists, width):
    context = Context.from_lists(lists, 5)
    candidates = torch.arange(1, 1 + len(lists) * width).view(len(lists), width)
    ours = features(context, candidates)
    plain = KeyedJaggedTensor(keys=ours.keys(), values=ours.values(), lengths=ours.lengths())
    assert ours.stride() == plain.stride()
    assert ours.length_per_key() == plain.length_per_key()
    assert ours.offset_per_key() == plain.offset_per_key()
    for key in ("history", "candidates"):
        assert torch.equal(ours[key].values(), plain[key].values())
        assert torch.equal(ours[key].lengths(), plain[key].lengths())
    assert torch.equal(ours["candidates"].values().view(candidates.shape), candidates)


def test_features_without_candidates():
    jagged = features(Context.from_lists([[], [4, 2]], 3))
    assert jagged["history"].values().tolist() == [4, 2]
    assert jagged["candidates"].lengths().tolist() == [0, 0]


def test_a_moved_batch_brings_its_features_along():
    batch = Batch(Context.from_lists([[3], [2, 4]], 3), torch.tensor([[7], [9]]))
    moved = batch.to("cpu", non_blocking=True)
    assert isinstance(moved, Pipelineable)
    assert "features" in vars(moved), "a device would have to build the jagged form again"
    assert torch.equal(moved.features.values(), features(batch.context, batch.candidates).values())
    assert torch.equal(moved.context.items, batch.context.items)
    assert torch.equal(moved.candidates, batch.candidates)
    assert len(moved) == 2


def test_a_train_pipeline_takes_batches():
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.ones(()))

        def forward(self, batch):
            total = self.factor * batch.features.values().sum()
            return total, total.detach()

    model = Sum()
    pipeline = TrainPipelineBase(model, torch.optim.SGD(model.parameters(), 0.0), torch.device("cpu"))
    batches = iter([Batch(Context.from_lists([[n]], 2), torch.tensor([[10]])) for n in (1, 2)])
    assert [pipeline.progress(batches).item() for _ in range(2)] == [11.0, 12.0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_batch_reaches_a_gpu_through_pinned_memory():
    batch = Batch(Context.from_lists([[3], [2, 4]], 3), torch.tensor([[7], [9]])).pin_memory()
    assert batch.candidates.is_pinned()
    assert batch.context.items.is_pinned()
    moved = batch.to(torch.device("cuda"), non_blocking=True)
    moved.record_stream(torch.cuda.current_stream())
    assert moved.features.values().tolist() == [3, 2, 4, 7, 9]
