"""A refined bank is compared first and served last: whatever ends the step in between, the head of the lineage is as it was."""

from dataclasses import replace

import mlflow
import pytest
import torch

from persona.bootstrap import Interval, SeedsInterval
from persona.prototypes import RefineConfig, UserStatistics, fit_bank
from pipelines import tracking
from pipelines.steps import bank
from pipelines.steps.workspace import Workspace
from recsys.data.batches import Context
from recsys.serving.release import Release
from recsys.task import RECSYS
from tests.recsys.toy import personalised, walks

LIMITS = RefineConfig(min_users=2)


def change(low, high):
    return SeedsInterval(Interval((low + high) / 2, low, high), (0.0,))


@pytest.fixture(scope="module")
def served():
    """A model with a bank of three prototypes, and contexts of forty users that it has not seen."""
    data, model = walks(users=40), personalised(learned=True)
    plain = Release(model, data.item_ids.to_list())
    contexts = Context(*(torch.from_numpy(part) for part in data.contexts(data.offsets[:-1] + 6, 5)))
    fitted = fit_bank(model.editor, model.codes(contexts), 3, users=torch.arange(40)).bank
    recommender = plain.with_bank(fitted)
    later = model.codes(Context(*(torch.from_numpy(part) for part in data.contexts(data.offsets[1:] - 1, 5))))
    where = recommender.server.assign(later)
    statistics = UserStatistics.collect(later, torch.arange(40), where, 3)
    seen = bank.Seen(statistics, {"users": 40, "events": 40}, later, data.user_ids.to_list(), "d" * 64)
    return recommender, seen


@pytest.fixture
def lineage(served, workplace):
    found = Workspace(workplace / "work").lineage(served[0].host_digest)
    found.save(served[0].bank)
    return found


def refine(served, lineage, decide, report=lambda child: bank.Compared()):
    recommender, seen = served
    tracking.connect(RECSYS.name)
    with tracking.run("refine"):
        return bank.refine(
            RECSYS, recommender, lineage, seen, LIMITS, decide=decide, report=report, where="the new events"
        )


@pytest.mark.parametrize("where", ["decide", "report"])
def test_a_step_that_is_killed_before_its_end_leaves_the_head(served, lineage, where):
    before = lineage.head

    def killed(child):
        assert child.bank.version in [record.version for record in lineage.history()], "it is kept"
        assert lineage.head == before, "but not served"
        raise KeyboardInterrupt

    parts = {"decide": lambda child: bank.Compared(), where: killed}
    with pytest.raises(KeyboardInterrupt):
        refine(served, lineage, **parts)
    assert lineage.head == before
    again = refine(served, lineage, lambda child: bank.Compared())
    assert lineage.head == again.version != before, "done again, it goes on"


def test_what_decides_comes_before_what_is_reported(served, lineage):
    order = []

    def decide(child):
        order.append("decide")
        return bank.Compared({"window/uauc_vs_parent": change(-0.1, 0.2)})

    def report(child):
        order.append("report")
        return bank.Compared({"time prototype/uauc_vs_parent": change(-0.3, -0.2)})

    made = refine(served, lineage, decide, report)
    assert order == ["decide", "report"]
    assert made.served, "what is reported decides nothing"
    assert lineage.head == made.version
    assert made.metrics["time prototype/uauc_vs_parent_high"] == pytest.approx(-0.2)


def test_a_version_behind_its_parent_is_kept_and_not_served(served, lineage):
    before = lineage.head
    made = refine(served, lineage, lambda child: bank.Compared({"window/ndcg_10_vs_parent": change(-0.2, -0.1)}))
    assert not made.served
    assert lineage.head == before == made.parent
    assert lineage.load(made.version).parent == before
    entry = mlflow.MlflowClient().get_model_version(RECSYS.banks(), str(made.registered.version))
    assert (entry.tags["served"], list(entry.aliases)) == ("False", ["champion"]), (
        "the first is champion, but no candidate"
    )
    assert "Behind its parent on the new events" in entry.description


def test_only_metrics_that_decide_keep_a_version_out():
    found = bank.Compared({"window/hr_10_vs_parent": change(-0.2, -0.1), "window/uauc_vs_host": change(-0.2, -0.1)})
    assert not found.behind(RECSYS.deciding)
    worse = replace(found, changes={**found.changes, "window/uauc_vs_parent": change(-0.2, -0.1)})
    assert worse.behind(RECSYS.deciding)
    assert worse.tags["window/uauc_vs_parent"].endswith("]")
