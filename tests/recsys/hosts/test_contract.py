"""What every recommender of every preset keeps."""

import pytest
import torch
from torch import nn

from persona.edits import Edit
from persona.errors import MismatchError
from recsys.data.batches import Context, features
from recsys.hosts import Host, State, make_host
from tests.contract import HostContract, cases
from tests.recsys.hosts.common import (
    CASES,
    HISTORIES,
    ITEMS,
    SMALL,
    candidates,
    context,
    random_edit,
    small_config,
    small_host,
)

B, T, V = len(HISTORIES), SMALL["max_length"], ITEMS
# Matrix products of other shapes add in another order: float32 rounding of logits of order 1.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


case = cases(CASES)


@pytest.fixture
def host(case) -> Host:
    return small_host(*case)


class TestRecommenders(HostContract):
    devices, close, moved, rate, steps = B, CLOSE, 1e-3, 1e-2, 1
    everywhere = False  # an empty history is a zero state
    make, edit = staticmethod(small_host), staticmethod(random_edit)

    def answer(self, host, edit=None, rows=slice(None)):
        state = host.encode(context().index_select(torch.arange(B)[rows]))
        return host.score(state, candidates()[rows], edit)

    def loss(self, host, step):
        logits = host(features(context(), candidates()))
        return nn.functional.binary_cross_entropy_with_logits(logits, torch.eye(1, 6).expand(B, -1))

    def device_inputs(self):
        one = [context([history]) for history in ([4, 5, 6], [9], [], list(range(1, 9)))]
        return [(c.items, c.lengths, candidates(1, seed=seed)) for seed, c in enumerate(one)]

    def device_outputs(self, host, inputs, edit):
        items, lengths, wanted = inputs
        return host.score(host.encode(Context(items, lengths)), wanted, edit)


def scores(host: Host, edit: Edit | None = None) -> torch.Tensor:
    return host.score(host.encode(context()), candidates(), edit)


def test_shapes(host):
    state = host.encode(context())
    assert isinstance(state, State)
    assert len(state) == B
    assert host.context_features(context()).shape == (B, T, host.context_dim)
    assert host.score(state, candidates()).shape == (B, 6)
    assert host.score(state, candidates()[0]).shape == (B, 6)
    assert host.score_catalogue(state).shape == (B, V + 1)
    assert host.item_vectors().shape == (V + 1, host.config.dim)
    assert host(features(context(), candidates())).shape == (B, 6)


def test_rows_and_items_differ(host):
    """Guards the other tests: equalities between constant scores would prove nothing."""
    state = host.encode(context())
    assert host.score(state, candidates()).std() > 1e-3
    shared = host.score(state, candidates()[0])
    assert shared.std(dim=0).min() > 1e-4
    assert shared.std(dim=1).min() > 1e-4


@pytest.mark.parametrize("batch", [1, B])
def test_a_zero_edit_leaves_catalogue_and_training_as_they_were(host, batch):
    zero = Edit.zeros(host.adaptive.specs, batch)
    state, jagged = host.encode(context()), features(context(), candidates())
    assert torch.equal(host.score_catalogue(state, zero), host.score_catalogue(state))
    assert torch.equal(host(jagged, zero), host(jagged))


def test_candidates_shared_by_all_rows(host):
    state, shared = host.encode(context()), candidates()[0]
    edit = random_edit(host, B)
    torch.testing.assert_close(host.score(state, shared, edit), host.score(state, shared.expand(B, -1), edit), **CLOSE)


def test_one_state_serves_many_edits(host):
    edit = random_edit(host, 3)
    state = host.encode(context([[5, 6, 7]]))
    many = host.score(state.expand(3), candidates()[0], edit)
    for i in range(3):
        torch.testing.assert_close(many[i : i + 1], host.score(state, candidates()[0], edit[i]), **CLOSE)


@pytest.mark.parametrize("edited", [False, True])
def test_the_catalogue_is_scored_like_candidates(host, edited):
    edit = random_edit(host, B) if edited else None
    state = host.encode(context())
    catalogue = host.score_catalogue(state, edit)
    assert torch.equal(catalogue[:, 0], torch.full((B,), float("-inf")))
    everything = torch.arange(1, V + 1).expand(B, V)
    torch.testing.assert_close(catalogue[:, 1:], host.score(state, everything, edit), **CLOSE)
    assert torch.equal(host.score_catalogue(state, edit, item_vectors=host.item_vectors()), catalogue)


