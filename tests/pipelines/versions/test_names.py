"""Which model is meant where none is named."""

import mlflow
import pytest

from persona.errors import ConfigError
from pipelines import tracking
from pipelines.versions import names


@pytest.fixture
def client(workplace):
    tracking.connect("films")
    return mlflow.MlflowClient()


def test_the_only_model_and_the_only_bank_are_meant(client):
    with pytest.raises(ConfigError, match="the store has no registered model: release one first"):
        names.usual(client)
    for model in ("persona-recsys-films", "persona-recsys-films-prototypes"):
        client.create_registered_model(model)
    assert names.usual(client) == "persona-recsys-films"
    assert names.usual(client, banks=True) == "persona-recsys-films-prototypes"


def test_of_several_models_one_has_to_be_named(client):
    for model in ("persona-recsys", "persona-recsys-shop"):
        client.create_registered_model(model)
    with pytest.raises(ConfigError, match="several registered models: name one of persona-recsys, persona-recsys-shop"):
        names.usual(client)
