"""The recommender's pipeline as a user runs it: real ratings, the real command, a store of its own."""

import json
import os
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from itertools import pairwise

import mlflow
import polars as pl
import pytest

from persona.errors import ConfigError
from pipelines import console
from pipelines.cli import main
from pipelines.commands.recsys import show as recsys_show
from pipelines.steps import answers as answering
from pipelines.steps.workspace import Workspace
from recsys.data import catalogue
from recsys.data.columns import ITEM, USER
from recsys.serving.recommender import Ranked, Recommendation, Recommender
from recsys.serving.release import Release
from recsys.task import RECSYS
from tests.pipelines.small import SMALL
from tests.recsys.toy import ITEMS, personalised, sequences, walks

USERS, FILMS = 60, 150
EVALUATED = "persona_held_back,finetune_adaptive"


def clean_environment() -> dict[str, str]:
    """Without what tests that ran before leave of MLflow."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    return {**kept, "MLFLOW_DISABLE_TELEMETRY": "true"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working directory with the ratings of the most active users for the most rated films."""
    folder = tmp_path_factory.mktemp("films")
    log = catalogue.load("movielens-small")
    frame = log.frame.with_columns(pl.col(USER).cast(pl.String), pl.col(ITEM).cast(pl.String))
    for column, count in ((USER, USERS), (ITEM, FILMS)):
        frame = frame.filter(pl.col(column).is_in(frame[column].value_counts(sort=True)[column].head(count).implode()))
    frame.join(log.titles, on=ITEM, how="left").write_csv(folder / "ratings.csv")
    return folder


