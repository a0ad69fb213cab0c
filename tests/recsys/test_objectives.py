import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, softplus

from persona.errors import ConfigError
from recsys import softmax
from recsys.data.batches import Context
from recsys.data.sequences import SequenceData
from recsys.evaluation import Evaluation
from recsys.hosts import HostConfig, make_host
from recsys.objectives import (
    SHARED,
    LossConfig,
    RowObjective,
    SequenceObjective,
    SoftmaxRowObjective,
    make_objective,
)
from recsys.personalised import Personalised
from recsys.seen import seen_counts
from tests.recsys.toy import ITEMS, personalised, sequences, walks

T = 5
DATA = walks(users=12, events=9)
TRAIN = np.flatnonzero(np.arange(DATA.n_events) % 9 > 0)  # every event with a past


def rows_of(config=None, data=DATA, positions=TRAIN, model=None, seed=3):
    validation = Evaluation(data, positions[:4], max_length=T)
    return RowObjective(model or personalised(), data, positions, validation, config or LossConfig(batch_size=16), seed)


def windows_of(data, positions, config=None, model=None, seed=3):
    validation = Evaluation(data, positions[:4], max_length=T)
    model = model or personalised(editor=False)
    return SequenceObjective(model, data, positions, validation, config or LossConfig(batch_size=4), seed)


def softmax_rows_of(data, positions, config, model):
    return SoftmaxRowObjective(model, data, positions, Evaluation(data, positions[:4], max_length=T), config, 3)


def numbered(lengths: list[int]) -> SequenceData:
    """Data where item i is the i-th event, so that items tell events apart."""
    events = np.arange(1, sum(lengths) + 1)
    ends = np.cumsum(lengths)
    return sequences([events[e - n : e].tolist() for e, n in zip(ends, lengths, strict=True)], n_items=sum(lengths) + 3)


def flat(batches):
    batches = list(batches)
    return torch.cat([b.candidates for b in batches]), torch.cat([b.context.items for b in batches])


def test_a_row_epoch_holds_every_training_position_once_with_its_own_context():
    candidates, contexts = flat(rows_of().batches(epoch=0))
    items, lengths = DATA.contexts(TRAIN, T)
    expected = sorted(zip(items.tolist(), DATA.items[TRAIN].tolist(), strict=True))
    assert sorted(zip(contexts.tolist(), candidates[:, 0].tolist(), strict=True)) == expected
    assert [len(b) for b in rows_of().batches(0)] == [16] * 6
    assert lengths.min() >= 1


def test_rows_and_negatives_are_fresh_each_epoch_and_the_same_for_seed_and_epoch():
    objective = rows_of()
    first, again, second = (flat(objective.batches(epoch))[0] for epoch in (0, 0, 1))
    other_seed = flat(rows_of(seed=4).batches(0))[0]
    assert torch.equal(first, again)
    for other in (second, other_seed):
        assert not torch.equal(first[:, 0], other[:, 0]), "rows are reshuffled"
        assert not torch.equal(first[:, 1:].sort(0).values, other[:, 1:].sort(0).values), "negatives are drawn anew"


