import pytest
import torch
from torch.nn import functional

from persona.errors import ConfigError
from recsys import losses
from recsys.losses import bce, gbce, sampled_softmax, softmax


def logits(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def split_loss(loss):
    """The loss as a function of (..., 1+N) logits."""
    return lambda x, mask=None: bce(x, mask) if loss is bce else loss(x[..., 0], x[..., 1:], mask=mask)


def gbce_of_hundred(positive, negatives, mask=None):
    return gbce(positive, negatives, catalogue=100, mask=mask)


LOSSES = pytest.mark.parametrize("loss", [bce, sampled_softmax, gbce_of_hundred])


def test_bce_is_the_mean_over_all_entries():
    x = logits(5, 4)
    direct = -(x[:, 0].sigmoid().log().sum() + (1 - x[:, 1:].sigmoid()).log().sum()) / x.numel()
    torch.testing.assert_close(bce(x), direct)


def test_sampled_softmax_is_the_log_share_of_the_positive():
    x = logits(3, 4, 6)
    direct = -x.softmax(-1)[..., 0].log().mean()
    torch.testing.assert_close(sampled_softmax(x[..., 0], x[..., 1:]), direct)


def test_the_softmax_over_all_items_and_its_gradients_are_those_of_cross_entropy_whatever_the_blocks(monkeypatch):
    users, items, targets = logits(7, 3), logits(5, 3, seed=1), torch.tensor([0, 4, 4, 2, 1, 3, 0])
    made = []
    for scores in (1 << 20, 12, 1):
        monkeypatch.setattr(losses, "SCORES", scores)
        ours = [tensor.clone().requires_grad_() for tensor in (users, items)]
        loss = softmax(*ours, targets)
        (3 * loss).backward()
        made.append([loss.detach(), *(tensor.grad for tensor in ours)])
    plain = [tensor.clone().requires_grad_() for tensor in (users, items)]
    direct = functional.cross_entropy(plain[0] @ plain[1].T, targets)
    (3 * direct).backward()
    for found in made:
        torch.testing.assert_close(found, [direct.detach(), *(tensor.grad for tensor in plain)])


def test_the_softmax_makes_no_gradient_of_fixed_items():
    users, items = logits(2, 3).requires_grad_(), logits(5, 3, seed=1)
    softmax(users, items, torch.tensor([0, 1])).backward()
    assert items.grad is None
    assert users.grad is not None


def test_corrected_negatives_stand_for_all_items_in_expectation():
    """exp(s) / (N q) summed over N draws by q is, in expectation, the sum of exp(s) over all items."""
    scores, shares, count = logits(6), torch.tensor([0.4, 0.3, 0.1, 0.1, 0.05, 0.05], dtype=torch.float64), 20_000
    drawn = torch.multinomial(shares, count, replacement=True, generator=torch.Generator().manual_seed(0))
    expected = (shares * count).log()[drawn]
    found = sampled_softmax(scores[:1], scores[drawn].unsqueeze(0), log_expected=expected)
    exact = (scores.exp().sum() + scores[0].exp()).log() - scores[0]
    torch.testing.assert_close(found, exact, atol=0.02, rtol=0)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.75, 1.0])
@pytest.mark.parametrize("n_negatives", [1, 16, 99])
def test_gbce_agrees_with_the_published_formula(t, n_negatives):
    catalogue = 100
    x = logits(7, 1 + n_negatives)
    alpha = n_negatives / (catalogue - 1)
    beta = alpha * (t * (1 - 1 / alpha) + 1 / alpha)
    positive = (x[:, 0].sigmoid() ** beta).log()
    negatives = (1 - x[:, 1:].sigmoid()).log()
    direct = -(positive + negatives.sum(-1)) / (1 + n_negatives)
    torch.testing.assert_close(gbce(x[:, 0], x[:, 1:], catalogue, t), direct.mean())


