import json
import subprocess
import sys
import time
from datetime import datetime

import mlflow
import numpy as np
import pytest

from persona.errors import ConfigError, DataError, MismatchError
from pipelines import tracking
from pipelines.tracking import store
from pipelines.versions import names as versions
from pipelines.versions import promotion
from pipelines.versions.promotion import Event
from pipelines.versions.promotion_gate import TAG, Limits
from tests.pipelines.made_versions import MODEL, register, snapshot

BEST, SAME, WORSE = 0.6, 0.5, 0.4


@pytest.fixture
def client(workplace):
    tracking.connect("films")
    return mlflow.MlflowClient()


def better(ndcg):
    return snapshot(np.full(9, ndcg))


def champion(client):
    return versions.aliases_of(client, MODEL).get("champion")


def test_the_first_champion_needs_no_gate(client):
    register(better(SAME))
    done = promotion.promote(client, f"{MODEL}/1", why="a start")
    assert (done.moved, done.gate, done.before, done.checks) == (True, "no champion before", None, [])
    assert champion(client) == 1


def test_the_first_champion_is_what_its_release_could_call_a_candidate(client):
    said = "refused: on validation it is below item_knn (ndcg_10 -0.0200 [-0.0300, -0.0100])"
    register(better(SAME), tags={TAG: said})
    done = promotion.promote(client, f"{MODEL}/1")
    assert (done.moved, done.gate, done.before, done.reason) == (False, "failed", None, said)
    assert champion(client) is None
    tags = client.get_model_version(MODEL, "1").tags
    assert (tags["gate"], tags["gate.failed"], tags["gate.against"]) == ("failed", said, "none")
    assert promotion.promote(client, f"{MODEL}/1", force=True, why="it has to start").gate == "overruled"
    assert champion(client) == 1
    register(better(SAME), model="other", tags={TAG: "passed, released is host: on validation it is below host"})
    assert promotion.promote(client, "other/1").gate == "no champion before"


