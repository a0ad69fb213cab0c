"""Banks in MLflow's registry: one version each, with what people compare versions by."""

import json
from dataclasses import replace
from pathlib import Path

import mlflow
import polars as pl
import pytest
import torch

from persona.comparison import Measured
from persona.edit_format import load_edit
from persona.prototypes import RefineConfig, Server, load_bank, refine
from pipelines import tracking
from pipelines.tracking import banks
from pipelines.tracking.banks import BankVersion, bank_metrics, deltas, refinement_tags, register_bank, sample_edits
from tests.persona.prototypes.world import L, codes, editor, metric, partition, users, window

MODEL = "persona-any-prototypes"


@pytest.fixture(scope="module")
def refinement():
    part = partition()
    statistics = window(part, codes(200, seed=3, groups=4, place=1), users(200, 30))
    return refine(part.bank, metric(), statistics, RefineConfig(min_users=2))


def version(bank, **more):
    server = Server(editor(), bank)
    sample = sample_edits(server, codes(50, groups=4), [f"u{i}" for i in range(50)])
    return BankVersion(bank, server, "What it is.", {"bank/k": float(len(bank))}, {"data_digest": "d"}, sample, **more)


@pytest.fixture
def registered(workplace, refinement):
    """A first version and its refinement."""
    tracking.connect("any")
    made = []
    for bank, tags in ((partition().bank, {}), (refinement.bank, refinement_tags(refinement.bank, refinement))):
        with tracking.run("bank"):
            new = version(bank)
            made.append(register_bank(MODEL, BankVersion(**{**vars(new), "tags": {**new.tags, **tags}})))
    return made


def test_versions_name_their_parents_and_what_moved(registered, refinement):
    client = mlflow.MlflowClient()
    assert [r.uri for r in registered] == [f"models:/{MODEL}/1", f"models:/{MODEL}/2"]
    first, second = (client.get_model_version(MODEL, str(i)) for i in (1, 2))
    assert int(client.get_model_version_by_alias(MODEL, "champion").version) == 1
    assert int(client.get_model_version_by_alias(MODEL, "candidate").version) == 2
    assert (first.tags["kind"], first.tags["parent_version"], first.tags["k"]) == ("fit", "", "4")
    assert (second.tags["kind"], second.tags["parent_version"]) == ("refine", "1")
    assert second.tags["parent"] == first.tags["bank_version"] == partition().bank.version
    assert second.tags["moved_users"] == str(len(refinement.moved))
    assert len(json.loads(second.tags["movement"])) == L
    assert sum(json.loads(second.tags["members"])) == pytest.approx(200)
    assert second.tags["host_digest"] == partition().bank.host
    assert second.tags["data_digest"] == "d"
    assert second.description == "What it is."


def test_the_artifacts_are_the_bank_and_a_sample_of_editing_matrices(registered, tmp_path):
    folder = Path(mlflow.artifacts.download_artifacts(registered[0].uri, dst_path=str(tmp_path)))
    assert load_bank(folder / "bank").version == partition().bank.version
    edits = load_edit(folder / "edits.safetensors", partition().bank.host)
    assert len(edits) == banks.SAMPLED_EDITS
    table = pl.read_parquet(folder / "edits.parquet")
    assert len(table) == 50
    assert table["norm"][0] == pytest.approx(edits.norm()[0].item(), rel=1e-5)
    interface = json.loads((folder / "interface.json").read_text())
    assert interface["output"]["prototype"]["values"] == 4
    assert interface["bytes"]["prototype"] == 1
    assert interface["bytes"]["basis"] <= 64


def test_a_bank_is_registered_once(registered, workplace):
    with tracking.run("again"):
        again = register_bank(MODEL, version(partition().bank))
    assert again == registered[0]
    client = mlflow.MlflowClient()
    assert len(client.search_model_versions(f"name = '{MODEL}'")) == 2
    assert int(client.get_model_version_by_alias(MODEL, "candidate").version) == 1


def test_what_is_not_worth_promoting_is_no_candidate(registered, refinement):
    worse = replace(refinement.bank, metadata={"kind": "refine", "worse": True})
    with tracking.run("worse"):
        made = register_bank(MODEL, version(worse), candidate=False)
    client = mlflow.MlflowClient()
    assert made.version == 3
    assert int(client.get_model_version_by_alias(MODEL, "candidate").version) == 2


def test_metrics_belong_to_the_version(registered):
    client = mlflow.MlflowClient()
    source = client.get_model_version(MODEL, "1").source
    logged = client.get_logged_model(source.removeprefix("models:/"))
    assert {m.key: m.value for m in logged.metrics} == {"bank/k": 4.0}
    assert logged.params["version"] == partition().bank.version


def test_a_row_of_the_table_says_what_its_edit_is():
    server = Server(editor(), partition().bank)
    z = codes(6, groups=4)
    sample = sample_edits(server, z, list("abcdef"), unit="device")
    row = sample.table.row(by_predicate=pl.col("device") == "c", named=True)
    edit = editor().bounded(editor().unbounded(z[2:3]))
    assert row["prototype"] == int(server.assign(z[2:3]))
    assert row["norm"] == pytest.approx(float(edit.norm()), rel=1e-6)
    norms = [row[f"norm {s.name}"] for s in edit.specs]
    assert norms == pytest.approx(edit.layer_norms()[0].tolist(), rel=1e-6)
    assert row["remaining norm"] == pytest.approx(float(server.assigner(z[2:3]).distances), rel=1e-6)


def test_metrics_of_a_refinement_say_how_far_and_whom(refinement):
    found = bank_metrics(refinement.bank, refinement)
    assert found["bank/moved_users"] == len(refinement.moved)
    layers = [spec.name for spec in refinement.bank.prototypes.specs]
    largest = [found[f"bank/movement/{name}"] for name in layers]
    assert torch.allclose(torch.tensor(largest), refinement.movement.amax(0), atol=1e-6)
    assert "bank/moved_users" not in bank_metrics(refinement.bank)


def test_differences_come_with_their_intervals():
    import numpy as np

    def measured(name, shift, count):
        values = np.linspace(0, 1, count) + shift
        return Measured(name, {"uauc": values.mean()}, {"uauc": values}, np.arange(count))

    found = deltas(measured("new", 0.25, 9), measured("parent", 0.0, 9), "window", ("uauc", "ndcg_10"))
    assert list(found) == ["window/uauc_vs_parent"]
    flat = banks.as_metrics(found)
    assert flat["window/uauc_vs_parent"] == pytest.approx(0.25)
    assert flat["window/uauc_vs_parent_low"] == pytest.approx(0.25)
    assert deltas(measured("new", 0.0, 1), measured("parent", 0.0, 1), "window", ("uauc",)) == {}
