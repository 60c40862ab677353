"""The document says what happens, and nothing happens that it does not say."""

import jsonschema
import pytest
import schemathesis
from schemathesis.config import (
    ChecksConfig,
    GenerationConfig,
    OperationConfig,
    OperationsConfig,
    PositiveDataAcceptanceConfig,
    ProjectConfig,
    ProjectsConfig,
    SchemathesisConfig,
)
from schemathesis.config._checks import (
    NEGATIVE_DATA_REJECTION_EXPECTED_STATUSES,
    POSITIVE_DATA_ACCEPTANCE_EXPECTED_STATUSES,
    NegativeDataRejectionConfig,
)
from schemathesis.engine import events, from_schema
from schemathesis.filters import FilterSet
from starlette.testclient import TestClient

from potstill.serve.http import create_app
from potstill.serve.limits import Limits
from tests.serve.http.fake import FakeEngine

SMALL = Limits(body_bytes=20_000, inputs=3, characters_per_token=10)
# What no schema can say: a mask within the tokens that are read, a window that a question fits in, a text that is
# longer than the model reads and may not be cut, a tensor whose data fits its shape.
UNSAYABLE = "mask|qa|embed|vector|/v2/"


def failures(app, *, examples):
    """Run all of schemathesis' phases and checks; return how many requests there were, and what was found."""
    unsayable = FilterSet()
    unsayable.include(path_regex=UNSAYABLE)
    accepted, refused = (
        list(POSITIVE_DATA_ACCEPTANCE_EXPECTED_STATUSES),
        list(NEGATIVE_DATA_REJECTION_EXPECTED_STATUSES),
    )
    refused.append("413")  # a list or a text over its limit, which schemathesis does not expect
    checks = ChecksConfig(negative_data_rejection=NegativeDataRejectionConfig(expected_statuses=refused))
    lenient = ChecksConfig(
        negative_data_rejection=NegativeDataRejectionConfig(expected_statuses=refused),
        positive_data_acceptance=PositiveDataAcceptanceConfig(expected_statuses=[*accepted, "422"]),
    )
    project = ProjectConfig(
        checks=checks,
        operations=OperationsConfig(operations=[OperationConfig(filter_set=unsayable, checks=lenient)]),
        generation=GenerationConfig(max_examples=examples, deterministic=True, database="none"),
        continue_on_failure=True,
    )
    config = SchemathesisConfig(seed=7, projects=ProjectsConfig(default=project))
    # The pytest plugin of schemathesis 4.32 does not know pytest 9.2; the engine under it needs none.
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, config=config)
    sent, found = 0, []
    for event in from_schema(schema).execute():
        if isinstance(event, events.NonFatalError):
            found.append(f"{event.label}: {event.value}")
        if isinstance(event, events.ScenarioFinished):
            sent += len(event.recorder.cases)
            found += [
                f"{event.label}: {check.name}: {check.failure_info.failure.title}: {check.failure_info.failure.message}"
                f" {check.failure_info.code_sample}"
                for checks in event.recorder.checks.values()
                for check in checks
                if check.failure_info is not None
            ]
    return sent, found


@pytest.mark.parametrize(
    ("names", "examples", "least"),
    [
        (("vector",), 3, 800),
        pytest.param(("ner", "qa", "mask", "vector", "multi"), 120, 10_000, marks=pytest.mark.slow),
    ],
)
def test_schemathesis_finds_nothing(encoder, task_encoder, names, examples, least):
    models = {name: task_encoder(name) for name in names}
    sent, found = failures(create_app(FakeEngine(tiny=encoder, **models), limits=SMALL), examples=examples)
    assert found == []
    assert sent > least


def test_the_document_has_every_path_and_the_limits(client, engine):
    document = client.get("/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    assert {"/", "/predict", "/tokenize", "/models/tiny/predict", "/models/tiny", "/health", "/info", "/docs"} <= set(
        document["paths"]
    )
    content = document["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]
    one, several = content["schema"]["properties"]["inputs"]["anyOf"]
    assert one["anyOf"][0] == {"type": "string", "maxLength": 320}
    assert (several["minItems"], several["maxItems"]) == (1, 4)
    statuses = set(document["paths"]["/predict"]["post"]["responses"])
    assert statuses == {"200", "400", "408", "413", "414", "415", "422", "429", "431", "500", "503", "504"}


def test_keys_are_in_the_document_where_they_are_needed(engine):
    document = TestClient(create_app(engine, api_keys=["k"])).get("/openapi.json").json()
    locked = {path for path, item in document["paths"].items() for method in item.values() if "security" in method}
    assert {"/predict", "/info", "/metrics", "/models/tiny"} <= locked
    assert not {"/health", "/docs", "/openapi.json"} & locked
    client = TestClient(create_app(engine, api_keys=["k"]))
    for path, item in document["paths"].items():
        for method, operation in item.items():
            assert (client.request(method, path).status_code == 401) == ("security" in operation), (method, path)


NAMES = ("ner", "qa", "mask", "vector", "tokens", "multi", "regression")


@pytest.fixture(scope="module")
def of_every_task(encoder, task_encoder):
    return TestClient(create_app(FakeEngine(tiny=encoder, **{name: task_encoder(name) for name in NAMES})))


def test_every_path_answers_its_example_as_its_schema_says(of_every_task):
    for path, operations in of_every_task.get("/openapi.json").json()["paths"].items():
        for method, operation in operations.items():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json")
            response = of_every_task.request(method, path, **({"json": body["example"]} if body else {}))
            assert response.status_code == 200, (path, response.text)
            if body:
                jsonschema.validate(body["example"], body["schema"])
            content = operation["responses"]["200"]["content"]
            if "application/json" in content:
                jsonschema.validate(response.json(), content["application/json"]["schema"])


def test_every_route_is_in_the_document(of_every_task):
    documented = set(of_every_task.get("/openapi.json").json()["paths"])
    served = {route.path for route in of_every_task.app.routes if not route.path.startswith("/static/")}
    expected = {path.replace("{name}", name) for path in served for name in ("tiny", *NAMES)}
    without_vectors = {f"/models/{name}/embed" for name in ("tiny", *NAMES) if name not in ("vector", "tokens")}
    assert documented == expected - without_vectors
