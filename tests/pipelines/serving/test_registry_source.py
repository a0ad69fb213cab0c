"""The service follows an alias of MLflow's registry."""

import pytest

from persona.errors import DataError
from pipelines import tracking
from pipelines.serving.models import Models
from pipelines.serving.recsys.servable import RecommenderTask
from pipelines.serving.sources import source_of
from tests.pipelines.serving.toy import bank_version, write_bundle

pytestmark = pytest.mark.slow
NAME = "films"


def register(client, experiment, folder):
    """A version of the registered model, with the bundle among its files."""
    run = client.create_run(experiment)
    client.log_artifacts(run.info.run_id, str(folder), "recommender/artifacts/bundle")
    source = f"{client.get_run(run.info.run_id).info.artifact_uri}/recommender"
    return client.create_model_version(NAME, source, run.info.run_id).version


def test_an_alias_is_followed_from_version_to_version(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlruns' / 'mlflow.db'}")
    experiment = tracking.connect("serving").experiment_id
    client = tracking.client()
    client.create_registered_model(NAME)
    numbers = [register(client, experiment, write_bundle(tmp_path / f"bundle{seed}", seed)) for seed in (0, 1)]
    models = Models(RecommenderTask(), source_of(f"models:/{NAME}@champion"))
    with pytest.raises(DataError, match="'champion'"):
        models.refresh()
    for seed in (0, 1, 0):
        client.set_registered_model_alias(NAME, "champion", numbers[seed])
        assert models.refresh()
        assert models.current().versions.bank == bank_version(seed)
        assert models.current().versions.version == str(numbers[seed])
        assert not models.refresh()
    client.delete_registered_model_alias(NAME, "champion")
    assert not models.refresh()
    assert models.current().versions.bank == bank_version(0), "what is in use goes on answering"
    assert "champion" in models.refused
    fixed = Models(RecommenderTask(), source_of(f"models:/{NAME}/{numbers[1]}"))
    fixed.refresh()
    assert fixed.current().versions.bank == bank_version(1)