def test_negatives_of_rows_were_never_touched_by_the_user():
    data = numbered([4, 9, 2])
    host = HostConfig.preset("gru4rec", "paper", data.n_items, dim=8, max_length=T)
    config = LossConfig(batch_size=7, negatives=9)
    objective = rows_of(config, data, np.array([1, 2, 3, 5, 6, 12, 14]), Personalised(make_host(host)))
    owner = np.append(data.user_of(np.arange(data.n_events)), [-1, -1, -1])  # of each item; three are nobody's
    for epoch in range(10):
        candidates = flat(objective.batches(epoch))[0].numpy()
        assert candidates.shape == (7, 10)
        users = owner[candidates - 1]
        assert (users[:, 1:] != users[:, :1]).all()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 40), min_size=2, max_size=4), min_size=1, max_size=4),
    st.integers(0, 99),
    st.integers(1, 40),
)
def test_targets_of_a_basket_share_its_context_and_every_target_comes_once(users, epoch, batch_size):
    times = [[moment for moment, size in enumerate(sizes) for _ in range(size)] for sizes in users]
    total = sum(len(own) for own in times)
    ends = np.cumsum([len(own) for own in times])
    histories = [list(range(end - len(own) + 1, end + 1)) for own, end in zip(times, ends, strict=True)]
    data = sequences(histories, times, n_items=total + 9)
    positions = np.flatnonzero(data.basket_start > data.offsets[data.user_of(np.arange(total))])
    host = HostConfig.preset("gru4rec", "paper", data.n_items, dim=8, max_length=T)
    objective = rows_of(LossConfig(batch_size=batch_size), data, positions, Personalised(make_host(host)))
    seen = []
    for batch in objective.batches(epoch):
        shared = batch.candidates.shape[1] // 5
        assert shared in (1, 2, 4, 8, SHARED)
        assert len(batch) * shared <= max(batch_size, shared)
        targets = batch.candidates.view(len(batch), shared, 5)[:, :, 0].numpy()
        for context, length, row in zip(batch.context.items, batch.context.lengths, targets - 1, strict=True):
            items, lengths = data.contexts(row, T)
            assert (items == context.numpy()).all(), "what was known before each of the targets"
            assert (lengths == length.item()).all()
        seen += (targets.reshape(-1) - 1).tolist()
    assert sorted(seen) == positions.tolist()


@pytest.mark.parametrize("loss", ["bce", "sampled_softmax", "gbce"])
def test_the_row_loss_is_the_mean_over_rows_computed_one_by_one(loss):
    model = personalised(learned=True)
    config = LossConfig(loss, negatives=3, batch_size=8)
    objective = rows_of(config, model=model)
    batch = next(iter(objective.batches(0)))
    singles = []
    for row in range(len(batch)):
        scores = model.score(batch.context.index_select(torch.tensor([row])), batch.candidates[row : row + 1])[0]
        singles.append(reference_loss(loss, scores[0], scores[1:]))
    assert objective.loss(batch).item() == pytest.approx(torch.stack(singles).mean().item(), abs=1e-6)


def reference_loss(loss, positive, negatives, n_items=ITEMS):
    if loss == "sampled_softmax":
        return cross_entropy(torch.cat([positive.view(1), negatives])[None], torch.tensor([0]))
    alpha = len(negatives) / (n_items - 1)
    weight = 1.0 if loss == "bce" else 1 - 0.75 * (1 - alpha)
    return (weight * softplus(-positive) + softplus(negatives).sum()) / (1 + len(negatives))


histories = st.lists(st.integers(2, 23), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None)
@given(histories, st.integers(0, 1000), st.integers(1, 5), st.floats(0.1, 1.0))
def test_windows_hold_every_training_position_once_and_only_the_past(lengths, epoch, batch_size, share):
    data = numbered(lengths)
    has_past = np.setdiff1d(np.arange(data.n_events), data.offsets[:-1])
    positions = has_past[np.random.default_rng(epoch).random(len(has_past)) < share]
    if not len(positions):
        positions = has_past[:1]
    seen = []
    host = HostConfig.preset("gru4rec", "paper", data.n_items, dim=8, max_length=T)
    model = Personalised(make_host(host))
    for batch in windows_of(data, positions, LossConfig(batch_size=batch_size), model).batches(epoch):
        items, lengths_, targets = batch.context.items, batch.context.lengths, batch.targets
        assert items.shape == targets.shape == (len(lengths_), lengths_.max()), "no padding beyond the longest"
        assert lengths_.min() >= 1
        assert lengths_.max() <= T
        assert (targets > 0).any(dim=1).all(), "every window teaches something"
        for context, length, target in zip(items.tolist(), lengths_.tolist(), targets.tolist(), strict=True):
            assert context[length:] == [0] * (len(context) - length)
            assert context[:length] == list(range(context[0], context[0] + length)), "consecutive events"
            assert len(set(data.user_of(np.array(context[:length]) - 1))) == 1, "of one user"
            for place, item in enumerate(target):
                if item:
                    assert item == context[place] + 1, "the next event, right after what is known"
                    assert data.user_of(np.array([item - 1])) == data.user_of(np.array([context[0] - 1]))
                    seen.append(item - 1)
    assert sorted(seen) == positions.tolist()


