"""Registered versions with snapshots, made in milliseconds: what a release leaves, without a model."""

import mlflow
import numpy as np

from pipelines import snapshots, tracking

USERS = 9
MODEL = "persona-films"


def snapshot(ndcg=None, users=USERS, rows="rows", units=None, **more):
    """A third of the users each in the three segments."""
    names = units or [f"u{i}" for i in range(users)]
    segments = snapshots.activity_segments(np.arange(users))
    values = np.full(users, 0.5) if ndcg is None else ndcg
    metrics = {"time/ndcg_10": values}
    return snapshots.measured("user", "time", rows, units=names, metrics=metrics, segments=segments, **more)


def register(made, model=MODEL, tags=None, name="release"):
    """A new version of ``model`` from a run that leaves ``made``; returns its number."""
    tracking.connect("films")
    client = mlflow.MlflowClient()
    with tracking.run(name) as run:
        if made is not None:
            snapshots.log(made)
            tracking.log_metrics_batch(made.summary)
    if model not in {found.name for found in client.search_registered_models()}:
        client.create_registered_model(model)
    version = client.create_model_version(model, f"{run.info.artifact_uri}/bundle", run.info.run_id, tags=tags)
    return int(version.version)