def test_gbce_is_bce_without_calibration_or_with_all_negatives():
    x = logits(7, 5)
    torch.testing.assert_close(gbce(x[:, 0], x[:, 1:], catalogue=1000, t=0.0), bce(x))
    torch.testing.assert_close(gbce(x[:, 0], x[:, 1:], catalogue=5, t=1.0), bce(x))


def test_gbce_at_full_calibration_learns_the_true_probability():
    """With negatives sampled at rate alpha, the minimum of gbce at t = 1 is the probability under all negatives."""
    catalogue, n_negatives, probability = 41, 4, 0.2
    score = torch.zeros((), dtype=torch.float64, requires_grad=True)
    # In expectation an item is the positive with p, and is drawn as a negative with (1 - p) * alpha.
    alpha = n_negatives / (catalogue - 1)
    weight_positive, weight_negative = probability, (1 - probability) * alpha
    far = torch.full((1, n_negatives), -50.0, dtype=torch.float64)
    optimiser = torch.optim.LBFGS([score], max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        as_positive = gbce(score.view(1), far, catalogue, t=1.0)
        as_negative = gbce(
            torch.full((1,), 50.0).double(), torch.cat([score.view(1, 1), far[:, 1:]], -1), catalogue, 1.0
        )
        loss = weight_positive * as_positive + weight_negative * as_negative
        loss.backward()
        return loss

    optimiser.step(closure)
    assert score.sigmoid().item() == pytest.approx(probability, abs=1e-4)


@LOSSES
def test_gradients_match_finite_differences(loss):
    x = logits(3, 5).requires_grad_()
    mask = torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64)
    assert torch.autograd.gradcheck(split_loss(loss), (x,))
    assert torch.autograd.gradcheck(lambda v: split_loss(loss)(v, mask), (x,))


@LOSSES
def test_losses_and_gradients_stay_finite_for_huge_logits(loss):
    x = (logits(4, 3).float() * 1e4).requires_grad_()
    value = split_loss(loss)(x)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(x.grad).all()


@LOSSES
def test_masked_positions_count_for_nothing(loss):
    """Sequence-parallel training: (B, T) positions, padding masked."""
    x = logits(2, 3, 5).requires_grad_()
    mask = torch.tensor([[True, True, False], [True, False, False]])
    value = split_loss(loss)(x, mask)
    torch.testing.assert_close(value, split_loss(loss)(x[mask]))
    value.backward()
    assert (x.grad[~mask] == 0).all()
    assert (x.grad[mask] != 0).all()


@LOSSES
def test_weights_are_relative(loss):
    x = logits(2, 5)
    weighted = split_loss(loss)(x, torch.tensor([3.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(weighted, split_loss(loss)(x[[0, 0, 0, 1]]))


@LOSSES
def test_a_batch_of_padding_costs_nothing(loss):
    x = logits(2, 5).requires_grad_()
    value = split_loss(loss)(x, torch.zeros(2))
    value.backward()
    assert value.item() == 0
    assert (x.grad == 0).all()


@LOSSES
def test_a_better_positive_costs_less(loss):
    x = logits(6, 5)
    better = x + functional.one_hot(torch.tensor(0), 5)
    assert split_loss(loss)(better) < split_loss(loss)(x)


@pytest.mark.parametrize("t", [-0.1, 1.1, float("nan")])
def test_gbce_refuses_a_calibration_outside_its_range(t):
    with pytest.raises(ConfigError, match=r"calibration t of gbce must lie in 0\.\.1"):
        gbce(logits(2), logits(2, 3), catalogue=10, t=t)


@pytest.mark.parametrize("n_negatives", [0, 10])
def test_gbce_refuses_more_negatives_than_there_are_items(n_negatives):
    with pytest.raises(ConfigError, match="gbce needs 1 to 9 negatives with 10 items"):
        gbce(logits(2), logits(2, n_negatives), catalogue=10)