@pytest.fixture(scope="module")
def persona(place):
    """Runs the command in a process of its own and returns the JSON document it prints."""

    def run(*arguments: str):
        command = [sys.executable, "-m", "pipelines.cli", "recsys", *arguments, "--json"]
        done = subprocess.run(command, cwd=place, env=clean_environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.fixture(scope="module")
def steps(persona, place):
    """One step after the other, each from what the one before left; and when each checkpoint was written."""
    results = {"prepare": persona("prepare", "--data", "ratings.csv")}
    written = []
    for step, arguments in (
        ("pretrain", SMALL),
        ("edit", ()),
        ("evaluate", ("--methods", EVALUATED)),
        ("release", ()),
    ):
        results[step] = persona(step, *arguments)
        written.append({p: p.stat().st_mtime_ns for p in (place / "work").rglob("checkpoint.safetensors")})
    results["recommend"] = persona("recommend", "--history", "nothing,318,296", "--k", "5")
    for earlier, later in pairwise(written):
        assert earlier.items() <= later.items(), "what a step trained, no later one trains again"
    assert [len(files) for files in written] == [1, 2, 3, 3]
    return results


@pytest.fixture(scope="module")
def whole(steps, place):
    """Everything by one command, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        go_to(place, patch)
        patch.setattr(sys, "path", list(sys.path))  # MLflow loads what it registers, and leaves its code there
        with redirect_stdout(StringIO()) as out:
            code = main(
                [
                    *("recsys", "run", "--data", "ratings.csv", "--work", "again", "--json"),
                    *("--methods", "persona_held_back", *SMALL),
                ]
            )
    assert code == 0
    return json.loads(out.getvalue())


@pytest.fixture(scope="module")
def client(place):
    return mlflow.MlflowClient(tracking_uri=f"sqlite:///{place}/mlruns/mlflow.db")


@pytest.fixture
def inside(place, monkeypatch):
    """This process at the place of the others."""
    go_to(place, monkeypatch)
    return place


def go_to(place, patch):
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        patch.delenv(name)
    patch.chdir(place)


def runs_of(client, parent=None):
    """Runs by name, those of no parent or of ``parent``; the latest of each name."""
    experiment = client.get_experiment_by_name("persona-recsys-ratings")
    found = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])
    return {run.info.run_name: run for run in found if run.data.tags.get("mlflow.parentRunId") == parent}


def artifacts(client, run, folder=""):
    found = []
    for entry in client.list_artifacts(run.info.run_id, folder):
        found += artifacts(client, run, entry.path) if entry.is_dir else [entry.path]
    return sorted(found)


@pytest.mark.slow
def test_every_step_tells_what_it_did(steps):
    prepared = steps["prepare"]
    assert (prepared["users"], prepared["items"]) == (USERS, FILMS)
    assert any("title = title" in line for line in prepared["understood"])
    assert steps["pretrain"]["name"] == "host"
    assert steps["edit"]["name"] == "persona_held_back"
    assert steps["pretrain"]["epochs"] == steps["edit"]["epochs"] == 2
    assert steps["pretrain"]["split"]["protocol"] == "time"
    assert 0 < steps["pretrain"]["validation"]["uauc"] < 1
    [comparison] = steps["evaluate"]
    assert [row["method"] for row in comparison["rows"]] == ["host", *RECSYS.rivals, *EVALUATED.split(",")]
    assert comparison["settings"]["dim"] == 8, "settings are kept from step to step"
    assert all(row["seconds"] > 0 for row in comparison["rows"]), "also of what an earlier step trained"
    interval = comparison["rows"][1 + len(RECSYS.rivals)]["differences"]["uauc"]
    assert interval["low"] <= interval["mean"] <= interval["high"]
    released = steps["release"]
    assert released["model"] == {
        "name": "persona-recsys-ratings",
        "version": 1,
        "uri": "models:/persona-recsys-ratings/1",
    }
    assert released["metrics"]["time/uauc"] == comparison["rows"][1 + len(RECSYS.rivals)]["metrics"]["uauc"]
    recommendation = steps["recommend"]["recommendation"]
    assert recommendation["level"] == "edit"
    assert recommendation["unknown"] == ["nothing"]
    assert len(recommendation["items"]) == 5
    assert all(item["title"] for item in recommendation["items"])
    assert not {"318", "296"} & {item["item_id"] for item in recommendation["items"]}


@pytest.mark.slow
def test_every_step_alone_is_a_finished_run(steps, client):
    runs = runs_of(client)
    assert set(runs) >= {"prepare", "pretrain", "edit", "evaluate", "release"}
    for name in ("prepare", "pretrain", "edit", "evaluate", "release"):
        assert runs[name].info.status == "FINISHED"
        assert runs[name].data.tags["step"] == name
    assert runs["prepare"].data.params["data_digest"] == steps["prepare"]["digest"]
    assert runs["prepare"].inputs.dataset_inputs[0].dataset.name == "ratings"
    assert artifacts(client, runs["prepare"]) == ["data/report.json"]
    assert runs["edit"].data.params["transfer"] == "stacked"
    assert runs["edit"].data.params["dim"] == "8"
    history = client.get_metric_history(runs["edit"].info.run_id, "persona_held_back/uauc")
    assert [metric.step for metric in history] == [0, 1]
    assert artifacts(client, runs["edit"]) == ["figures/learning_curves.png"]


@pytest.mark.slow
def test_a_comparison_has_a_run_for_every_method_and_figures(steps, client):
    evaluate = runs_of(client)["evaluate"]
    assert artifacts(client, evaluate) == [
        "comparison/time.json",
        "figures/comparison_time.png",
        "figures/learning_curves_time.png",
    ]
    methods = runs_of(client, evaluate.info.run_id)
    rows = {row["method"]: row for row in steps["evaluate"][0]["rows"]}
    assert set(methods) == {f"time {name}" for name in rows}
    for name, row in rows.items():
        run = methods[f"time {name}"]
        assert run.data.params["method"] == name
        assert run.data.metrics["time/uauc"] == pytest.approx(row["metrics"]["uauc"])
        assert run.data.metrics["refresh_bytes"] == row["refresh_bytes"]
        protocols = {metric.partition("/")[0] for metric in run.data.metrics if "/" in metric}
        assert protocols == {"time"}, "the protocol is part of a metric's name"
    assert methods["time persona_held_back"].data.metrics["time/uauc_vs_host_low"] == pytest.approx(
        rows["persona_held_back"]["differences"]["uauc"]["low"]
    )


@pytest.mark.slow
def test_the_whole_way_is_one_run_with_the_steps_inside(whole, client):
    parent = client.get_run(whole["run_id"])
    assert parent.info.status == "FINISHED"
    assert parent.data.params["source"] == "ratings.csv"
    assert parent.data.params["host"] == "gru4rec"
    assert artifacts(client, parent) == ["recommendations.json"]
    inner = runs_of(client, whole["run_id"])
    assert set(inner) == {"prepare", "evaluate", "prototypes", "release"}
    compared = ("host", *RECSYS.rivals, "persona_held_back")
    assert set(runs_of(client, inner["evaluate"].info.run_id)) == {f"time {name}" for name in compared}
    before, after = whole["answers"]["before"], whole["answers"]["after"]
    assert before["history"] == after["history"][:-5]
    assert len(after["recommendation"]["items"]) == 10
    assert not set(after["history"]) & {item["item_id"] for item in after["recommendation"]["items"]}


@pytest.mark.slow
def test_all_at_once_gives_the_numbers_of_step_by_step(steps, whole):
    one_by_one = {row["method"]: row["metrics"] for row in steps["evaluate"][0]["rows"]}
    for row in whole["comparisons"][0]["rows"]:
        assert row["metrics"] == one_by_one[row["method"]]
    assert whole["released"]["host_digest"] == steps["release"]["host_digest"]


@pytest.mark.slow
def test_the_registered_model_is_the_candidate(whole, client):
    found = client.get_model_version("persona-recsys-ratings", "2")
    assert int(found.version) == whole["released"]["model"]["version"] == 2
    assert found.tags["host_digest"] == whole["released"]["host_digest"]
    assert found.tags["data_digest"] == whole["prepared"]["digest"]
    assert found.tags["mode"] == "held_back"
    assert float(found.tags["time/uauc_vs_host"]) == pytest.approx(
        whole["comparisons"][0]["rows"][1 + len(RECSYS.rivals)]["differences"]["uauc"]["mean"]
    )
    assert "gru4rec host" in found.description


SERVE = """
import json, pickle, sys
import mlflow, pandas, torch, torchrec
def refuse(*args, **kwargs):
    raise AssertionError("something was unpickled")
pickle.load = pickle.loads = pickle.Unpickler = torch.load = refuse
model = mlflow.pyfunc.load_model("models:/persona-recsys-ratings/2")
answers = model.predict(pandas.DataFrame({"history": json.loads(sys.argv[1])}), params={"k": 7})
import persona, recsys
print(json.dumps({"answers": answers.to_dict("list"), "code": [persona.__file__, recsys.__file__]}))
"""


@pytest.mark.slow
def test_mlflow_serves_the_candidate_where_nothing_can_be_unpickled(whole, place, tmp_path):
    histories = [whole["answers"]["after"]["history"], ["318", "unheard of"], []]
    environment = clean_environment() | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{place}/mlruns/mlflow.db",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }
    command = [sys.executable, "-c", SERVE, json.dumps(histories)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    served = json.loads(done.stdout.splitlines()[-1])
    expected = Recommender.load(place / "again" / "bundle").recommend_many(histories, 7)
    answers = served["answers"]
    assert answers["items"] == [[item.item_id for item in answer.items] for answer in expected]
    assert answers["scores"] == [[item.score for item in answer.items] for answer in expected]
    assert answers["titles"] == [[item.title for item in answer.items] for answer in expected]
    assert answers["level"] == ["edit", "edit", "host"]
    assert all(str(place / "mlruns") in file for file in served["code"]), "the model brings its code along"


@pytest.mark.slow
def test_the_candidate_recommends_like_the_bundle(whole, inside, capsys):
    def recommend(*arguments):
        assert main(["recsys", "recommend", "--work", "again", *arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    user = whole["user"]
    answer = recommend("--user", user)
    assert answer == whole["answers"]["after"]
    assert recommend("--user", user, "--model", "models:/persona-recsys-ratings/2") == answer
    assert recommend("--user", user, "--drop-last", "5") == whole["answers"]["before"]
    assert recommend("--user", user, "--level", "host")["recommendation"]["level"] == "host"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("recommend", "--user", "nobody"), "user 'nobody' is not in the data (60 users, for example "),
        (("recommend",), "give either a user of the prepared log (--user) or a history"),
        (("recommend", "--user", "1", "--history", "2"), "give either a user"),
        (("recommend", "--history", "318", "--level", "edti"), "did you mean 'edit'"),
        (("recommend", "--history", "318", "--model", "models:/persona-recsys-ratings@champion"), "champion not found"),
        (("recommend", "--history", "318", "--model", "nowhere"), "nowhere holds no bundle"),
        (("evaluate", "--methods", "host,persona_heldback"), "did you mean 'persona_held_back'"),
        (("evaluate", "--protocols", "time,papper"), "unknown protocol 'papper': did you mean 'paper'"),
        (
            ("evaluate", "--protocol", "full", "--monitor", "uauc"),
            "monitor 'uauc' cannot select epochs under protocol full",
        ),
    ],
)
def test_what_cannot_be_done_is_one_sentence(steps, inside, capsys, arguments, sentence):
    before = sorted((inside / "work" / "cells").rglob("*"))
    assert main(["recsys", *arguments]) == 2
    out, err = capsys.readouterr()
    assert sentence in err
    assert "Traceback" not in out + err
    assert err.strip().count("\n") == 0
    assert sorted((inside / "work" / "cells").rglob("*")) == before, "refused before anything was trained"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("prepare", "--data", "empty.csv"), "empty.csv"),
        (("pretrain",), "nothing was prepared in work: run `persona recsys prepare --work work` first"),
        (("edit",), "nothing was prepared in work"),
        (("evaluate",), "nothing was prepared in work"),
        (("release",), "nothing was prepared in work"),
        (("run", "--data", "empty.csv"), "empty.csv"),
    ],
)
def test_a_step_that_fails_leaves_a_failed_run_with_the_reason(workplace, capsys, arguments, sentence):
    (workplace / "empty.csv").touch()
    assert main(["recsys", *arguments, "--json"]) == 2
    out, err = capsys.readouterr()
    assert sentence in err
    assert "Traceback" not in err
    assert json.loads(out)["error"] in err
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{workplace}/mlruns/mlflow.db")
    runs = client.search_runs([found.experiment_id for found in client.search_experiments()])
    assert len(runs) == (2 if arguments[0] == "run" else 1)
    for run in runs:
        assert run.info.status == "FAILED"
        assert sentence in run.data.tags["failure"]


@pytest.fixture(scope="module")
def compiled():
    """What answers are made with, compiled once."""
    return Release(personalised(learned=True), [str(100 + i) for i in range(1, ITEMS + 1)]).compile().compiled


@pytest.fixture
def space(tmp_path, compiled):
    """A workspace with prepared walks and a bundle, though untrained."""
    space = Workspace(tmp_path / "work")
    data = walks()
    data.save(space.prepared)
    made = Release(personalised(learned=True), data.item_ids.to_list(), data.titles.to_list())
    made.compiled = compiled
    made.save(space.bundle)
    return space


def test_a_user_is_answered_by_their_history(space):
    data = space.data(RECSYS)
    history = [data.item_ids[int(i) - 1] for i in data.history_of("u3")]
    answer = answering.recommend(space.bundle, work=space, user="u3", k=4)
    assert answer.history == history
    assert answer.recommendation == Recommender.load(space.bundle).recommend(history, 4)
    assert answer == answering.recommend(space.bundle, history=history, k=4)


@pytest.mark.parametrize(("drop", "left"), [(0, 12), (5, 7), (12, 0), (13, 0), (20, 0)])
def test_the_latest_events_can_be_left_out(space, drop, left):
    answer = answering.recommend(space.bundle, work=space, user="u3", drop_last=drop)
    data = space.data(RECSYS)
    assert answer.history == [data.item_ids[int(i) - 1] for i in data.history_of("u3")][:left]
    assert answer.recommendation.level == ("edit" if left else "host")


def test_a_user_needs_a_workspace(space):
    with pytest.raises(ConfigError, match="give --work, or a --history"):
        answering.recommend(space.bundle, user="u3")


def test_the_user_shown_is_the_one_active_last_with_a_history_worth_showing(tmp_path):
    space = Workspace(tmp_path)
    data = sequences([[1, 2, 3] * 5, [4, 5] * 6, [7]])
    data.save(space.prepared)
    assert answering.latest_user(space) == "u1", "u2 came later, with one event"


def test_before_and_after_may_differ_in_length(capsys):
    """A small catalogue has fewer fresh items after five more events."""

    def answer(*ids):
        return answering.Recommended([], Recommendation([Ranked(one, 0.5) for one in ids], "edit"))

    recsys_show.before_after("7", {"before": answer("a", "b"), "after": answer("c")}, console.Output(False))
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("user 7", "a", "b", "c", "new"))
