"""Classifiers behind the same service."""

import base64
import io
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from persona.device.bank import check_version, unpack_bank
from persona.errors import ConfigError, FormatError
from persona.prototypes import receive
from pipelines.serving.app import Service
from pipelines.serving.banks import bank_message
from pipelines.serving.config import ServingConfig
from pipelines.serving.recsys.servable import RecommenderTask
from pipelines.serving.sources import FolderSource
from pipelines.serving.tasks import task_of
from pipelines.serving.vision.servable import ClassifierTask
from recsys.serving.index import IndexConfig
from tests.pipelines.serving.toy import write_bundle
from tests.pipelines.serving.toy_vision import DATA
from vision.data.sources.decode import decode
from vision.serving.classifier import Classifier
from vision.serving.release import Release

SHOWN = DATA.pixels[:3]


@pytest.fixture(scope="module")
def folder(classifier_bundle):
    return classifier_bundle


@pytest.fixture(scope="module")
def client(folder):
    source = FolderSource(folder)
    service = Service(task_of(source), source, ServingConfig(deadline_ms=60_000))
    with TestClient(service.app, raise_server_exceptions=False) as client:
        yield client


def encoded(pixels):
    files = []
    for one in pixels:
        file = io.BytesIO()
        Image.fromarray(one.squeeze()).save(file, "PNG")
        files.append(base64.b64encode(file.getvalue()).decode())
    return files


@pytest.mark.parametrize("level", ["host", "prototype", "basis", "edit"])
def test_classes_are_those_of_the_bundle(client, folder, level):
    answer = client.post("/v1/classifications", json={"images": encoded(SHOWN), "level": level}).json()
    wanted = Classifier.load(folder).classify(SHOWN, level=level)
    assert (answer["classes"], answer["level"], answer["fallback"]) == (wanted.classes, level, "")
    assert np.array(answer["probabilities"]) == pytest.approx(np.array(wanted.probabilities), abs=1e-5)
    assert answer["names"] == list(DATA.class_names)
    assert answer["bank"] == wanted.bank


@pytest.mark.parametrize("level", ["prototype", "basis", "full"])
def test_devices_read_its_edits(client, folder, level):
    classifier = Release.load(folder)
    body = {"images": encoded(SHOWN), "level": level, "host": classifier.host_digest}
    answer = client.post("/v1/edits", json=body).json()
    message = base64.b64decode(answer["message"])
    assert (answer["level"], answer["bytes"]) == (level, len(message))
    mine = receive(classifier.bank, message, level)
    with torch.inference_mode():
        wanted = classifier.server.edit(classifier.codes(SHOWN), level).flat()
        assert torch.allclose(mine.flat(), wanted, atol=1e-4)
    plain = client.post("/v1/edits", json=body, headers={"accept": "application/octet-stream"})
    assert plain.content == message


@pytest.mark.parametrize("image", ["", "nonsense", base64.b64encode(b"no image").decode(), "%%%"])
def test_what_is_no_image_is_refused(client, image):
    answer = client.post("/v1/classifications", json={"images": [*encoded(SHOWN[:1]), image]})
    assert answer.status_code == 422
    assert answer.json()["error"].startswith("images.1:")


def test_probes_and_prototypes(client):
    assert client.get("/readyz").status_code == 200
    bank = client.get("/v1/prototypes").json()
    assert len(bank["prototypes"]) == 2
    assert client.post("/v1/edits", json={"images": encoded(SHOWN), "host": "cd" * 32}).status_code == 409
    assert client.get("/v1/items").status_code == 404


def test_devices_fetch_the_bank(client, folder, tmp_path):
    version = Classifier.load(folder).bank
    told = {"accept": "application/octet-stream"}
    answer = client.get("/v1/prototypes", headers=told)
    assert (answer.headers["content-type"], answer.headers["x-persona-bank"]) == (told["accept"], version)
    assert client.get(f"/v1/prototypes/{version[:12]}", headers=told).content == answer.content
    assert client.get(f"/v1/prototypes/{'9' * 12}", headers=told).status_code == 404
    files = unpack_bank(answer.content)
    check_version(files, version, "this bank")
    damaged = tmp_path / "bundle"
    shutil.copytree(folder, damaged)
    (damaged / "bank" / "bank.json").write_bytes(
        files["bank.json"].replace(b'"metadata": {', b'"metadata": {"x": 1,', 1)
    )
    with pytest.raises(FormatError):
        bank_message(damaged, version)


def test_the_bundle_says_which_task_it_is(folder, tmp_path):
    assert isinstance(task_of(FolderSource(folder)), ClassifierTask)
    recommender = FolderSource(write_bundle(tmp_path / "bundle"))
    task = task_of(recommender, IndexConfig("Flat"))
    assert isinstance(task, RecommenderTask)
    assert task.index == IndexConfig("Flat")
    with pytest.raises(ConfigError, match="no items to search"):
        task_of(FolderSource(folder), IndexConfig("Flat"))
    (tmp_path / "bundle" / "bundle.json").write_text('{"format": "persona-recsys-bundel"}')
    with pytest.raises(FormatError, match="did you mean 'persona-recsys-bundle'"):
        task_of(FolderSource(tmp_path / "bundle"))


@pytest.mark.parametrize("kind", ["inputs", "instances"])
def test_mlflows_protocol(client, folder, kind):
    body = {kind: SHOWN.tolist(), "params": {"level": "prototype"}}
    found = client.post("/invocations", json=body).json()["predictions"]
    wanted = Classifier.load(folder).classify(SHOWN, level="prototype")
    assert [one["class"] for one in found] == wanted.classes
    assert [one["probability"] for one in found] == pytest.approx([max(row) for row in wanted.probabilities], abs=1e-5)
    assert {one["level"] for one in found} == {"prototype"}


@pytest.mark.parametrize("rows", [[[[[0.5]]]], [[[[1]], [[1], [2]]]], SHOWN[:, :8].tolist()])
def test_pixels_of_another_shape_are_refused(client, rows):
    answer = client.post("/invocations", json={"inputs": rows})
    assert answer.status_code == 422
    assert "(images, 16, 16, 1)" in answer.json()["error"]


def test_examples_are_drawn_and_can_be_classified(client):
    streams = client.get("/v1/examples").json()["streams"]
    assert len({stream["name"] for stream in streams}) == len(streams) == 5
    seen = set()
    for stream in streams:
        answer = client.post("/v1/classifications", json={"images": stream["images"]}).json()
        assert len(answer["classes"]) == len(DATA.class_names)
        pixels = np.stack([decode(base64.b64decode(image), (16, 16, 1)) for image in stream["images"]])
        assert pixels.std() > 0
        seen.add(pixels.tobytes())
    assert len(seen) == len(streams)