def in_baskets(users: list[list[int]]) -> SequenceData:
    """Data where item i is the i-th event, of users whose baskets have these sizes."""
    times = [[moment for moment, size in enumerate(sizes) for _ in range(size)] for sizes in users]
    ends = np.cumsum([len(own) for own in times])
    histories = [list(range(end - len(own) + 1, end + 1)) for own, end in zip(times, ends, strict=True)]
    return sequences(histories, times, n_items=int(ends[-1]) + 9)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 9), min_size=2, max_size=6), min_size=1, max_size=4),
    st.integers(0, 99),
    st.integers(1, 5),
)
def test_windows_ask_for_each_target_after_the_last_event_before_its_basket(users, epoch, batch_size):
    data = in_baskets(users)
    positions = np.flatnonzero(data.basket_start > data.offsets[data.user_of(np.arange(data.n_events))])
    host = HostConfig.preset("gru4rec", "paper", data.n_items, dim=8, max_length=T)
    objective = windows_of(data, positions, LossConfig(batch_size=batch_size), Personalised(make_host(host)))
    seen = []
    for batch in objective.batches(epoch):
        assert batch.context.lengths.min() >= 1
        assert batch.context.items.shape[1] == batch.context.lengths.max() <= T
        for row, column in batch.targets.nonzero().tolist():
            position = int(batch.targets[row, column]) - 1
            state = int(batch.states[row, column])
            assert batch.context.items[row, state] == data.basket_start[position], "item i is event i - 1"
            assert state < batch.context.lengths[row]
            seen.append(position)
    assert sorted(seen) == positions.tolist()


@pytest.mark.parametrize("loss", ["bce", "sampled_softmax", "softmax"])
def test_the_sequence_loss_with_baskets_is_the_mean_over_targets_with_the_context_that_rows_have(loss):
    data = in_baskets([[2, 3, 1], [1, 1]])
    positions = np.array([2, 3, 4, 5, 7])
    host = HostConfig.preset("gru4rec", "paper", data.n_items, dim=8, max_length=9)
    torch.manual_seed(0)
    model = Personalised(make_host(host)).eval()
    model.host.embedding.embeddings["item"].weight.data.mul_(20)
    objective = windows_of(data, positions, LossConfig(loss, negatives=6, batch_size=9), model)
    [batch] = objective.batches(0)
    rivals = torch.from_numpy(np.arange(1, 9)) if loss == "softmax" else batch.negatives
    singles = []
    for position in positions:
        context = Context(*map(torch.from_numpy, data.contexts(np.array([position]), 9)))
        target = torch.tensor([int(data.items[position])])
        scores = model.score(context, torch.cat([target, rivals[rivals != target]])[None])[0]
        missing = int((rivals == target).sum()) if loss != "softmax" else 0
        padded = torch.cat([scores[1:], torch.full((missing,), -torch.inf)])
        singles.append(
            reference_loss("sampled_softmax" if loss == "softmax" else loss, scores[0], padded, data.n_items)
        )
    assert objective.loss(batch).item() == pytest.approx(torch.stack(singles).mean().item(), abs=1e-6)


def test_windows_of_long_users_start_anywhere():
    data = numbered([60])
    objective = windows_of(data, np.arange(1, 60))
    starts = {
        start for epoch in range(60) for b in objective.batches(epoch) for start in b.context.items[:, 0].tolist()
    }
    assert starts == set(range(1, 60)), "windows move from epoch to epoch"
    first, again = (torch.cat([b.targets.flatten() for b in objective.batches(7)]) for _ in range(2))
    assert torch.equal(first, again)


def test_batches_hold_windows_of_similar_length_in_random_order():
    data = numbered([2, T + 1] * 32)
    host = HostConfig.preset("gru4rec", "paper", data.n_items, dim=8, max_length=T)
    positions = np.setdiff1d(np.arange(data.n_events), data.offsets[:-1])
    objective = windows_of(data, positions, LossConfig(batch_size=8), Personalised(make_host(host)))
    orders = [[b.context.lengths.unique().tolist() for b in objective.batches(epoch)] for epoch in range(5)]
    for lengths in orders:
        assert sorted(lengths) == [[1]] * 4 + [[T]] * 4, "nothing is padded"
    assert any(lengths != sorted(lengths) for lengths in orders)


