"""The whole API against its own description: no server error, no answer that is not documented."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

from tests.pipelines.serving.conftest import client_of
from tests.pipelines.serving.toy import write_bundle

OPERATIONS = (
    "POST /v1/recommendations",
    "POST /v1/edits",
    "POST /v1/assignments",
    "GET /v1/prototypes",
    "GET /v1/prototypes/{version}",
    "GET /v1/items",
    "GET /v1/examples",
    "GET /healthz",
    "GET /readyz",
    "GET /metrics",
    "POST /invocations",
    "GET /ping",
    "GET /version",
)


@pytest.fixture(scope="module")
def operations(tmp_path_factory):
    folder = write_bundle(tmp_path_factory.mktemp("bundles") / "bundle")
    with client_of(folder) as client:
        schema = schemathesis.openapi.from_asgi("/openapi.json", client.service.app)
        yield {found.ok().label: found.ok() for found in schema.get_all_operations()}


def test_everything_is_described(operations):
    assert sorted(operations) == sorted(OPERATIONS)


@pytest.mark.parametrize("label", OPERATIONS)
@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_every_answer_is_a_described_one(operations, label, mode):
    operation = operations[label]
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
        case.call_and_validate()

    check()
