import mlflow
import numpy as np
import pytest

from persona.comparison import Measured
from persona.errors import DataError
from pipelines import tracking
from pipelines.steps.evaluate import Comparison

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