def test_batches_under_the_softmax_have_about_as_many_targets_whatever_the_lengths():
    data = numbered([2, 30] * 40)
    host = HostConfig.preset("gru4rec", "paper", data.n_items, dim=8, max_length=T)
    positions = np.setdiff1d(np.arange(data.n_events), data.offsets[:-1])
    objective = windows_of(data, positions, LossConfig("softmax", batch_size=20), Personalised(make_host(host)))
    counts = [int((batch.targets > 0).sum()) for batch in objective.batches(0)]
    assert sum(counts) == len(positions)
    assert max(counts) < 20 + T
    assert np.median(counts) >= 16


def test_windows_and_their_negatives_are_fresh_each_epoch():
    objective = windows_of(DATA, TRAIN)
    one, two = (torch.cat([b.negatives for b in objective.batches(epoch)]) for epoch in (0, 1))
    assert not torch.equal(one, two)
    assert one.min() >= 1
    assert one.max() <= ITEMS


@pytest.mark.parametrize(
    ("loss", "negatives"), [("bce", 6), ("sampled_softmax", 6), ("gbce", 6), ("bce", ITEMS), ("sampled_softmax", ITEMS)]
)
def test_the_sequence_loss_is_the_mean_over_positions_computed_one_by_one(loss, negatives):
    """Contexts end where the target stands, so the shared state is exactly the one a row would have."""
    model = personalised(editor=False)
    objective = windows_of(DATA, TRAIN, LossConfig(loss, negatives=negatives), model)
    batch = next(iter(objective.batches(0)))
    singles, clashes = [], 0
    for row, column in batch.targets.nonzero().tolist():
        target = batch.targets[row, column]
        short = type(batch.context)(batch.context.items[row : row + 1], torch.tensor([column + 1]))
        short = type(short)(short.items * short.mask, short.lengths)
        candidates = torch.cat([target.view(1), batch.negatives])
        scores = model.score(short, candidates[None])[0]
        scores[1:][batch.negatives == target] = -torch.inf  # the target is no negative of its own
        clashes += int((batch.negatives == target).sum())
        singles.append(reference_loss(loss, scores[0], scores[1:]))
    assert clashes > 0, "a case worth testing"
    assert objective.loss(batch).item() == pytest.approx(torch.stack(singles).mean().item(), abs=1e-6)


def test_a_negative_that_is_the_target_gets_no_gradient():
    model = personalised(editor=False)
    objective = windows_of(sequences([[1, 2]]), np.array([1]), LossConfig(negatives=3), model)
    [batch] = objective.batches(0)
    free = torch.tensor([7, 8, 9])
    losses, gradients = [], []
    for negatives in (torch.cat([free, torch.tensor([2])]), torch.cat([free, torch.tensor([2, 2])])):
        model.zero_grad()
        loss = objective.loss(type(batch)(batch.context, batch.targets, negatives))
        (loss * (1 + len(negatives))).backward()
        losses.append(loss.item() * (1 + len(negatives)))
        gradients.append(model.host.embedding.embeddings["item"].weight.grad.clone())
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-7, rtol=0)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_the_softmax_meets_the_items_seen_and_none_of_the_future():
    """Users learn from their first five events; what only comes later is no rival."""
    data = numbered([9, 7])
    positions = np.array([1, 2, 3, 4, 10, 11])
    host = HostConfig.preset("gru4rec", "paper", data.n_items, dim=8, max_length=T)
    model = Personalised(make_host(host))
    for make in (windows_of, softmax_rows_of):
        objective = make(data, positions, LossConfig("softmax", batch_size=4), model)
        assert objective.competitors.items.tolist() == [1, 2, 3, 4, 5, 10, 11, 12]
        model.zero_grad()
        sum(objective.loss(batch) for batch in objective.batches(0)).backward()
        moved = model.host.embedding.embeddings["item"].weight.grad.abs().sum(1) > 0
        assert moved.nonzero().flatten().tolist() == [1, 2, 3, 4, 5, 10, 11, 12]


@pytest.mark.parametrize("learned", [False, True])
def test_rows_under_the_softmax_meet_all_items_with_the_edit_of_their_own_context(learned):
    model = personalised(learned=learned)
    objective = softmax_rows_of(DATA, TRAIN, LossConfig("softmax", batch_size=16), model)
    batch = next(iter(objective.batches(0)))
    scores = model.score_catalogue(batch.context)[:, objective.competitors.items]
    place = {item: i for i, item in enumerate(objective.competitors.items.tolist())}
    targets = torch.tensor([place[item] for item in batch.targets[:, 0].tolist()])
    assert objective.loss(batch).item() == pytest.approx(cross_entropy(scores, targets).item(), abs=1e-6)


