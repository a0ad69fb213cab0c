"""Registered versions with snapshots, made in milliseconds: what a release leaves, without a model."""

import dataclasses
import tempfile
from pathlib import Path

import mlflow
import numpy as np
import torch

from persona.prototypes import RefineConfig, refine, save_bank
from pipelines import tracking
from pipelines.versions import snapshots
from tests.persona.prototypes import world

USERS = 9
MODEL, BANKS = "persona-films", "persona-films-prototypes"


def snapshot(ndcg=None, users=USERS, rows="rows", units=None, **more):
    """A third of the users each in the three segments."""
    names = units or [f"u{i}" for i in range(users)]
    segments = snapshots.activity_segments(np.arange(users) + 1)
    values = np.full(users, 0.5) if ndcg is None else ndcg
    metrics = {"time/ndcg_10": values}
    return snapshots.from_columns("user", "time", rows, units=names, metrics=metrics, segments=segments, **more)


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


def refined(bank, seed):
    """A version of a bank after another window."""
    part = dataclasses.replace(world.partition(), bank=bank)
    z = torch.tanh(world.codes(100, seed, groups=4) + 0.1 * seed)
    statistics = world.window(part, z, world.users(100, 20, seed))
    return refine(bank, world.metric(), statistics, RefineConfig(min_users=2)).bank


def register_bank(bank, made=None, model=BANKS, tags=None):
    """A new version of a bank; returns its number."""
    tracking.connect("films")
    client = mlflow.MlflowClient()
    with tracking.run("refine") as run, tempfile.TemporaryDirectory() as folder:
        save_bank(Path(folder), bank)
        client.log_artifacts(run.info.run_id, folder, "bank")
        if made is not None:
            snapshots.log(made)
    if model not in {found.name for found in client.search_registered_models()}:
        client.create_registered_model(model)
    source = f"{run.info.artifact_uri}/bank"
    return int(client.create_model_version(model, source, run.info.run_id, tags=tags).version)
