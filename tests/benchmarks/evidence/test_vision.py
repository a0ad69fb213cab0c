"""The vision experiments as they stand, and how results become a page."""

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.evidence import vision as vision_evidence
from benchmarks.evidence.vision import Experiment
from persona.comparison import Measured
from persona.errors import ConfigError, DataError
from pipelines.steps.evaluate import Comparison
from tests.vision.common import toy_images
from vision.methods import METHODS

EXPERIMENTS = vision_evidence.experiments()
SMALL = Experiment(
    name="small",
    title="Small",
    goal="goal",
    data="digits",
    seeds=2,
    methods=["host", "t3a"],
    rivals=["host"],
    segment=2,
    note="A note.",
)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_can_be_run(name):
    experiment = EXPERIMENTS[name]
    assert set(experiment.methods) | set(experiment.rivals) <= set(METHODS)
    assert set(experiment.rivals) <= set(experiment.methods[:-1])
    assert experiment.seeds == 3
    assert all(config.seed == 0 for config in experiment.configs().values())


def measured(method: str, seed: int) -> Measured:
    rng = np.random.default_rng([seed, len(method)])
    accuracy = rng.uniform(0.5, 1, 4) + 0.1 * (method == "t3a")
    summary = {"accuracy": float(accuracy.mean()), "accuracy_worst": 0.5, "logloss": 1.0, "ece": 0.1}
    cost = {"forward_passes": 1.0, "backward_passes": 0.0}
    return Measured(method, summary | cost, {"accuracy": accuracy, "logloss": accuracy}, np.arange(4))


@pytest.fixture
def comparison():
    seeds = [{method: measured(method, seed) for method in ("host", "t3a")} for seed in (0, 1)]
    return Comparison.of_seeds(
        seeds, protocol="stream", settings={"host": "compact"}, unit="devices", headlines=("accuracy",)
    )


@pytest.fixture
def ran(comparison, tmp_path, monkeypatch):
    """An experiment whose steps are known already: what is run, and what the page then says."""
    data = toy_images(devices=4, per_device=2)
    names = ("abrupt/fog/0", "abrupt/snow/0", "abrupt/fog/1", "abrupt/snow/1")
    data = replace(data, device_ids=names)
    data.save(tmp_path / "work" / SMALL.workspace / "prepared")
    calls = []
    monkeypatch.setattr(vision_evidence, "evaluate", lambda *_, **__: calls.append(1) or [comparison])
    monkeypatch.setattr(vision_evidence, "experiments", lambda folder: {"small": SMALL})

    def run(experiment: Experiment = SMALL) -> bool:
        return vision_evidence.run(experiment, tmp_path / "work", None, 1, lambda *_: None, tmp_path)

    return run, calls, tmp_path


def test_what_is_up_to_date_is_not_run_again(ran):
    run, calls, _ = ran
    assert [run(), run(), len(calls)] == [True, False, 1]
    assert not run(replace(SMALL, title="Another title", note=""))
    assert run(replace(SMALL, settings={"epochs": 3}))


def test_the_page_shows_methods_rivals_and_parts(ran, comparison):
    run, _, folder = ran
    run()
    page = vision_evidence.render(folder)
    accuracy = np.mean([seed["t3a"].per_unit["accuracy"] for seed in comparison.measured], 0)
    assert f"| t3a | {accuracy.mean():.4f} | +" in page
    assert "* t3a against host: accuracy +" in page
    host = np.mean([seed["host"].per_unit["accuracy"] for seed in comparison.measured], 0)
    assert f"| fog | {host[[0, 2]].mean():.3f} | {accuracy[[0, 2]].mean():.3f} |" in page
    assert "python -m benchmarks.evidence vision small\n" in page
    assert page.endswith("A note.\n")
    assert "### All" not in page


def test_variants_are_summed_up(ran):
    run, _, folder = ran
    run(replace(SMALL, variants={"one": {}, "two": {"epochs": 2}}))
    result = json.loads((folder / "small.json").read_text())
    assert list(result["variants"]) == ["one", "two"]
    page = vision_evidence.render(folder)
    assert "| method | one | two | mean | mean against the host |" in page
    gain = result["variants"]["one"]["rows"][1]["differences"]["accuracy"]["mean"]
    assert result["overall"]["gains"]["t3a"]["mean"] == pytest.approx(gain), "both variants were measured alike"
    assert "* t3a against host: mean accuracy +" in page


def test_what_is_unknown_or_missing(tmp_path):
    (tmp_path / "vision.toml").write_text('[[experiment]]\nname = "a"\nmethod = "host"\n')
    with pytest.raises(ConfigError, match="did you mean 'methods'"):
        vision_evidence.experiments(tmp_path)
    with pytest.raises(DataError, match="--data-folder"):
        EXPERIMENTS["vision-qmnist-writers"].source((), "qmnist.npz", tmp_path)