@pytest.mark.parametrize("kind", ["rows", "windows"])
def test_a_catalogue_that_is_too_large_is_met_by_negatives_drawn_by_frequency(kind, monkeypatch):
    monkeypatch.setattr(softmax, "EXACT_ITEMS", 10)
    model = personalised(editor=kind == "rows", learned=True)
    exact = make_objective(model, DATA, TRAIN, None, LossConfig("softmax", batch_size=200), 0)
    sampled = make_objective(model, DATA, TRAIN, None, LossConfig("softmax", 20_000, batch_size=200), 0)
    assert not sampled.competitors.exact
    monkeypatch.setattr(softmax, "EXACT_ITEMS", 100)
    exact = make_objective(model, DATA, TRAIN, None, LossConfig("softmax", batch_size=200), 0)
    [batch], [whole] = sampled.batches(0), exact.batches(0)
    counts = seen_counts(DATA, TRAIN)
    drawn = torch.bincount(batch.negatives, minlength=ITEMS + 1).numpy()
    assert np.corrcoef(drawn, counts**0.75)[0, 1] > 0.98
    # Rows come in another order: means over all targets, whose negatives are enough to be near the exact softmax.
    assert sampled.loss(batch).item() == pytest.approx(exact.loss(whole).item(), abs=0.02)


def test_the_softmax_refuses_a_host_that_scores_candidates_by_themselves():
    with pytest.raises(ConfigError, match=r"din scores every candidate by itself.*choose --loss sampled_softmax"):
        rows_of(LossConfig("softmax"), model=personalised("din"))


def test_a_config_with_sequences_trains_an_editor_on_rows_all_the_same():
    config = LossConfig(sequences=True)
    validation = Evaluation(DATA, TRAIN, max_length=T)
    for editor, kind in ((True, RowObjective), (False, SequenceObjective)):
        objective = make_objective(personalised(editor=editor), DATA, TRAIN, validation, config, 0)
        assert type(objective) is kind
    config = LossConfig("softmax", sequences=True)
    assert type(make_objective(personalised(), DATA, TRAIN, validation, config, 0)) is SoftmaxRowObjective


@pytest.mark.parametrize(
    ("model", "data", "sentence"),
    [
        (personalised("din", editor=False), DATA, "din with .* cannot train whole sequences: use rows"),
        (personalised(), DATA, "cannot train whole sequences: use rows"),
    ],
    ids=["attention to the target", "an editor"],
)
def test_what_cannot_train_whole_sequences_is_refused(model, data, sentence):
    with pytest.raises(ConfigError, match=sentence):
        windows_of(data, np.array([1, 2]), model=model)


def test_an_unknown_metric_to_select_by_is_refused():
    objective = rows_of(LossConfig(monitor="uac"))
    with pytest.raises(ConfigError, match="unknown metric 'uac': did you mean 'uauc'"):
        objective.validate()


def test_validation_is_the_evaluation_of_the_model():
    objective = rows_of()
    assert objective.monitor == "uauc"
    assert objective.validate() == objective.validation.run(objective.model).summary


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [({"loss": "bpr"}, "unknown loss 'bpr'"), ({"negatives": 0}, "at least 1"), ({"batch_size": -1}, "at least 1")],
)
def test_settings_out_of_range_are_refused(wrong, sentence):
    with pytest.raises(ConfigError, match=sentence):
        LossConfig(**wrong)


def test_fine_tuning_on_later_events_leaves_no_batch_without_a_target():
    data = numbered([23] * 3)
    later = np.concatenate([np.arange(end - 3, end) for end in data.offsets[1:]])
    host = HostConfig.preset("gru4rec", "paper", data.n_items, dim=8, max_length=T)
    objective = windows_of(data, later, LossConfig(batch_size=1), Personalised(make_host(host)))
    assert all(torch.isfinite(objective.loss(batch)) for epoch in range(5) for batch in objective.batches(epoch))
