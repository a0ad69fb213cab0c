"""The vision pipeline as a user runs it: scikit-learn's digits as devices, the real commands, a store of its own."""

import json
import os
import shutil
from contextlib import redirect_stdout
from io import StringIO

import mlflow
import numpy as np
import polars as pl
import pytest
from PIL import Image

from persona.errors import ConfigError, DataError
from pipelines.cli import main
from pipelines.steps import answers
from pipelines.steps.workspace import Workspace
from pipelines.versions import snapshots
from vision.methods import Problem, train_configured
from vision.serving.classifier import Classifier
from vision.task import VISION

pytestmark = pytest.mark.slow
SETTINGS = (
    "--epochs",
    "3",
    "--editor-epochs",
    "2",
    "--steps-per-epoch",
    "10",
    "--width",
    "8",
    "--validation-devices",
    "5",
)


def go_to(place, patch):
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        patch.delenv(name)
    patch.chdir(place)


def persona(*arguments: str):
    """What the command prints as JSON."""
    with redirect_stdout(StringIO()) as out:
        code = main(["vision", *arguments, "--work", "work", "--json"])
    assert code == 0
    return json.loads(out.getvalue())


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """One step after the other, each from what the one before left."""
    place = tmp_path_factory.mktemp("digits")
    with pytest.MonkeyPatch.context() as patch:
        go_to(place, patch)
        results = {"prepare": persona("prepare", "--divide", "30")}
        results["pretrain"] = persona("pretrain", *SETTINGS, "--mode", "held_back")
        results["edit"] = persona("edit")
        results["evaluate"] = persona("evaluate", "--methods", "t3a,persona_prototypes,persona_held_back")
        results["prototypes"] = persona("prototypes", "--prototypes", "4")
        results["release"] = persona("release")
        results["replay"] = persona("replay")
        results["refine"] = persona("refine", "--min-users", "2")
        results["classify"] = persona("classify", "--device", "digits/0")
    return place, results


@pytest.fixture
def place(steps, monkeypatch):
    go_to(steps[0], monkeypatch)
    return steps[0]


def test_every_step_leaves_what_the_next_one_needs(steps):
    place, results = steps
    assert results["prepare"]["devices"] == 60
    assert results["pretrain"]["name"] == "host"
    assert results["edit"]["name"] == "persona_held_back"
    rows = {row["method"]: row for row in results["evaluate"]["rows"]}
    assert list(rows) == ["host", "t3a", "persona_prototypes", "persona_held_back"]
    assert rows["host"]["metrics"]["accuracy"] > 0.3
    assert results["release"]["bank"] == results["prototypes"]["version"]
    assert results["refine"]["parent"] == results["prototypes"]["version"]
    assert results["replay"]["devices"] == 12
    # The bundle answers as the method was measured.
    assert results["replay"]["accuracy"]["edit"] == pytest.approx(rows["persona_held_back"]["metrics"]["accuracy"])
    assert results["replay"]["accuracy"]["host"] == pytest.approx(rows["host"]["metrics"]["accuracy"])
    answer = results["classify"]
    assert len(answer["images"]) == len(answer["classification"]["classes"]) == 20
    assert answer["classification"]["level"] == "edit"
    replayed = pl.read_parquet(place / "work" / "replay" / "answers.parquet")
    assert len(replayed) == results["replay"]["images"]