def test_a_better_version_becomes_champion_and_all_is_on_record(client, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
    for ndcg in (SAME, BEST):
        register(better(ndcg))
    promotion.promote(client, f"{MODEL}/1")
    done = promotion.promote(client, f"{MODEL}/2", why="better for all")
    assert done.moved
    assert done.gate == "passed"
    assert champion(client) == 2
    assert done.event == promotion.history(client, MODEL)[-1]
    tags = client.get_model_version(MODEL, "2").tags
    assert tags["promote.by"] == "ada"
    assert tags["promote.from"] == "1"
    assert tags["promote.why"] == "better for all"
    assert tags["gate"] == "passed"
    assert datetime.fromisoformat(tags["promote.at"]).utcoffset().total_seconds() == 0
    relieved = client.get_model_version(MODEL, "1").tags
    assert relieved["relieved.for"] == "2"
    assert relieved["relieved.at"] == tags["promote.at"]


def test_a_worse_version_is_kept_out_and_says_why(client):
    for ndcg in (SAME, WORSE):
        register(better(ndcg))
    promotion.promote(client, f"{MODEL}/1")
    done = promotion.promote(client, f"{MODEL}/2")
    assert (done.moved, done.gate, done.before, done.event) == (False, "failed", 1, None)
    assert champion(client) == 1
    tags = client.get_model_version(MODEL, "2").tags
    assert tags["gate"] == "failed"
    assert tags["gate.against"] == "1"
    assert tags["gate.failed"].startswith(
        "time/ndcg_10: -0.1000 [-0.1000, -0.1000], margin 0.002; time/ndcg_10 for light"
    )
    assert len(promotion.history(client, MODEL)) == 1
    assert promotion.promote(client, f"{MODEL}/2", limits=Limits(margin=0.2, segment_margin=0.2)).gate == "failed", (
        "every segment is harmed beyond doubt"
    )


def test_the_gate_can_be_overruled_with_a_reason(client):
    for ndcg in (SAME, WORSE):
        register(better(ndcg))
    register(None)
    promotion.promote(client, f"{MODEL}/1")
    with pytest.raises(ConfigError, match="has to say why: add --why"):
        promotion.promote(client, f"{MODEL}/2", force=True)
    done = promotion.promote(client, f"{MODEL}/2", force=True, why="the metric is wrong")
    assert (done.moved, done.gate) == (True, "overruled")
    assert not all(check.passed for check in done.checks)
    with pytest.raises(DataError, match="persona-films/3 was registered without a snapshot"):
        promotion.promote(client, f"{MODEL}/3")
    assert promotion.promote(client, f"{MODEL}/3", force=True, why="a hot fix").gate == "overruled"


def test_what_cannot_be_promoted_is_named(client):
    register(better(SAME))
    register(snapshot(rows="other"))
    promotion.promote(client, f"{MODEL}/1")
    with pytest.raises(ConfigError, match=r"persona-films/1 is the champion already"):
        promotion.promote(client, f"{MODEL}/1")
    with pytest.raises(MismatchError, match="not tested on the same rows"):
        promotion.promote(client, f"{MODEL}/2")
    with pytest.raises(ConfigError, match="no registered model 'persona-flims': did you mean 'persona-films'"):
        promotion.promote(client, "persona-flims/1")
    with pytest.raises(ConfigError, match=r"has no version 7. Known: 1, 2"):
        promotion.promote(client, f"{MODEL}/7")
    with pytest.raises(ConfigError, match="has no alias 'canditate'"):
        promotion.promote(client, f"{MODEL}@canditate")
    with pytest.raises(ConfigError, match="names no version"):
        promotion.promote(client, "a/b/c")


def test_rolling_back_goes_further_back_each_time(client):
    for ndcg in (0.5, 0.6, 0.7, 0.8):
        promotion.promote(client, f"{MODEL}/{register(better(ndcg))}")
    assert promotion.rollback(client, MODEL, why="complaints").version == 3
    assert promotion.rollback(client, MODEL).version == 2
    assert client.get_model_version(MODEL, "3").tags["rollback.why"] == "complaints"
    promotion.promote(client, f"{MODEL}/4")
    assert promotion.rollback(client, MODEL).version == 2, "the champion before this one"
    assert promotion.rollback(client, MODEL).version == 1
    with pytest.raises(ConfigError, match="persona-films/1 has no champion before it: name a version with --to"):
        promotion.rollback(client, MODEL)
    assert promotion.rollback(client, MODEL, to=4).version == champion(client) == 4
    with pytest.raises(ConfigError, match="is the champion already"):
        promotion.rollback(client, MODEL, to=4)
    assert [event.action for event in promotion.history(client, MODEL)] == [
        *["promote"] * 4, "rollback", "rollback", "promote", "rollback", "rollback", "rollback"
    ]  # fmt: skip


def test_a_decision_on_a_champion_that_has_changed_meanwhile_is_refused(client):
    for ndcg in (0.5, 0.6, 0.7):
        register(better(ndcg))
    promotion.promote(client, f"{MODEL}/1")
    promotion.promote(client, f"{MODEL}/3")
    with pytest.raises(MismatchError, match="became version 3 while this was decided on version 1"):
        promotion.move(client, MODEL, 2, 1, "promote", "too late")
    assert champion(client) == 3
    assert len(promotion.history(client, MODEL)) == 2


@pytest.mark.parametrize(
    ("alias", "expected"),
    [
        (3, [(1, "t0", "t1"), (2, "t1", "t2"), (3, "t2", None)]),
        (
            5,
            [
                (1, "t0", "t1"),
                (2, "t1", "t2"),
                (3, "t2", "unknown (moved by hand)"),
                (5, "unknown (moved by hand)", None),
            ],
        ),
        (None, [(1, "t0", "t1"), (2, "t1", "t2"), (3, "t2", None)]),
    ],
)
def test_reigns_follow_the_history_and_the_alias(alias, expected):
    events = [Event("t1", "promote", 2, 1, "a", ""), Event("t2", "promote", 3, 2, "a", "")]
    assert promotion.reigns(events, alias, "t0") == expected


def test_a_champion_without_a_history_reigns_from_its_beginning():
    assert promotion.reigns([], 1, "t0") == [(1, "t0", None)]
    assert promotion.reigns([], None, "t0") == []


PROMOTE = """
import sys, time, mlflow
from persona.errors import MismatchError
from pipelines import tracking
from pipelines.versions import promotion
client, version, start = tracking.client(), int(sys.argv[1]), float(sys.argv[2])
while time.time() < start:
    time.sleep(0.001)
try:
    promotion.move(client, "persona-films", version, 1, "promote", f"by process {version}")
except MismatchError as error:
    sys.exit(str(error))
"""


@pytest.mark.slow
def test_of_promotions_at_the_same_time_one_wins_and_the_others_are_told(client, workplace):
    count = 4
    for ndcg in np.linspace(0.5, 0.8, count + 1):
        register(better(ndcg))
    promotion.promote(client, f"{MODEL}/1")
    start = str(time.time() + 15)  # after the imports of all, on most machines
    processes = {
        version: subprocess.Popen(
            [sys.executable, "-c", PROMOTE, str(version), start], cwd=workplace, stderr=subprocess.PIPE, text=True
        )
        for version in range(2, count + 2)
    }
    said = {version: process.communicate(timeout=240)[1] for version, process in processes.items()}
    winners = [version for version, process in processes.items() if process.returncode == 0]
    assert len(winners) == 1, said
    assert champion(client) == winners[0]
    for version, error in said.items():
        if version != winners[0]:
            assert f"became version {winners[0]} while this was decided on version 1" in error
    events = promotion.history(client, MODEL)
    assert [(event.version, event.before) for event in events] == [(1, None), (winners[0], 1)]
    assert events[-1].why == f"by process {winners[0]}"


class Server:
    """The registry of a server, as far as locks are concerned."""

    tracking_uri = "http://127.0.0.1:1"

    def __init__(self, client):
        self.create_registered_model = client.create_registered_model
        self.delete_registered_model = client.delete_registered_model


def test_on_a_server_a_model_is_the_lock(client, monkeypatch):
    monkeypatch.setattr(store, "LEASE_SECONDS", 0.3)
    server = Server(client)
    with store.exclusive(server, MODEL):
        assert [model.name for model in client.search_registered_models()] == [f"{MODEL}.lock"]
        assert versions.models(client) == []
        start = time.monotonic()
        with (
            pytest.raises(ConfigError, match=r"delete the registered model persona-films\.lock"),
            store.exclusive(server, MODEL),
        ):
            pass
        assert time.monotonic() - start >= 0.3
    with store.exclusive(server, MODEL):
        pass
    assert client.search_registered_models() == []


def test_events_are_readable_tags_of_the_model(client):
    register(better(SAME))
    promotion.promote(client, f"{MODEL}/1", why="a start")
    (tag,) = client.get_registered_model(MODEL).tags.items()
    assert tag[0].startswith("champion 20")
    assert json.loads(tag[1]) | {"by": ""} == {
        "action": "promote", "version": 1, "before": None, "by": "", "why": "a start", "gate": "no champion before"
    }  # fmt: skip
