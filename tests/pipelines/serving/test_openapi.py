"""The whole API against its own description: no server error, no answer that is not documented."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.pipelines.serving.conftest import client_of
from tests.pipelines.serving.toy import write_bundle

SHARED = (
    "POST /v1/edits",
    "GET /v1/prototypes",
    "GET /v1/prototypes/{version}",
    "GET /v1/examples",
    "GET /healthz",
    "GET /readyz",
    "GET /metrics",
    "POST /invocations",
    "GET /ping",
    "GET /version",
)
OPERATIONS = {
    "recommender": ("POST /v1/recommendations", "POST /v1/assignments", "GET /v1/items", *SHARED),
    "classifier": ("POST /v1/classifications", *SHARED),
}
EVERY = [(task, label) for task, labels in OPERATIONS.items() for label in labels]
# What is an image, and of which size, no schema can say: of what fits the schema, some is refused, as described.
UNTOLD = {("classifier", f"POST /{path}") for path in ("v1/classifications", "v1/edits", "invocations")}


def described(client):
    schema = schemathesis.openapi.from_asgi("/openapi.json", client.service.app)
    return {found.ok().label: found.ok() for found in schema.get_all_operations()}


@pytest.fixture(scope="module")
def operations(tmp_path_factory, classifier_bundle):
    folder = write_bundle(tmp_path_factory.mktemp("bundles") / "bundle")
    with client_of(folder) as recommender, client_of(classifier_bundle, deadline_ms=60_000) as classifier:
        yield {"recommender": described(recommender), "classifier": described(classifier)}


@pytest.mark.parametrize("task", OPERATIONS)
def test_everything_is_described(operations, task):
    assert sorted(operations[task]) == sorted(OPERATIONS[task])


@pytest.mark.parametrize(("task", "label"), EVERY)
@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_every_answer_is_a_described_one(operations, task, label, mode):
    operation = operations[task][label]
    varied = operation.body or operation.path_parameters or operation.query
    if mode is schemathesis.GenerationMode.NEGATIVE and not varied:
        return  # nothing that could be wrong

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=12,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def check(case):
        case.call_and_validate(excluded_checks=[positive_data_acceptance] if (task, label) in UNTOLD else [])

    check()
