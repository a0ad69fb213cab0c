import pickle
import sys
from importlib.metadata import version
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import torch
from mlflow.pyfunc.model import PythonModelContext

from persona.errors import ConfigError, DataError
from pipelines import tracking
from pipelines.tracking import pyfunc_recommender, registry
from recsys.serving.recommender import Recommender
from recsys.serving.release import Release
from recsys.task import RECSYS
from tests.recsys.toy import ITEMS, personalised

IDS = [str(100 + i) for i in range(1, ITEMS + 1)]
TITLES = [None, *(f"Film {i}" for i in range(2, ITEMS + 1))]
HISTORIES = pd.DataFrame({"history": [["101", "105"], [], ["x"], IDS[:12]]})


@pytest.fixture(scope="module")
def released():
    return Release(personalised(learned=True), IDS, TITLES, {"metrics": {}}).compile()


@pytest.fixture(scope="module")
def recommender(released):
    return released.recommender()


@pytest.fixture(scope="module")
def bundle(released, tmp_path_factory):
    folder = tmp_path_factory.mktemp("registry") / "bundle"
    released.save(folder)
    return folder


@pytest.fixture
def release(workplace, released, bundle, monkeypatch):
    """Registers the bundle in a fresh store."""
    monkeypatch.setattr(sys, "path", list(sys.path))  # MLflow loads the model once, and leaves its code there

    def register(**tags):
        tracking.connect("recsys")
        with tracking.run("release"):
            return registry.register(
                RECSYS, bundle, released, {"mode": "joint", **tags}, {"time/uauc": 0.9}, data="films"
            )

    return register


def files(folder):
    return [path for path in Path(folder).rglob("*") if path.is_file()]


def test_a_registered_bundle_is_the_candidate_with_all_that_describes_it(release, recommender, bundle, capfd):
    registered = release(seed=3)
    shown = capfd.readouterr().err
    assert not any(noise in shown for noise in ("WARNING", "INFO", "Downloading")), "what MLflow says of its own steps"
    assert (registered.name, registered.version, registered.uri) == (
        "persona-recsys-films",
        1,
        "models:/persona-recsys-films/1",
    )
    client = mlflow.MlflowClient()
    found = client.get_model_version_by_alias("persona-recsys-films", "candidate")
    assert int(found.version) == 1
    assert found.tags == {"mode": "joint", "seed": "3"}
    assert "over 30 items, with an editor trained in mode joint" in found.description
    assert "time/uauc: 0.9000" in found.description
    info = mlflow.models.get_model_info("models:/persona-recsys-films@candidate")
    assert info.signature.inputs.input_names() == ["history"]
    assert info.signature.outputs.input_names() == ["items", "scores", "titles", "level", "fallback"]
    assert {p.name: p.default for p in info.signature.params.params} == {"k": 10, "level": "edit", "seen": False}
    assert info.saved_input_example_info["type"] == "dataframe"

    fetched = registry.download("models:/persona-recsys-films@candidate")
    assert Recommender.load(fetched).recommend(["105"]) == recommender.recommend(["105"])
    assert {path.name for path in fetched.iterdir()} == {path.name for path in bundle.iterdir()}
    model = fetched.parents[1]
    check_no_pickle(model)
    lines = (model / "requirements.txt").read_text().split()
    assert f"onnxruntime=={version('onnxruntime')}" in lines
    assert not [line for line in lines if line.startswith(("torch", "fbgemm"))], "answers need no torch"
    assert (model / "code" / "persona" / "editor.py").is_file()
    assert (model / "code" / "recsys" / "hosts" / "din.py").is_file()
    assert not list((model / "code").rglob("pipelines"))

    about = client.get_registered_model("persona-recsys-films").description
    assert "persona promote persona-recsys-films@candidate" in about
    client.update_registered_model("persona-recsys-films", description="Ours.")
    again = release()
    assert client.get_registered_model("persona-recsys-films").description == "Ours."
    assert again.version == 2
    assert int(client.get_model_version_by_alias("persona-recsys-films", "candidate").version) == 2
    assert int(client.get_model_version("persona-recsys-films", "1").version) == 1, "the earlier version stays"