def test_the_training_path_equals_encode_and_score(host):
    edit = random_edit(host, B)
    torch.testing.assert_close(host(features(context(), candidates())), scores(host), **CLOSE)
    torch.testing.assert_close(host(features(context(), candidates()), edit), scores(host, edit), **CLOSE)


def test_the_training_path_looks_up_once(host):
    calls = []
    host.embedding.register_forward_hook(lambda *_: calls.append(1))
    host(features(context(), candidates()))
    assert len(calls) == 1


def test_padding_is_never_read(host):
    clean = context()
    noise = torch.randint(1, V + 1, clean.items.shape)
    dirty = Context(torch.where(clean.mask, clean.items, noise), clean.lengths)
    assert not torch.equal(dirty.items, clean.items)
    assert torch.equal(host.score(host.encode(dirty), candidates()), scores(host))


def test_a_row_does_not_depend_on_its_neighbours(host):
    edit = random_edit(host, B)
    together = scores(host, edit)
    order = torch.tensor([4, 2, 0, 3, 1])
    state = host.encode(context().index_select(order))
    torch.testing.assert_close(host.score(state, candidates()[order], edit[order]), together[order], **CLOSE)
    selected = host.encode(context()).index_select(order)
    torch.testing.assert_close(host.score(selected, candidates()[order], edit[order]), together[order], **CLOSE)


def test_a_narrower_context_gives_the_same_scores(host):
    short = [[3], [9, 8]]
    wide, narrow = context(short), context(short, length=2)
    torch.testing.assert_close(
        host.score(host.encode(narrow), candidates(2)), host.score(host.encode(wide), candidates(2)), **CLOSE
    )


def test_a_history_longer_than_the_host_reads_keeps_its_end(host):
    long = list(range(1, 31))
    kept = host.encode(context([long]))
    assert torch.equal(host.score_catalogue(kept), host.score_catalogue(host.encode(context([long[-T:]]))))
    assert not torch.allclose(
        host.score_catalogue(kept)[:, 1:], host.score_catalogue(host.encode(context([long[:T]])))[:, 1:]
    )


def test_a_context_wider_than_the_host_reads_is_refused(host):
    wide = context([[1, 2]], length=T + 1)
    for call in (host.encode, host.context_features):
        with pytest.raises(MismatchError, match=f"holds {T + 1} items a row, but the host reads at most {T}"):
            call(wide)


def test_the_order_of_a_history_matters_where_the_host_follows_it(host):
    forth, back = (host.score_catalogue(host.encode(context([h])))[:, 1:] for h in ([1, 2, 3], [3, 2, 1]))
    # DIN's attention is a set function, as published.
    assert torch.allclose(forth, back, **CLOSE) == (host.config.kind == "din")


def test_no_history_gives_finite_scores_and_gradients(host):
    empty = context([[], []])
    catalogue = host.score_catalogue(host.encode(empty))
    assert torch.isfinite(catalogue[:, 1:]).all()
    torch.testing.assert_close(catalogue[0], catalogue[1], **CLOSE)
    host(features(empty, candidates(2))).square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in host.parameters() if p.grad is not None)


def test_the_state_and_the_context_do_not_depend_on_adaptive_layers(host):
    before, read = host.encode(context()), host.context_features(context())
    vectors = host.item_vectors()
    for parameter in host.adaptive_parameters():
        parameter.data.normal_()
    after = host.encode(context())
    for name in vars(before):
        assert torch.equal(getattr(before, name), getattr(after, name))
    assert torch.equal(host.context_features(context()), read)
    assert torch.equal(host.item_vectors(), vectors)


def test_dropout_acts_in_training_only(host):
    assert torch.equal(scores(host), scores(host))
    host.train()
    assert torch.equal(scores(host), scores(host)) == (host.config.dropout == 0)


def test_linear_layers_keep_the_size_of_signals():
    host = make_host(small_config("sasrec", "paper"))
    limit = (6 / (8 + 8)) ** 0.5
    for layer in host.adaptive.layers.values():
        assert 0.8 * limit < layer.weight.abs().max() <= limit
        assert not layer.bias.any()


def test_the_padding_row_is_zero_and_embeddings_start_small():
    host = make_host(small_config("sasrec", "paper"))
    weight = host.embedding.embeddings["item"].weight
    assert weight.shape == (V + 1, 8)
    assert torch.equal(weight[0], torch.zeros(8))
    assert 0.015 < weight[1:].std() < 0.025