def test_runs_figures_and_registered_models_are_in_the_store(steps):
    place, results = steps
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{place}/mlruns/mlflow.db")
    experiment = client.get_experiment_by_name("persona-vision-digits").experiment_id
    runs = {run.info.run_name: run for run in client.search_runs([experiment])}
    figures = {}
    for name in ("prepare", "prototypes", "replay", "refine"):
        figures[name] = {item.path for item in client.list_artifacts(runs[name].info.run_id, "figures")}
    assert figures["prototypes"] == {f"figures/{name}.png" for name in ("choice_of_k", "gallery", "prototype_map")}
    assert {"figures/worst_devices.png", "figures/accuracy_along_the_stream.png"} <= figures["replay"]
    assert figures["refine"] == {f"figures/{name}.png" for name in ("assignment_flow", "movement", "prototype_map")}
    assert runs["stream persona_held_back"].data.metrics["stream/accuracy_vs_host_low"] <= 1
    model = client.get_model_version_by_alias("persona-vision-digits", "candidate")
    assert model.tags["bank"] == results["prototypes"]["version"]
    banks = client.search_model_versions("name = 'persona-vision-digits-prototypes'")
    assert {bank.tags["bank_version"] for bank in banks} == {results[s]["version"] for s in ("prototypes", "refine")}
    first, refined = (snapshots.of_run(client, runs[name].info.run_id) for name in ("prototypes", "refine"))
    assert first.rows == refined.rows
    assert "stream prototype/accuracy" in first.metrics
    assert first.units["prototype"].null_count() == 0
    assert "stream prototype/accuracy_vs_parent_low" in runs["refine"].data.metrics
    assert "validation prototype/accuracy_vs_parent_low" in runs["refine"].data.metrics, "which decided"


def test_the_registered_model_answers_like_the_bundle(place):
    classifier = Classifier.load(place / "work" / "bundle")
    data = Workspace(place / "work").data(VISION)
    uri = f"sqlite:///{place}/mlruns/mlflow.db"
    mlflow.set_tracking_uri(uri)
    served = mlflow.pyfunc.load_model("models:/persona-vision-digits@candidate")
    for level in ("edit", "prototype"):
        frame = served.predict(data.pixels[:20], params={"level": level})
        expected = classifier.classify(data.pixels[:20], level=level)
        assert frame["class"].tolist() == expected.classes
        assert set(frame["level"]) == {level}
    assert Classifier.load(answers.bundle_folder("models:/persona-vision-digits/1")).host == classifier.host


@pytest.mark.parametrize("mode", ["gated", "auto"])
def test_every_mode_is_released_alike(place, tmp_path, monkeypatch, mode):
    """A gated editor stands on a host with other layers than the one that was pretrained, which is what is packed."""
    shutil.copytree(place / "work", tmp_path / "work")
    go_to(tmp_path, monkeypatch)
    modes = ("--mode", mode, "--adaptive", "classifier")
    made = persona("prototypes", *modes, "--prototypes", "2")
    released = persona("release", *modes)
    assert released["bank"] == made["version"]
    classifier = Classifier.load(tmp_path / "work" / "bundle")
    space = Workspace(tmp_path / "work")
    problem = Problem(space.data(VISION), space.settings(VISION, {}))
    assert problem.config.mode == mode
    tags = (
        mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlruns/mlflow.db")
        .get_model_version("persona-vision-digits", "1")
        .tags
    )
    chosen, trained = train_configured(problem)
    assert tags["mode"] == released["mode"] == chosen
    settings = {name: float(value) for name, value in trained.chosen.items() if name != chosen}
    assert {k.removeprefix("chosen."): float(v) for k, v in tags.items() if k.startswith("chosen.")} == settings
    assert classifier.host == released["host_digest"]
    if mode == "gated":
        assert classifier.host != Classifier.load(place / "work" / "bundle").host
    replayed = persona("replay")
    assert replayed["accuracy"]["edit"] == pytest.approx(released["metrics"]["stream/accuracy"])


def test_files_are_classified_and_what_is_wrong_is_said(place, tmp_path):
    for i in range(3):
        Image.fromarray(np.full((40, 30), 80 * i, np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "note.txt").write_text("no image")
    answer = answers.classify(place / "work" / "bundle", images=[tmp_path])
    assert [path.rsplit("/", 1)[1] for path in answer.images] == ["0.png", "1.png", "2.png"]
    assert len(answer.skipped) == 1
    space = Workspace(place / "work")
    with pytest.raises(ConfigError, match="either a device"):
        answers.classify(space.bundle, work=space)
    with pytest.raises(DataError, match="no device 'digits/x'"):
        answers.classify(space.bundle, work=space, device="digits/x")
    with pytest.raises(DataError, match="does not exist"):
        answers.classify(space.bundle, images=[tmp_path / "none"])


def test_refining_twice_without_a_new_replay_is_refused(place, capsys):
    assert main(["vision", "refine", "--work", "work"]) == 2
    assert "replay` again" in capsys.readouterr().err
