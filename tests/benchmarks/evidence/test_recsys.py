import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from benchmarks.evidence import recsys as evidence
from benchmarks.evidence import recsys_page as evidence_page
from persona.errors import ConfigError, DataError
from recsys.ablations import STUDIES
from recsys.config import RecsysConfig
from recsys.methods import METHODS
from recsys.task import RECSYS

FOLDER = Path(__file__).parents[3] / "docs" / "evidence"

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
        assert set(experiment.studies) <= set(STUDIES)
        alone = list(experiment.methods) == ["host"] and not experiment.studies
        assert experiment.seeds >= (1 if alone else 3), "comparisons need seeds"


def test_stored_results_fit_their_experiments():
    """A result whose settings were edited afterwards would speak of something else than its heading."""
    for name, experiment in evidence.experiments(FOLDER).items():
        path = FOLDER / f"{name}.json"
        if path.exists():
            result = json.loads(path.read_text())
            then = RecsysConfig.from_dict(result["settings"])
            assert evidence.decisive(then) == evidence.decisive(experiment.config)
            rows = [row["method"] for row in result["rows"]]
            if experiment.studies:
                assert {name for pair in experiment.pairs for name in pair} <= set(rows)
            else:
                assert rows == list(experiment.methods)
            assert result["seeds"] == experiment.seeds


def test_the_pages_are_rendered_from_the_results():
    for name, text in evidence_page.render(FOLDER).items():
        assert (FOLDER.parent / name).read_text() == text, "write them anew: python -m benchmarks.evidence recsys NAME"


def test_an_experiment_runs_once_until_it_changes(workplace):
    ran, notes = run(workplace)
    assert ran
    assert {note[1] for note in notes if note[2] is None} == {"host", *RECSYS.rivals, "persona_held_back"}
    assert run(workplace) == (False, [])
    path = workplace / "evidence" / "experiments.toml"
    path.write_text(TINY.replace("epochs = 1", "epochs = 2"))
    assert run(workplace)[0]


def test_the_section_shows_metrics_intervals_rivals_and_the_command(workplace):
    run(workplace)
    page = evidence_page.render(workplace / "evidence")["results.md"]
    result = json.loads((workplace / "evidence" / "tiny.json").read_text())
    for row in result["rows"]:
        assert f"| {row['method']} | {row['metrics']['uauc']:.4f} |" in page
    for expected in (
        "## A tiny log",
        "python -m benchmarks.evidence recsys tiny --data-folder DATA",
        "96 events, 12 users",
        "2 seeds",
        "* persona_held_back against host: uauc",
        "paper/uauc",
        "Small.",
    ):
        assert expected in page


GRID = """
[[experiment]]
name = "alone"
title = "Alone"
goal = "runs"
data = "log"
protocol = "paper"

[[grid]]
name = "loss"
title = "Two cells"
goal = "above the host"
data = { log = "paper" }
hosts = ["gru4rec", "sasrec"]

[grid.shared]
methods = ["host", "duet", "persona_held_back", "persona_prototypes", "persona_basis", "persona"]
rivals = ["duet"]
headlines = ["uauc"]
settings = { epochs = 1 }
"""


def difference(mean, low, high):
    return {"mean": mean, "low": low, "high": high, "seed_min": low, "seed_max": high, "seeds": 3}


def test_a_grid_is_summed_up_over_its_cells(tmp_path):
    folder = tmp_path / "evidence"
    folder.mkdir()
    (folder / "experiments.toml").write_text(GRID)
    assert list(evidence.experiments(folder)) == ["alone", "log-paper-gru4rec-loss", "log-paper-sasrec-loss"]
    assert evidence.experiments(folder)["log-paper-sasrec-loss"].config.host == "sasrec"
    for host, gain in (("gru4rec", difference(0.01, 0.005, 0.02)), ("sasrec", difference(-0.01, -0.02, 0.005))):
        gains = {"persona_prototypes": 0.9 * gain["mean"], "persona_basis": 0.99 * gain["mean"]}
        rows = [
            {
                "method": name,
                "metrics": {"uauc": 0.7},
                "differences": {} if name == "host" else {"uauc": {**gain, "mean": gains.get(name, gain["mean"])}},
                "seconds": 1.0,
                "refresh_bytes": 46,
            }
            for name in ("host", "duet", "persona_held_back", "persona_prototypes", "persona_basis", "persona")
        ]
        result = {
            "data": {"events": 9, "users": 3, "items": 4, "baskets": False},
            "users": 3,
            "seeds": 3,
            "rows": rows,
            "pairs": [{"method": "persona", "rival": "duet", "differences": {"uauc": difference(-0.02, -0.03, -0.01)}}],
        }
        (folder / f"log-paper-{host}-loss.json").write_text(json.dumps(result))
    pages = evidence_page.render(folder)
    assert "1 above, 1 undecided, 0 below | 0 above, 0 undecided, 2 below |" in pages["results.md"]
    assert "2 of 2 cells" in pages["results.md"]
    assert "| 90% | 46 | 99% | 46 |" in pages["results.md"]
    assert "| - | 46 | - | 46 |" in pages["results.md"], "no share of a gain that is not decided"
    assert "python -m benchmarks.evidence recsys log-paper-sasrec-loss" in pages["results-loss.md"]
    assert evidence_page.write(folder) == [tmp_path / "results.md", tmp_path / "results-loss.md"]


def test_missing_data_and_unknown_keys_are_named(workplace):
    experiment = evidence.experiments(workplace / "evidence")["tiny"]
    with pytest.raises(DataError, match="--data-folder"):
        evidence.run(experiment, workplace / "work", None, 1, lambda *_: None, workplace / "evidence")
    with pytest.raises(DataError, match=r"log/interactions\.parquet"):
        evidence.run(experiment, workplace / "work", workplace, 1, lambda *_: None, workplace / "evidence")
    (workplace / "evidence" / "experiments.toml").write_text(TINY.replace("goal", "gaol"))
    with pytest.raises(ConfigError, match="did you mean 'goal'"):
        evidence.experiments(workplace / "evidence")
