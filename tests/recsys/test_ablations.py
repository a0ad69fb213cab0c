import numpy as np
import pytest
import torch

from persona.comparison import compare
from persona.errors import ConfigError
from persona.transfer import TRANSFERS
from recsys import ablations
from recsys.data.batches import Context
from recsys.methods import Problem, train_method
from tests.recsys.toy import SMALL, walks


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    return Problem(walks(), SMALL, folder=tmp_path_factory.mktemp("cells"))


@pytest.fixture(scope="module")
def edited(problem):
    return train_method("persona_held_back", problem).scorer


def test_the_last_items_of_a_context_after_the_newest_are_gone():
    context = Context.from_lists([[1, 2, 3, 4, 5], [6, 7], []], 5)
    fresh, stale = ablations.last(context, 0, 3), ablations.last(context, 2, 3)
    assert fresh.items.tolist() == [[3, 4, 5], [6, 7, 0], [0, 0, 0]]
    assert fresh.lengths.tolist() == [3, 2, 0]
    assert stale.items.tolist() == [[1, 2, 3], [0, 0, 0], [0, 0, 0]]
    assert stale.lengths.tolist() == [3, 0, 0]


def test_edits_that_are_not_stale_are_the_editors(problem, edited):
    rows = ablations.staleness(problem, (0, 2))
    assert list(rows) == ["host", "stale_0", "stale_2"]
    with problem.reporting():
        expected = problem.test.run(edited)
    for metric, values in expected.per_user.items():
        np.testing.assert_allclose(rows["stale_0"].per_unit[metric], values, rtol=1e-6)
    assert any((rows["stale_2"].per_unit[m] != values).any() for m, values in expected.per_user.items())
    compare([rows])


def test_a_stale_edit_is_that_of_the_context_before(edited):
    scorer = ablations.StaleEdits(edited, 2)
    wide = Context.from_lists([[1, 2, 3, 4, 5, 6, 7]], 7)
    fresh, old = Context.from_lists([[3, 4, 5, 6, 7]], 5), Context.from_lists([[1, 2, 3, 4, 5]], 5)
    candidates = torch.tensor([[8, 9, 10]])
    host = edited.host
    with torch.no_grad():
        expected = host.score(host.encode(fresh), candidates, edited.edit(old))
        torch.testing.assert_close(scorer.score(wide, candidates), expected)
        torch.testing.assert_close(scorer.score_catalogue(wide)[:, 8:11], expected)


def test_levels_go_from_the_prototype_to_the_editor_itself(problem, edited):
    rows = ablations.levels(problem)
    assert list(rows) == ["host", "level_prototype", "level_basis", "level_full"]
    with problem.reporting():
        expected = problem.test.run(edited).per_user["uauc"]
    np.testing.assert_allclose(rows["level_full"].per_unit["uauc"], expected, rtol=1e-6)
    sent = [row.refresh_bytes for row in rows.values()]
    assert sent[0] == 0
    assert sent == sorted(sent)


def test_sizes_are_banks_of_so_many_prototypes(problem):
    rows = ablations.sizes(problem, (1, 4))
    assert list(rows) == ["host", "k_1", "k_4", "editor"]
    assert (rows["k_1"].per_unit["logloss"] != rows["k_4"].per_unit["logloss"]).any()


def test_settings_of_the_editor_share_the_host(problem):
    rows = ablations.setting(problem, "transfer", TRANSFERS)
    assert list(rows) == ["host", *(f"transfer_{t}" for t in TRANSFERS)]
    own = rows[f"transfer_{SMALL.transfer}"]
    assert own.summary == ablations.measure(problem, "persona_held_back").summary
    assert len({row.summary["logloss"] for row in rows.values()}) == len(rows), "each was trained"
    assert len(list(problem.trainings.root.rglob("host_early/checkpoint.safetensors"))) == 1
    with pytest.raises(ConfigError, match="unknown transfer"):
        ablations.setting(problem, "transfer", ["stackd"])


def test_the_table_shows_differences_to_the_host(problem):
    rows = compare([ablations.sizes(problem, (1,))])
    lines = ablations.table(rows, ("uauc",))
    assert lines[0] == "| ablation | uauc | uauc against the host | bytes a refresh |"
    assert lines[2].startswith(f"| host | {rows[0].metrics['uauc']:.4f} | - | 0 |")
    assert str(rows[1].differences["uauc"]) in lines[3]
    assert len(lines) == 2 + 3
