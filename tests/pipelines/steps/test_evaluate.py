import json
import sys

import mlflow
import numpy as np
import polars as pl
import pytest

from persona.comparison import Measured
from persona.errors import ConfigError, DataError
from pipelines import tracking
from pipelines.cli import main
from pipelines.steps.evaluate import Comparison, chosen
from recsys.task import RECSYS
from tests.pipelines.small import SMALL
from tests.recsys.toy import write_walks

SETTINGS = {"host": "compact", "seed": 3, "monitor": "accuracy"}


def measured(method, seed):
    accuracy = np.random.default_rng([seed, len(method)]).uniform(0.5, 1, 5)
    history = [{"epoch": 0.0, "loss": 1.0, "accuracy": 0.5}] if method == "edited" else []
    return Measured(method, {"accuracy": float(accuracy.mean())}, {"accuracy": accuracy}, np.arange(5), history=history)


@pytest.fixture
def comparison():
    seeds = [{method: measured(method, seed) for method in ("host", "edited")} for seed in (3, 4)]
    return Comparison.of_seeds(seeds, protocol="stream", settings=SETTINGS, unit="devices", headlines=("accuracy",))


def test_counts_seeds_and_units_and_names_the_unit(comparison):
    found = comparison.as_dict()
    assert (found["seeds"], found["devices"], found["protocol"]) == (2, 5, "stream")
    assert [row["method"] for row in found["rows"]] == ["host", "edited"]
    assert [m.method for m in comparison.of("edited")] == ["edited", "edited"]


def test_leaves_a_run_a_method_and_what_the_step_shows_of_all(comparison, workplace):
    tracking.connect("compared")
    with tracking.run("evaluate") as step:
        comparison.log()
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("compared").experiment_id
    runs = {run.info.run_name: run for run in client.search_runs([experiment])}
    assert set(runs) == {"evaluate", "stream host", "stream edited"}
    edited = runs["stream edited"].data
    gain = comparison.rows[1].differences["accuracy"].interval.mean
    assert edited.metrics["stream/accuracy_vs_host"] == gain
    assert edited.metrics["stream/seed3/loss"] == 1.0
    assert edited.tags["method"] == "edited"
    files = {f.path for folder in ("comparison", "figures") for f in client.list_artifacts(step.info.run_id, folder)}
    assert files == {
        "comparison/stream.json",
        "figures/comparison_stream.png",
        "figures/learning_curves_stream.png",
    }


def test_seeds_of_different_methods_are_no_comparison():
    seeds = [{"host": measured("host", 0)}, {"host": measured("host", 1), "edited": measured("edited", 1)}]
    with pytest.raises(DataError, match="different methods"):
        Comparison.of_seeds(seeds, protocol="stream", settings=SETTINGS, unit="devices", headlines=("accuracy",))


MINE = """
from recsys.methods import train_method

def train(problem):
    return train_method("popularity", problem)
"""


def test_a_function_and_a_file_of_scores_stand_in_the_comparison(workplace, monkeypatch, capsys):
    """The rows are written, scored by somebody, and judged beside a function of their own, in one table and one experiment."""
    monkeypatch.setattr("sys.path", [*sys.path])
    write_walks(workplace / "films.csv")
    (workplace / "my_methods.py").write_text(MINE)
    assert main(["recsys", "prepare", "--data", "films.csv", "--name", "shop"]) == 0
    paper = ("--protocol", "paper", *SMALL)
    assert main(["recsys", "evaluate", *paper, "--rows-out", "rows.csv"]) == 2
    assert "--rows-out rows.csv has to be a Parquet file" in capsys.readouterr().err
    assert main(["recsys", "evaluate", *paper, "--rows-out", "rows.parquet"]) == 0
    rows = pl.read_parquet("rows.parquet").explode("candidates")
    rows.select("user", "position", item="candidates", score=pl.lit(1.0)).write_csv("same.csv")
    for wrong, sentence in (
        (("--scores", "none.csv"), "--scores none.csv is no file"),
        (("--methods", "my_methods:missing"), "--methods: my_methods:missing cannot be loaded"),
    ):
        assert main(["recsys", "evaluate", *paper, *wrong]) == 2
        assert sentence in capsys.readouterr().err
    asked = ("--methods", "popularity,my_methods:train", "--scores", "same.csv", "--against", "same", "--json")
    assert main(["recsys", "evaluate", *paper, *asked]) == 0
    [found] = json.loads(capsys.readouterr().out)
    rows = {row["method"]: row for row in found["rows"]}
    assert set(rows) == {"host", *RECSYS.rivals, "popularity", "my_methods:train", "same"}
    assert rows["my_methods:train"]["metrics"] == rows["popularity"]["metrics"]
    assert rows["same"]["metrics"]["uauc"] == 0.5
    assert "uauc" in rows["same"]["differences"]
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("persona-recsys-shop").experiment_id
    names = {run.info.run_name for run in client.search_runs([experiment])}
    assert {"paper same", "paper my_methods:train"} <= names


def test_a_file_of_scores_may_not_take_the_name_of_a_method(tmp_path):
    (tmp_path / "popularity.csv").touch()
    with pytest.raises(ConfigError, match=r"popularity.csv is called like another method: rename the file"):
        chosen(RECSYS, ["host"], [tmp_path / "popularity.csv"])
