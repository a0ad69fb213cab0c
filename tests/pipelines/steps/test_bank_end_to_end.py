"""Prototypes as a user works with them: fit, release, recommend at every level, refine with new events, release again."""

import json
import os
import sys
from contextlib import redirect_stdout
from io import StringIO

import mlflow
import polars as pl
import pytest

from persona.prototypes import HeadMetric, load_bank
from persona.wire import LEVELS
from pipelines.cli import main
from pipelines.steps.workspace import Workspace
from pipelines.tracking import registry
from recsys.data import catalogue
from recsys.data.columns import ITEM, TIME, USER
from recsys.serving.release import Release
from recsys.task import RECSYS

MODEL = RECSYS.banks("ratings")
USERS, FILMS = 60, 150
SMALL = ("--host", "gru4rec", "--dim", "8", "--max-length", "5", "--width", "8", "--epochs", "3", "--batch-size", "64")
LEARN = ("--learning-rate", "0.02", "--editor-learning-rate", "0.02")
HISTORY = "318,296,593"


@pytest.fixture(scope="module")
def place(tmp_path_factory, empty_database):
    """A working directory with the ratings of active users; the last tenth of the time is a log of its own."""
    import shutil

    folder = tmp_path_factory.mktemp("bank")
    (folder / "mlruns").mkdir()
    shutil.copy(empty_database, folder / "mlruns" / "mlflow.db")
    log = catalogue.load("movielens-small")
    frame = log.frame.with_columns(pl.col(USER).cast(pl.String), pl.col(ITEM).cast(pl.String))
    for column, count in ((USER, USERS), (ITEM, FILMS)):
        frame = frame.filter(pl.col(column).is_in(frame[column].value_counts(sort=True)[column].head(count).implode()))
    cut = frame[TIME].quantile(0.9)
    frame.filter(pl.col(TIME) < cut).write_csv(folder / "ratings.csv")
    frame.filter(pl.col(TIME) >= cut).write_csv(folder / "new.csv")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
            patch.delenv(name)
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))  # MLflow loads what it registers, and leaves its code there
        yield folder


@pytest.fixture(scope="module")
def persona(place):
    def run(*arguments: str):
        with redirect_stdout(StringIO()) as out:
            code = main(["recsys", *arguments, "--json"])
        assert code == 0, out.getvalue()
        return json.loads(out.getvalue())

    return run


@pytest.fixture(scope="module")
def story(persona):
    """One step after the other."""
    done = {"prepare": persona("prepare", "--data", "ratings.csv")}
    done["prototypes"] = persona("prototypes", *SMALL, *LEARN, "--max-prototypes", "4")
    done["release"] = persona("release")
    done["answers"] = {level: persona("recommend", "--history", HISTORY, "--level", level) for level in LEVELS}
    done["refine"] = persona("refine", "--events", "new.csv", "--min-users", "2")
    done["again"] = persona("release")
    return done


@pytest.fixture(scope="module")
def client(story):
    return mlflow.MlflowClient()


@pytest.mark.slow
def test_a_bank_is_fitted_and_released_with_the_bundle(story):
    fitted = story["prototypes"]
    assert fitted[0]["kind"] == "fit"
    assert fitted[0]["k"] in (1, 2, 4)
    assert set(fitted[0]["report"]["levels"]) == set(LEVELS)
    assert story["release"]["bank"] == fitted[-1]["version"]
    assert story["release"]["prototypes"] == fitted[-1]["k"]


@pytest.mark.slow
def test_the_bundle_answers_at_every_level(story):
    for level, answer in story["answers"].items():
        found = answer["recommendation"]
        assert (found["level"], found["fallback"], len(found["items"])) == (level, "", 10)
        assert found["bank"] == story["release"]["bank"]
        assert found["prototype"] is not None, "the nearest one is told of at every level"


@pytest.mark.slow
def test_a_refinement_is_a_new_version_in_a_persisted_lineage(story, place):
    refined, parent = story["refine"], story["release"]["bank"]
    assert refined["parent"] == parent
    assert refined["report"]["window"]["events"] > 100
    assert len(refined["report"]["movement"]) == refined["k"]
    bundle = Release.load(Workspace(place / "work").bundle)
    lineage = Workspace(place / "work").lineage(bundle.host_digest)
    assert [record.kind for record in lineage.history()][-1] == "refine"
    assert lineage.head == (refined["version"] if refined["served"] else parent)
    statistics = lineage.statistics(refined["version"])
    assert len(statistics.by_user()[0]) == refined["report"]["window"]["users"]
    lineage.load(refined["version"]).check(HeadMetric(bundle.model.editor))
    metrics = refined["metrics"]
    assert metrics["window/uauc_vs_parent_low"] <= metrics["window/uauc_vs_parent"]


@pytest.mark.slow
def test_the_next_release_packs_the_head(story, place):
    expected = story["refine"]["version"] if story["refine"]["served"] else story["refine"]["parent"]
    assert story["again"]["bank"] == expected
    assert story["again"]["host_digest"] == story["release"]["host_digest"]
    fetched = Release.load(registry.download(f"{story['again']['model']['uri']}"))
    assert fetched.bank.version == expected


@pytest.mark.slow
def test_every_version_is_registered_with_what_people_compare(story, client, tmp_path):
    found = sorted(client.search_model_versions(f"name = '{MODEL}'"), key=lambda entry: int(entry.version))
    assert len(found) == len(story["prototypes"]) + 1
    assert int(client.get_model_version_by_alias(MODEL, "champion").version) == 1
    newest = client.get_model_version_by_alias(MODEL, "candidate")
    assert newest.tags["bank_version"] == story["refine"]["version"]
    assert newest.tags["parent_version"] == str(len(story["prototypes"]))
    assert "no labels, no gradients" in newest.description
    assert newest.tags["window/uauc_vs_parent"].endswith("]"), "with its interval"
    folder = mlflow.artifacts.download_artifacts(f"models:/{MODEL}@candidate", dst_path=str(tmp_path))
    assert load_bank(os.path.join(folder, "bank")).version == story["refine"]["version"]
    run = client.get_run(newest.run_id)
    assert run.info.run_name == "refine"
    assert run.data.metrics["bank/moved_users"] == story["refine"]["report"]["moved_users"]
    figures = {entry.path for entry in client.list_artifacts(newest.run_id, "figures")}
    assert figures == {f"figures/{name}.png" for name in ("assignment_flow", "movement", "prototype_map")}
    assert {entry.path for entry in client.list_artifacts(newest.run_id)} >= {"snapshot", "tables", "refinement.json"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("refine",), "say which events are new"),
        (("refine", "--last", "3", "--events", "new.csv"), "say which events are new"),
        (("refine", "--window", "soon", "later"), "'soon' is no time"),
        (("refine", "--window", "2030-01-01", "2031-01-01"), "no event lies between 2030-01-01"),
        (("refine", "--events", "ratings.csv"), "holds no event that the prepared log does not have"),
        (("refine", "--work", "elsewhere", "--last", "3"), "holds no bundle"),
        (("prototypes", "--max-prototypes", "0"), "max-prototypes"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(story, arguments, sentence, capsys):
    assert main(["recsys", *arguments]) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())
