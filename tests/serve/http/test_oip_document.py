"""The protocol's part of the OpenAPI document: what it says is what comes."""

import jsonschema
import pytest
from starlette.testclient import TestClient

from potstill.serve.http import create_app
from potstill.serve.http.context import Context
from potstill.serve.http.oip_document import v2_paths
from potstill.serve.limits import Limits
from tests.serve.http.fake import FakeEngine

NAMES = ("ner", "qa", "mask", "vector", "tokens", "multi", "regression")


@pytest.fixture(scope="module")
def engine(encoder, task_encoder):
    return FakeEngine(tiny=encoder, **{name: task_encoder(name) for name in NAMES})


@pytest.fixture(scope="module")
def paths(engine):
    return v2_paths(Context(engine=engine, limits=Limits(), models=engine.models))


@pytest.fixture(scope="module")
def client(engine):
    return TestClient(create_app(engine))


def test_every_path_is_described_and_answers_as_it_says(client, paths):
    for path, operations in paths.items():
        for method, operation in operations.items():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json")
            response = client.request(method, path, **({"json": body["example"]} if body else {}))
            assert response.status_code == 200, (path, response.text)
            content = operation["responses"]["200"]["content"]["application/json"]
            jsonschema.validate(response.json(), content["schema"])
            if body:
                jsonschema.validate(body["example"], body["schema"])


def test_no_path_is_left_out(client, paths):
    served = {path for path in client.app._table if path.startswith("/v2")}
    assert served == set(paths)
    assert len(served) == 3 + 6 * (1 + len(NAMES))


@pytest.mark.parametrize(
    "tensor",
    [
        {"name": "text", "shape": [1], "datatype": "BYTES"},
        {"name": "text", "shape": [0], "datatype": "BYTES", "data": []},
        {"name": "text", "shape": [65], "datatype": "BYTES", "data": ["a"] * 65},
        {"name": "other", "shape": [1], "datatype": "BYTES", "data": ["a"]},
        {"name": "input_ids", "shape": [1], "datatype": "INT64", "data": [1]},
        {"name": "input_ids", "shape": [1, 33], "datatype": "INT64", "data": [1] * 33},
        {"name": "input_ids", "shape": [1, 1], "datatype": "BYTES", "data": [1]},
        {"name": "input_ids", "shape": [1, 1], "datatype": "INT64", "data": [-1]},
        {"name": "input_ids", "shape": [1, 1], "datatype": "INT64", "data": [1], "more": 1},
    ],
)
def test_what_the_document_refuses_the_server_refuses(client, paths, tensor):
    schema = paths["/v2/models/tiny/infer"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"inputs": [tensor]}, schema)
    assert client.post("/v2/models/tiny/infer", json={"inputs": [tensor]}).status_code in {413, 422}
