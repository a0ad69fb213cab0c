"""What the service answers, and what it refuses."""

import base64
import json
import logging
from dataclasses import replace

import numpy as np
import pytest

from pipelines.serving import admission
from pipelines.serving.batching import Batcher
from pipelines.serving.recsys.schemas import MOST_ANSWERS
from recsys.serving.recommender import Recommender
from tests.pipelines.serving.conftest import client_of
from tests.pipelines.serving.toy import HOST, IDS, ITEMS, LENGTH, PROTOTYPES, bank_version, write_bundle

HISTORY = ["105", "130", "105"]
SECRET = "a-very-personal-id"


def recommend(client, **body):
    return client.post("/v1/recommendations", json={"history": HISTORY, **body})


@pytest.mark.parametrize("level", ["host", "prototype", "basis", "edit"])
def test_recommendations_are_those_of_the_bundle(client, bundle, level):
    answer = recommend(client, level=level, k=4).json()
    wanted = Recommender.load(bundle).recommend(HISTORY, 4, level=level)
    assert [item["id"] for item in answer["items"]] == [item.item_id for item in wanted.items]
    assert [item["score"] for item in answer["items"]] == pytest.approx([item.score for item in wanted.items])
    assert [item["title"] for item in answer["items"]] == [item.title for item in wanted.items]
    assert (answer["level"], answer["fallback"], answer["prototype"]) == (level, "", wanted.prototype)
    assert answer["model"]["name"] == bundle.name
    assert (answer["host"], answer["bank"]) == (HOST, bank_version(0))


def test_what_is_left_out_and_what_is_chosen(client):
    every = [item["id"] for item in recommend(client, k=MOST_ANSWERS).json()["items"]]
    assert set(every) == set(IDS) - set(HISTORY)
    shown = recommend(client, k=5, exclude=every[:3], seen=False).json()["items"]
    assert [item["id"] for item in shown] == every[3:8]
    assert {i["id"] for i in recommend(client, only=[101, "102", "nothing"]).json()["items"]} == {"101", "102"}
    assert set(HISTORY) <= {item["id"] for item in recommend(client, k=MOST_ANSWERS, seen=True).json()["items"]}


@pytest.mark.parametrize("history", [[], ["nothing", "known"]])
def test_who_is_unknown_is_answered_by_the_host(client, history):
    answer = recommend(client, history=history).json()
    assert (answer["level"], answer["fallback"]) == ("host", "the history has no known item")
    assert (answer["unknown"], answer["prototype"], answer["edit_norm"]) == (history, None, 0.0)
    assert len(answer["items"]) == 10


def test_a_long_history_is_read_from_its_end(client):
    long = IDS * 3
    answer, tail = (
        recommend(client, history=long, seen=True).json(),
        recommend(client, history=long[-LENGTH:], seen=True).json(),
    )
    assert answer["unread"] == 3 * ITEMS - LENGTH
    assert answer["items"] == tail["items"]


@pytest.mark.parametrize(("value", "reason"), [(np.nan, "finite"), (np.inf, "finite"), (1e4, "trust region")])
def test_edits_that_cannot_be_trusted_are_not_used(bundle, monkeypatch, value, reason):
    with client_of(bundle) as client:
        prototype = recommend(client, level="prototype").json()
        model = client.service.models.current().recommender.model
        real = model.contexts

        def poisoned(inputs):
            found = real(inputs)
            return replace(found, unbounded=np.full_like(found.unbounded, value))

        monkeypatch.setattr(model, "contexts", poisoned)
        answer = recommend(client).json()
        assert (answer["level"], answer["items"]) == ("prototype", prototype["items"])
        assert reason in answer["fallback"]
        edit = client.post("/v1/edits", json={"history": HISTORY, "level": "full"}).json()
        assert (edit["level"], edit["fallback"], edit["bytes"]) == ("prototype", answer["fallback"], 1)
        assert recommend(client, level="host").json()["fallback"] == ""


def test_an_edit_as_json_and_as_bytes_is_the_same(client):
    for level, size in (("prototype", 1), ("basis", 22), ("full", None)):
        body = {"history": HISTORY, "level": level, "host": HOST, "bank": bank_version(0)}
        answer = client.post("/v1/edits", json=body).json()
        assert (answer["level"], len(answer["distances"])) == (level, PROTOTYPES)
        assert answer["prototype"] == min(range(PROTOTYPES), key=answer["distances"].__getitem__)
        plain = client.post("/v1/edits", json=body, headers={"accept": "application/octet-stream"})
        assert plain.headers["content-type"] == "application/octet-stream"
        assert plain.headers["x-persona-level"] == level
        assert plain.content == base64.b64decode(answer["message"])
        assert len(plain.content) == answer["bytes"]
        assert size is None or len(plain.content) == size


