"""Command line, notebook, MLflow and service give one answer, and refuse harmful edits for one reason."""

import base64
import io
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from mlflow.pyfunc.model import PythonModelContext
from PIL import Image

from persona.wire import LEVELS, NOT_FINITE, NOT_TRUSTED
from pipelines.cli import main
from pipelines.serving.recsys.servable import RecommenderServable
from pipelines.serving.vision.servable import ClassifierServable
from pipelines.tracking import pyfunc_classifier, pyfunc_recommender
from recsys.serving.recommender import Recommender
from tests.pipelines.serving.conftest import client_of
from tests.pipelines.serving.poison import poisoned
from vision.serving.classifier import Classifier

HISTORIES = [["105", "130", "105"], ["nothing", 7], [str(101 + i) for i in range(9)]]
DAMAGES = {"sound": (0.0, ""), "huge": (1e6, NOT_TRUSTED), "nan": (np.nan, NOT_FINITE)}


@pytest.fixture(params=DAMAGES)
def harmful(request, bundle, tmp_path, monkeypatch):
    """A recommender, maybe poisoned, and why its whole edits must not be used."""
    # A service takes no bundle whose every edit does harm; of one where only some do, it is to say the same as others.
    monkeypatch.setattr(RecommenderServable, "check", lambda self: None)
    value, reason = DAMAGES[request.param]
    return poisoned(bundle, tmp_path / "poisoned", value), reason


def test_recommenders_answer_alike_through_every_door(harmful, capsys):
    folder, reason = harmful
    notebook = Recommender.load(folder)
    mlflow, context = pyfunc_recommender.RecommenderModel(), PythonModelContext({"bundle": str(folder)}, {})
    mlflow.load_context(context)
    with client_of(folder) as service:
        for level in LEVELS:
            rows = mlflow.predict(context, pd.DataFrame({"history": HISTORIES}), {"k": 4, "level": level})
            scored = {"dataframe_records": [{"history": h} for h in HISTORIES], "params": {"k": 4, "level": level}}
            predictions = service.post("/invocations", json=scored).json()["predictions"]
            assert rows.to_dict("records") == predictions
            for history, row in zip(HISTORIES, rows.to_dict("records"), strict=True):
                wanted = notebook.recommend(history, 4, level=level)
                told = [wanted.level, wanted.fallback, wanted.prototype, wanted.distance, wanted.unread]
                items = [(item.item_id, item.score, item.title) for item in wanted.items]
                assert list(zip(row["items"], row["scores"], row["titles"], strict=True)) == items
                assert [row["level"], row["fallback"]] == told[:2]
                body = {"history": history, "k": 4, "level": level}
                served = service.post("/v1/recommendations", json=body).json()
                assert [(i["id"], i["score"], i["title"]) for i in served["items"]] == items
                assert [served[k] for k in ("level", "fallback", "prototype", "distance", "unread")] == told
                given = ",".join(map(str, history))
                asked = ["--model", str(folder), "--history", given, "--k", "4", "--level", level, "--json"]
                assert main(["recsys", "recommend", *asked]) == 0
                printed = json.loads(capsys.readouterr().out)["recommendation"]
                assert [(i["item_id"], i["score"], i["title"]) for i in printed["items"]] == items
                assert [printed[k] for k in ("level", "fallback", "prototype", "distance", "unread")] == told
                if level == "edit" and history != HISTORIES[1]:
                    assert told[:2] == (["prototype", reason] if reason else ["edit", ""])


@pytest.mark.parametrize("released", [True, False])
@pytest.mark.parametrize("asked", [None, True, False])
def test_what_users_have_had_is_offered_alike_through_every_door(bundle, tmp_path, capsys, released, asked):
    """As the bundle says where nothing is asked for; MLflow's signature says it for a registered model."""
    folder, history, k = shutil.copytree(bundle, tmp_path / "bundle"), HISTORIES[2], 40
    header = json.loads((folder / "bundle.json").read_text())
    header["info"] = {"seen": True} if released else {}
    (folder / "bundle.json").write_text(json.dumps(header))
    notebook = [i.item_id for i in Recommender.load(folder).recommend(history, k, seen=asked).items]
    offered = released if asked is None else asked
    assert len(notebook) == (40 if offered else 31)
    mlflow, context = pyfunc_recommender.RecommenderModel(), PythonModelContext({"bundle": str(folder)}, {})
    mlflow.load_context(context)
    given = {} if asked is None else {"seen": asked}
    assert mlflow.predict(context, pd.DataFrame({"history": [history]}), {"k": k, **given})["items"][0] == notebook
    with client_of(folder) as service:
        served = service.post("/v1/recommendations", json={"history": history, "k": k, **given}).json()["items"]
        scored = {"dataframe_records": [{"history": history}], "params": {"k": k, **given}}
        predicted = service.post("/invocations", json=scored).json()["predictions"]
    assert [item["id"] for item in served] == predicted[0]["items"] == notebook
    flag = {None: [], True: ["--seen"], False: ["--no-seen"]}[asked]
    command = ["--model", str(folder), "--history", ",".join(history), "--k", str(k), *flag, "--json"]
    assert main(["recsys", "recommend", *command]) == 0
    printed = json.loads(capsys.readouterr().out)["recommendation"]["items"]
    assert [item["item_id"] for item in printed] == notebook


@pytest.mark.parametrize("damage", DAMAGES)
def test_classifiers_answer_alike_through_every_door(classifier_bundle, damage, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ClassifierServable, "check", lambda self: None)
    value, reason = DAMAGES[damage]
    folder = poisoned(classifier_bundle, tmp_path / "poisoned", value)
    notebook = Classifier.load(folder)
    shown = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 1), dtype=np.uint8)
    files = []
    for i, pixels in enumerate(shown):
        files.append(io.BytesIO())
        Image.fromarray(pixels[..., 0]).save(files[-1], "PNG")
        (tmp_path / f"{i}.png").write_bytes(files[-1].getvalue())
    images = [base64.b64encode(file.getvalue()).decode() for file in files]
    paths = ",".join(str(tmp_path / f"{i}.png") for i in range(3))
    mlflow, context = pyfunc_classifier.ClassifierModel(), PythonModelContext({"bundle": str(folder)}, {})
    mlflow.load_context(context)
    with client_of(folder) as service:
        for level in LEVELS:
            wanted = notebook.classify(shown, level=level)
            told = [wanted.classes, wanted.level, wanted.fallback, wanted.prototype, wanted.edit_norm]
            served = service.post("/v1/classifications", json={"images": images, "level": level}).json()
            assert [served[k] for k in ("classes", "level", "fallback", "prototype", "edit_norm")] == told
            assert served["probabilities"] == wanted.probabilities
            assert (
                main(["vision", "classify", "--model", str(folder), "--images", paths, "--level", level, "--json"]) == 0
            )
            printed = json.loads(capsys.readouterr().out)["classification"]
            assert [printed[k] for k in ("classes", "level", "fallback", "prototype", "edit_norm")] == told
            rows = mlflow.predict(context, shown, {"level": level}).to_dict("records")
            scored = {"inputs": shown.tolist(), "params": {"level": level}}
            assert service.post("/invocations", json=scored).json()["predictions"] == rows
            assert [row["class"] for row in rows] == wanted.classes
            if level == "edit":
                assert told[1:3] == (["prototype", reason] if reason else ["edit", ""])
