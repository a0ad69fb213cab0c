import pytest
import torch

from persona.edits import Edit
from recsys.data.batches import Context, features
from recsys.personalised import Personalised
from tests.recsys.toy import ITEMS, personalised

KINDS = ("din", "gru4rec", "sasrec")
CONTEXT = Context.from_lists([[3], [7, 1, 30, 2, 2], [12, 12], list(range(1, 6))], 5)
CANDIDATES = torch.randint(1, ITEMS + 1, (4, 6), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", KINDS)
def test_an_untrained_editor_is_the_host_bit_for_bit(kind):
    model = personalised(kind)
    host = Personalised(model.host)
    assert torch.equal(model.score(CONTEXT, CANDIDATES), host.score(CONTEXT, CANDIDATES))
    assert torch.equal(model.score_catalogue(CONTEXT), host.score_catalogue(CONTEXT))
    assert torch.equal(model(features(CONTEXT, CANDIDATES)), host(features(CONTEXT, CANDIDATES)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("learned", [True, False])
def test_training_and_serving_compute_the_same_scores(kind, learned):
    model = personalised(kind, editor=learned, learned=learned)
    trained = model(features(CONTEXT, CANDIDATES))
    served = model.score(CONTEXT, CANDIDATES)
    torch.testing.assert_close(trained, served, rtol=1e-5, atol=1e-6)
    everything = model.score_catalogue(CONTEXT)
    torch.testing.assert_close(everything.gather(1, CANDIDATES), served, rtol=1e-5, atol=1e-6)
    assert torch.isneginf(everything[:, 0]).all()


def test_a_learned_editor_changes_the_scores_of_each_row_by_its_own_context():
    model = personalised(learned=True)
    scores, host = model.score(CONTEXT, CANDIDATES), Personalised(model.host).score(CONTEXT, CANDIDATES)
    assert ((scores - host).abs().amax(dim=1) > 1e-3).all()
    for row in range(len(CONTEXT)):
        one = torch.tensor([row])
        alone = model.score(CONTEXT.index_select(one), CANDIDATES[row : row + 1])
        torch.testing.assert_close(alone[0], scores[row], rtol=1e-5, atol=1e-6)


def test_without_an_editor_there_is_no_edit():
    assert personalised(editor=False).edit(CONTEXT) is None
    edit = personalised(learned=True).edit(CONTEXT)
    assert isinstance(edit, Edit)
    assert edit.batch_size == len(CONTEXT)
    assert (edit.norm() > 0).all()


@pytest.mark.parametrize(("share", "same_as"), [(1.0, "host"), (0.0, "edited")])
def test_edit_dropout_of_all_rows_is_the_host_and_of_none_the_edited_model(share, same_as):
    model = personalised(learned=True, edit_dropout=share).train()
    batch = features(CONTEXT, CANDIDATES)
    expected = {"host": Personalised(model.host), "edited": Personalised(model.host, model.editor)}[same_as]
    assert torch.equal(model(batch), expected(batch))


def test_edit_dropout_switches_off_a_share_of_whole_rows_and_only_in_training():
    model = personalised(learned=True, edit_dropout=0.25)
    rows = torch.zeros(4000, dtype=torch.int64)
    context, candidates = CONTEXT.index_select(rows), CANDIDATES[rows]
    batch = features(context, candidates)
    edited, host = model(batch)[0], Personalised(model.host)(batch)[0]
    assert torch.equal(model(batch)[-1], edited), "not in evaluation mode"
    model.train()
    torch.manual_seed(0)
    logits = model(batch)
    is_host = torch.isclose(logits, host, atol=1e-6).all(dim=1)
    is_edited = torch.isclose(logits, edited, atol=1e-6).all(dim=1)
    assert (is_host ^ is_edited).all(), "an edit is on or off, never halved"
    assert is_host.float().mean().item() == pytest.approx(0.25, abs=0.03)  # 4.4 standard deviations


@pytest.mark.parametrize("fixed", [True, False])
def test_a_fixed_host_stays_in_evaluation_mode_while_its_editor_trains(fixed):
    model = personalised(learned=True, fixed_host=fixed)
    assert model.train() is model
    assert model.training
    assert model.editor.training
    assert [m.training for m in model.host.modules()] == [not fixed] * len(list(model.host.modules()))
    model.eval()
    assert not any(m.training for m in model.modules())


def test_host_and_editor_both_get_gradients():
    model = personalised(learned=True).train()
    model(features(CONTEXT, CANDIDATES)).square().sum().backward()
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert missing == []