@pytest.mark.parametrize("held", [{"host": "cd" * 32}, {"bank": "cd" * 32}])
def test_a_device_with_another_version_is_told_to_update(client, held):
    answer = client.post("/v1/edits", json={"history": HISTORY, **held})
    assert answer.status_code == 409
    assert "update the device" in answer.json()["error"]


def test_assignments_agree_with_edits(client):
    histories = [HISTORY, [], ["101"], ["nothing"]]
    found = client.post("/v1/assignments", json={"histories": histories}).json()["assignments"]
    for history, one in zip(histories, found, strict=True):
        edit = client.post("/v1/edits", json={"history": history, "level": "prototype"}).json()
        assert one["prototype"] == edit["prototype"]
        assert one["known"] == sum(item in IDS for item in history)
        if one["prototype"] is not None:
            assert one["distance"] == pytest.approx(edit["distances"][one["prototype"]])


def test_prototypes_are_listed_by_version(client):
    bank = client.get("/v1/prototypes").json()
    assert bank["version"] == bank_version(0)
    assert [p["index"] for p in bank["prototypes"]] == list(range(PROTOTYPES))
    assert client.get(f"/v1/prototypes/{bank_version(0)[:12]}").json() == bank
    assert client.get(f"/v1/prototypes/{'9' * 64}").status_code == 404
    assert client.get("/v1/prototypes/UPPER").status_code == 422


def test_a_bank_whose_files_are_not_there_is_not_sent_to_devices(client):
    answer = client.get("/v1/prototypes", headers={"accept": "application/octet-stream"})
    assert (answer.status_code, answer.json()["kind"]) == (404, "no_bank")


@pytest.mark.parametrize("options", [{"bank": False}, {"editor": False}])
def test_bundles_without_prototypes_say_so(options, tmp_path):
    with client_of(write_bundle(tmp_path / "bundle", **options)) as client:
        assert client.get("/v1/prototypes").status_code == 404
        assert client.post("/v1/assignments", json={"histories": [HISTORY]}).status_code == 404
        answer = recommend(client, level="prototype").json()
        assert answer["level"] == "host"
        assert answer["fallback"] == (
            "the bundle has no editor" if "editor" in options else "the bundle has no prototypes"
        )
        edit = client.post("/v1/edits", json={"history": HISTORY}).json()
        assert (edit["level"], edit["bytes"]) == ("host", 0)


