import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from persona.errors import ConfigError, DataError
from pipelines import evidence
from recsys.baselines import METHODS

FOLDER = Path(__file__).parents[2] / "docs" / "evidence"

TINY = """
[[experiment]]
name = "tiny"
title = "A tiny log"
goal = "runs"
data = "log"
protocol = "paper"
seeds = 2
methods = ["host", "persona_held_back"]
rivals = ["host"]
headlines = ["uauc", "ndcg_10"]
settings = { host = "gru4rec", dim = 8, epochs = 1, batch_size = 64 }
note = "Small."
"""


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    rng = np.random.default_rng(0)
    events = {"user_id": np.repeat(np.arange(12), 8), "item_id": rng.integers(1, 40, 96), "timestamp": np.arange(96)}
    (tmp_path / "data" / "log").mkdir(parents=True)
    pl.DataFrame(events).write_parquet(tmp_path / "data" / "log" / "interactions.parquet")
    (tmp_path / "evidence").mkdir()
    (tmp_path / "evidence" / "experiments.toml").write_text(TINY)
    return tmp_path


def run(workplace):
    experiment = evidence.experiments(workplace / "evidence")["tiny"]
    notes = []
    ran = evidence.run(
        experiment,
        workplace / "work",
        workplace / "data",
        1,
        lambda *note: notes.append(note),
        workplace / "evidence",
    )
    return ran, notes


def test_declared_experiments_are_valid():
    declared = evidence.experiments(FOLDER)
    assert declared
    for experiment in declared.values():
        assert experiment.config.protocol == experiment.protocol
        assert set(experiment.methods) | set(experiment.rivals) <= set(METHODS)
        assert experiment.seeds >= (1 if list(experiment.methods) == ["host"] else 3), "comparisons need seeds"


def test_stored_results_fit_their_experiments():
    """A result whose settings were edited afterwards would speak of something else than its heading."""
    for name, experiment in evidence.experiments(FOLDER).items():
        path = FOLDER / f"{name}.json"
        if path.exists():
            result = json.loads(path.read_text())
            assert result["settings"] == experiment.config.as_dict()
            assert [row["method"] for row in result["rows"]] == list(experiment.methods)
            assert result["seeds"] == experiment.seeds


def test_the_page_is_rendered_from_the_results():
    assert (FOLDER.parent / "results.md").read_text() == evidence.render(FOLDER)


def test_an_experiment_runs_once_until_it_changes(workplace):
    ran, notes = run(workplace)
    assert ran
    assert {note[1] for note in notes if note[2] is None} == {"host", "persona_held_back"}
    assert run(workplace) == (False, [])
    path = workplace / "evidence" / "experiments.toml"
    path.write_text(TINY.replace("epochs = 1", "epochs = 2"))
    assert run(workplace)[0]


def test_the_section_shows_metrics_intervals_rivals_and_the_command(workplace):
    run(workplace)
    page = evidence.render(workplace / "evidence")
    result = json.loads((workplace / "evidence" / "tiny.json").read_text())
    for row in result["rows"]:
        assert f"| {row['method']} | {row['metrics']['uauc']:.4f} |" in page
    for expected in (
        "## A tiny log",
        "persona recsys evidence tiny --data-folder DATA",
        "96 events, 12 users",
        "2 seeds",
        "* persona_held_back against host: uauc",
        "paper/uauc",
        "Small.",
    ):
        assert expected in page


def test_missing_data_and_unknown_keys_are_named(workplace):
    experiment = evidence.experiments(workplace / "evidence")["tiny"]
    with pytest.raises(DataError, match="--data-folder"):
        evidence.source_of(experiment, None)
    with pytest.raises(DataError, match=r"log/interactions\.parquet"):
        evidence.source_of(experiment, workplace)
    (workplace / "evidence" / "experiments.toml").write_text(TINY.replace("goal", "gaol"))
    with pytest.raises(ConfigError, match="did you mean 'goal'"):
        evidence.experiments(workplace / "evidence")