def test_the_signature_says_what_the_release_offers():
    parameters = {
        offered: {
            p.name: p.default for p in registry.signature(RECSYS.interface, HISTORIES, {"seen": offered}).params.params
        }
        for offered in (True, False)
    }
    assert [parameters[offered]["seen"] for offered in (True, False)] == [True, False]


def check_no_pickle(model):
    assert not [path for path in files(model) if path.suffix in (".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib")]
    assert not [path for path in files(model) if path.read_bytes().startswith((b"\x80\x04", b"\x80\x05", b"PK\x03"))]


def test_a_release_that_was_killed_and_goes_on_registers_no_second_version(release, released, bundle):
    release()
    client = mlflow.MlflowClient()
    made = client.get_model_version("persona-recsys-films", "1")
    client.delete_registered_model_alias("persona-recsys-films", "candidate")
    with tracking.run("release", run_id=made.run_id):
        again = registry.register(RECSYS, bundle, released, {"mode": "joint"}, {"time/uauc": 0.9}, data="films")
    assert again.version == 1
    assert [v.version for v in client.search_model_versions("name = 'persona-recsys-films'")] == [1]
    assert client.get_model_version_by_alias("persona-recsys-films", "candidate").run_id == made.run_id


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        (
            "models:/persona-recsys-films@candidate",
            "models:/persona-recsys-films@candidate cannot be fetched .*persona ui",
        ),
        ("models:/persona-recsys-films/7", "models:/persona-recsys-films/7 cannot be fetched"),
        ("runs:/nothing/recommender", "runs:/nothing/recommender cannot be fetched"),
    ],
)
def test_what_is_not_registered_is_named(workplace, uri, sentence):
    tracking.connect("recsys")
    with pytest.raises(DataError, match=sentence):
        registry.download(uri)


def test_what_holds_no_bundle_is_named(workplace):
    tracking.connect("recsys")
    with tracking.run("other") as run:
        tracking.log_json({}, "model/x.json")
    with pytest.raises(DataError, match=r"runs:/.*/model holds no bundle .*name a version of a released model"):
        registry.download(f"runs:/{run.info.run_id}/model")


@pytest.fixture
def served(bundle, monkeypatch):
    """The model behind MLflow's interface, loaded where nothing can be unpickled."""

    def refuse(*args, **kwargs):
        raise AssertionError("something was unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    model = pyfunc_recommender.RecommenderModel()
    context = PythonModelContext(artifacts={"bundle": str(bundle)}, model_config={})
    model.load_context(context)
    return lambda frame, params=None: model.predict(context, frame, params)


def test_the_served_model_answers_like_the_bundle(served, recommender):
    for params in (None, {"k": 3}, {"k": 4, "level": "host"}):
        settings = {"k": 10, "level": "edit", **(params or {})}
        answers = recommender.recommend_many(list(HISTORIES["history"]), **settings)
        frame = served(HISTORIES, params)
        assert frame["items"].tolist() == [[item.item_id for item in answer.items] for answer in answers]
        assert frame["scores"].tolist() == [[item.score for item in answer.items] for answer in answers]
        assert frame["titles"].tolist() == [[item.title or "" for item in answer.items] for answer in answers]
        assert frame["level"].tolist() == [answer.level for answer in answers]
        assert frame["fallback"].tolist() == [answer.fallback for answer in answers]


def test_the_served_model_takes_arrays_no_rows_and_refuses_unknown_levels(served):
    arrays = HISTORIES.assign(history=[pd.array(history, dtype="str").to_numpy() for history in HISTORIES["history"]])
    assert served(arrays)["items"].tolist() == served(HISTORIES)["items"].tolist()
    assert len(served(HISTORIES[:0])) == 0
    with pytest.raises(ConfigError, match="unknown level 'edti': did you mean 'edit'"):
        served(HISTORIES, {"level": "edti"})
