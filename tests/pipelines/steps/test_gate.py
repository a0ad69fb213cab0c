"""What is released where an editor harms, and where a list of best-sellers wins: real trainings on tiny logs."""

from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow.exceptions import MlflowException

from pipelines import console, tracking
from pipelines.commands.recsys import show
from pipelines.steps import gate, release
from pipelines.steps.workspace import Workspace
from pipelines.versions import promotion
from pipelines.versions.promotion_gate import TAG
from recsys.methods import Problem, Trained, measure, train_method
from recsys.task import RECSYS
from tests.recsys.methods.test_methods import spoilt
from tests.recsys.toy import ITEMS, SMALL, sequences, walks

pytestmark = pytest.mark.usefixtures("workplace")

# The host learns the walks, and item_knn does not: it has no order.
LEARNED = replace(SMALL, epochs=12, patience=12, dim=16, mode="held_back")


def bestsellers(users: int = 80, events: int = 12):
    """Everybody takes the same few items now and then, in no order."""
    share = 1.0 / np.arange(1, ITEMS + 1) ** 1.5
    draw = np.random.default_rng(0).choice
    items = [(draw(ITEMS, events, replace=False, p=share / share.sum()) + 1).tolist() for _ in range(users)]
    return sequences(items)


def released_of(task, config, data, out=None):
    work = Workspace(Path("work"))
    data.save(work.prepared)
    made = release.release(task, config, work)
    if out is not None:
        show.released(made, out)
    return made


def version(made):
    return mlflow.MlflowClient().get_model_version(made.model.name, str(made.model.version))


def harmful(problem):
    trained = train_method("persona_held_back", problem)
    return "held_back", Trained(spoilt(trained.scorer), trained.refresh_bytes, trained.result)


def test_a_harmful_editor_is_not_released_but_the_best_host_is(capsys):
    task = replace(RECSYS, train_configured=harmful, rivals=())
    made = released_of(task, LEARNED, walks(), console.Output(as_json=False))
    assert made.candidate
    # The editor's own host has not seen the later rows; the host has.
    assert made.gate.startswith(f"passed, released is host: on validation it is below {gate.UNEDITED} (uauc -")
    assert "Gate: passed, released is host" in " ".join(capsys.readouterr().out.split())
    found = version(made)
    assert found.tags[TAG] == made.gate
    assert f"Gate: {made.gate}." in found.description
    assert mlflow.MlflowClient().get_model_version_by_alias(made.model.name, "candidate").version == found.version
    host = measure(Problem(walks(), LEARNED, folder=Path("work/cells")), "host")
    assert made.metrics["paper/uauc"] == pytest.approx(host.summary["uauc"], abs=1e-6), (
        "what is told is what is released"
    )


def test_without_another_host_its_own_one_is_released_without_edits():
    problem = Problem(walks(users=300), replace(LEARNED, protocol="time", epochs=6))
    model = RECSYS.model(harmful(problem)[1])
    verdict = gate.ask(replace(RECSYS, rivals=()), problem, model)
    assert (verdict.released, verdict.passed) == (gate.UNEDITED, True)
    assert "full_ndcg_10 -" in verdict.reason, "the whole catalogue counts, too"
    assert verdict.model.host.digest() == model.host.digest()
    assert float(verdict.model.edit(problem.validation.contexts).flat().abs().max()) == 0.0


def test_an_editor_that_is_not_harmful_passes():
    problem = Problem(walks(), LEARNED)
    model = RECSYS.model(train_method("persona_held_back", problem))
    verdict = gate.ask(replace(RECSYS, rivals=()), problem, model)
    assert verdict == gate.Verdict(model)
    assert verdict.tag == "passed"


def test_what_is_below_popularity_is_registered_and_not_called_candidate(capsys):
    config = replace(SMALL, mode="held_back", epochs=1, learning_rate=1e-6)
    made = released_of(RECSYS, config, bestsellers(), console.Output(as_json=False))
    assert not made.candidate
    assert made.gate.startswith("refused")
    assert "below popularity_recent (uauc -" in made.gate
    out = " ".join(capsys.readouterr().out.split())
    assert "and not called candidate" in out
    assert "popularity_recent" in out
    client = tracking.client()
    assert version(made).tags[TAG] == made.gate
    assert made.bundle.is_dir()
    with pytest.raises(MlflowException):
        client.get_model_version_by_alias(made.model.name, "candidate")

    name = f"{made.model.name}/{made.model.version}"
    kept_out = promotion.promote(client, name)
    assert (kept_out.moved, kept_out.gate, kept_out.reason) == (False, promotion.FAILED, made.gate)
    forced = promotion.promote(client, name, force=True, why="nothing else is there")
    assert (forced.moved, forced.gate, forced.before) == (True, promotion.FORCED, None)
