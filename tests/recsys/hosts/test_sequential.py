"""What GRU4Rec and SASRec keep beyond the contract."""

import pytest
import torch

from persona.errors import MismatchError
from recsys.data.batches import Context, features
from recsys.hosts import SequentialHost, make_host
from recsys.hosts.config import HostConfig
from tests.recsys.hosts.common import CASES, HISTORIES, SMALL, candidates, context, random_edit, small_host

B, T = len(HISTORIES), SMALL["max_length"]
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(params=[case for case in CASES if case[0] != "din"], ids="-".join)
def host(request) -> SequentialHost:
    host = small_host(*request.param)
    assert isinstance(host, SequentialHost)
    return host


def _states(host, context):
    """States (B, T, d) after every item of a context."""
    return host.encode_positions(host.context_features(context))


def test_the_encoded_context_is_the_last_valid_position(host):
    positions, users = _states(host, context()), host.encode(context()).users
    assert positions.shape == (B, T, host.config.dim)
    for row, history in enumerate(HISTORIES):
        expected = positions[row, len(history) - 1] if history else torch.zeros(host.config.dim)
        torch.testing.assert_close(users[row], expected, **CLOSE)


def test_every_position_is_the_context_that_ends_there(host):
    history = [4, 8, 15, 16, 23]
    positions = _states(host, context([history]))[0]
    prefixes = host.encode(context([history[: n + 1] for n in range(len(history))])).users
    torch.testing.assert_close(positions[: len(history)], prefixes, **CLOSE)


def test_no_position_sees_a_later_item(host):
    items = torch.tensor([[1, 2, 3, 4, 5, 6, 7]])
    changed = items.clone()
    changed[0, 4] = 33
    lengths = torch.tensor([7])
    before, after = (_states(host, Context(i, lengths))[0] for i in (items, changed))
    torch.testing.assert_close(before[:4], after[:4], **CLOSE)
    assert (before[4:] - after[4:]).abs().amax(dim=1).min() > 1e-4


def test_scores_are_dot_products_of_user_and_target_vectors(host):
    edit = random_edit(host, B)
    state = host.encode(context())
    users, targets = host.user_vectors(state.users, edit), host.target_vectors(candidates())
    expected = torch.einsum("bd,bcd->bc", users, targets)
    torch.testing.assert_close(host.score(state, candidates(), edit), expected, **CLOSE)
    torch.testing.assert_close(host.item_vectors()[candidates()], targets, **CLOSE)


def test_the_head_takes_whole_sequences(host):
    edit = random_edit(host, B)
    positions = _states(host, context())
    vectors = host.user_vectors(positions, edit)
    assert vectors.shape == positions.shape
    torch.testing.assert_close(vectors[:, 2], host.user_vectors(positions[:, 2], edit), **CLOSE)


def test_the_sequence_path_equals_its_parts(host):
    users, targets = host.forward_sequence(features(context(), candidates()))
    mask = context().mask
    torch.testing.assert_close(users[mask], host.user_vectors(_states(host, context()))[mask], **CLOSE)
    torch.testing.assert_close(targets, host.target_vectors(candidates()), **CLOSE)


def test_a_sequence_longer_than_the_host_reads_is_refused(host):
    with pytest.raises(MismatchError, match="from_lists"):
        _states(host, context([[1]], length=T + 1))


@pytest.mark.parametrize("kind", ["gru4rec", "sasrec"])
def test_more_blocks_are_more_parameters_and_still_causal(kind):
    torch.manual_seed(0)
    one, three = (make_host(HostConfig.preset(kind, "paper", 9, blocks=n)).eval() for n in (1, 3))
    assert sum(p.numel() for p in three.parameters()) > sum(p.numel() for p in one.parameters())
    history = [1, 2, 3, 4]
    whole, part = (_states(three, Context.from_lists([h], 10))[0, :2] for h in (history, history[:2]))
    torch.testing.assert_close(whole, part, **CLOSE)
