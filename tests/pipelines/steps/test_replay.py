"""The command `persona recsys replay`, from a log to a report in MLflow."""

import json

import mlflow
import numpy as np
import pytest

from pipelines.cli import main
from pipelines.tracking import replay_figures, store
from recsys.replay import METRICS, POLICIES
from tests.recsys.toy import write_walks

TINY = [
    "--preset",
    "paper",
    "--host",
    "gru4rec",
    "--dim",
    "8",
    "--max-length",
    "5",
    "--batch-size",
    "64",
    "--epochs",
    "1",
    "--protocol",
    "time",
]


def interval(mean):
    return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}


def test_the_figure_has_a_panel_a_metric_and_one_for_bytes():
    rows = [
        {"bytes_sent": 10**window, **{f"{m}_vs_host": interval(0.01 * window) for m in METRICS}} for window in range(3)
    ]
    report = {"scenario": "interest", "shift": 1, "policies": {name: {"windows": rows} for name in POLICIES}}
    figure = replay_figures.stream(report, METRICS)
    assert len(figure.axes) == len(METRICS) + 1
    labels = figure.axes[-1].get_legend_handles_labels()[1]
    assert labels == [name for name in POLICIES if name != "host"]
    last = figure.axes[-1].get_lines()[0].get_ydata()
    assert np.asarray(last).tolist() == [1, 11, 111]


@pytest.mark.slow
def test_a_stream_is_replayed_and_logged(workplace, capsys):
    log = write_walks(workplace / "films.csv", users=80, events=14)
    assert main(["recsys", "prepare", "--data", str(log), "--work", "work"]) == 0
    capsys.readouterr()
    command = ["recsys", "replay", "--work", "work", "--scenario", "popularity", "--windows", "3", "--shift", "1"]
    assert main([*command, "--min-users", "2", "--prototypes", "2", "--mode", "held_back", *TINY, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    kept = json.loads((workplace / "work" / "replay-popularity-seed0.json").read_text())
    assert printed["policies"] == kept["policies"]
    assert set(printed["policies"]) == set(POLICIES)
    assert (printed["prototypes"], printed["replay"]["refinement"]["min_users"]) == (2, 2)
    client = mlflow.MlflowClient(tracking_uri=store.default_uri())
    experiment = client.get_experiment_by_name("persona-recsys-films").experiment_id
    [run] = client.search_runs([experiment], "tags.step = 'replay'")
    assert run.info.status == "FINISHED"
    assert run.data.params["replay.scenario"] == "popularity"
    steps = client.get_metric_history(run.info.run_id, "refined/time/uauc")
    assert [m.step for m in steps] == [0, 1, 2]
    expected = [row["uauc"]["mean"] for row in printed["policies"]["refined"]["windows"]]
    assert [m.value for m in steps] == pytest.approx(expected)
    files = {f.path for kind in ("figures", "replay") for f in client.list_artifacts(run.info.run_id, kind)}
    assert files == {"figures/replay_popularity.png", "replay/popularity.json"}
    assert main(["recsys", "replay", "--work", "work", "--protocol", "paper"]) == 2
    assert "--protocol time" in capsys.readouterr().err