@pytest.mark.parametrize(
    ("body", "status", "where"),
    [
        (b'{"history": [', 400, "not valid JSON"),
        (b'{"history": "%s"}' % SECRET.encode(), 422, "history"),
        (b'{"history": [{"%s": 1}]}' % SECRET.encode(), 422, "history.0"),
        (b'{"history": [], "%s": 1}' % SECRET.encode(), 422, "nobody knows"),
        (b'{"history": [], "k": 0}', 422, "k:"),
        (b'{"history": [], "level": "%s"}' % SECRET.encode(), 422, "level"),
        (b"[]", 422, "body"),
        (b"{}", 422, "history: Field required"),
    ],
)
def test_what_does_not_fit_is_refused_without_repeating_it(client, caplog, body, status, where):
    with caplog.at_level(logging.DEBUG):
        answer = client.post("/v1/recommendations", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status
    assert where in answer.json()["error"]
    assert SECRET not in answer.text + caplog.text


def test_bodies_that_are_too_large_or_not_json_are_refused(bundle):
    with client_of(bundle, body_bytes=100) as client:
        assert recommend(client, history=IDS).status_code == 413
        parts = (b'{"history": ["101"', b" " * 200, b"]}")
        unsized = client.post("/v1/recommendations", content=iter(parts), headers={"content-type": "application/json"})
        assert unsized.status_code == 413
        assert client.post("/v1/recommendations", data={"history": "101"}).status_code == 415
        assert recommend(client).status_code == 200


def test_who_is_turned_away_is_told_when_to_come_back(bundle, monkeypatch):
    monkeypatch.setattr(admission, "HOLD_SECONDS", 0.01)
    with client_of(bundle) as client:
        monkeypatch.setattr(Batcher, "full", True)
        refused = recommend(client)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert refused.json()["kind"] == "over_capacity"
        assert client.get("/readyz").status_code == 200
        monkeypatch.undo()
        assert recommend(client).status_code == 200


def test_the_more_are_turned_away_the_longer_they_are_held():
    assert admission.hold_seconds(1000, 0.0) == admission.HOLD_SECONDS
    assert admission.hold_seconds(512, 2900.0) == admission.HOLD_SECONDS
    held = admission.hold_seconds(400, 1000.0)
    assert 400 / held == 1000 / admission.ANSWERS_A_REFUSAL
    assert admission.hold_seconds(10**6, 10.0) == admission.LONGEST_HOLD_SECONDS


def test_keys_guard_what_is_personal_and_nothing_else(bundle):
    with client_of(bundle, api_keys=("k" * 20, "other-key-of-the-same-service")) as client:
        refused = recommend(client)
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        for headers in ({"authorization": "Bearer " + "k" * 20}, {"x-api-key": "other-key-of-the-same-service"}):
            assert client.post("/v1/recommendations", json={"history": []}, headers=headers).status_code == 200
        wrong = {"authorization": "Bearer " + "k" * 19}
        assert client.post("/v1/recommendations", json={"history": []}, headers=wrong).status_code == 401
        assert client.post("/invocations", json={"inputs": {"history": []}}).status_code == 401
        for path in ("/", "/healthz", "/readyz", "/metrics", "/openapi.json", "/page/page.js"):
            assert client.get(path).status_code == 200


def test_probes_tell_the_truth(bundle, monkeypatch):
    with client_of(bundle) as client:
        assert client.get("/healthz").json()["status"] == "alive"
        assert client.get("/readyz").json()["bank"] == bank_version(0)
        model = client.service.models.current()
        monkeypatch.setattr(model.recommender, "answer", lambda asks: 1 / 0)
        broken = client.get("/readyz")
        assert (broken.status_code, broken.headers["retry-after"]) == (503, "1")
        monkeypatch.undo()
        assert client.get("/readyz").status_code == 200
        client.service.draining = True
        assert client.get("/readyz").status_code == 503
        assert recommend(client).status_code == 200, "what still comes is answered"


def test_a_bug_is_told_without_what_was_asked(bundle, monkeypatch, caplog):
    with client_of(bundle) as client:

        def fail(asks):
            raise ValueError(f"cannot handle {asks}")

        monkeypatch.setattr(client.service.models.current().recommender, "answer", fail)
        answer = recommend(client, history=[SECRET])
        assert (answer.status_code, answer.json()["kind"]) == (500, "bug")
        assert "ValueError while answering /v1/recommendations" in caplog.text
        assert SECRET not in answer.text + caplog.text
        monkeypatch.undo()
        assert recommend(client).status_code == 200


@pytest.mark.parametrize("value", ["0", "-1", "soon", "1e3", "99999999", "²"])
def test_deadlines_that_are_none_are_refused(client, value):
    answer = client.post("/v1/recommendations", json={"history": []}, headers={"x-deadline-ms": value.encode()})
    assert answer.status_code == 422


def test_mlflows_protocol(client):
    direct = recommend(client, k=3, level="prototype").json()
    for body in (
        {"dataframe_split": {"columns": ["history"], "data": [[HISTORY], [[]]]}},
        {"dataframe_records": [{"history": HISTORY}, {"history": []}]},
        {"inputs": {"history": [HISTORY, []]}},
        {"instances": [{"history": HISTORY}, {"history": []}]},
    ):
        answer = client.post("/invocations", json={**body, "params": {"k": 3, "level": "prototype"}})
        first, second = answer.json()["predictions"]
        assert first["items"] == [item["id"] for item in direct["items"]]
        assert (first["level"], second["level"]) == ("prototype", "host")
    assert client.get("/ping").status_code == 200
    assert client.get("/version").text.count(".") == 2


def test_the_catalogue_can_be_searched(client):
    assert client.get("/v1/items", params={"query": "film 12"}).json()["items"] == [{"id": "112", "title": "Film 12"}]
    assert len(client.get("/v1/items").json()["items"]) == 20
    walks = client.get("/v1/examples").json()["histories"]
    assert len({json.dumps(walk) for walk in walks}) == 5
    assert all(len({item["id"] for item in walk}) == 6 for walk in walks)


def test_metrics_count_requests_and_tell_nothing_of_them(client):
    recommend(client, history=[SECRET])
    client.get(f"/{SECRET}")
    text = client.get("/metrics").text
    assert 'persona_requests_total{path="/v1/recommendations",status="200"}' in text
    assert "persona_ready 1.0" in text
    assert SECRET not in text
