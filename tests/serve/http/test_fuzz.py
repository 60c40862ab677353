"""Whatever bytes come, the answer is one of the documented ones."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from potstill.serve.http import create_app
from potstill.serve.limits import Limits
from tests.serve.http.fake import FakeEngine

JSON = {"content-type": "application/json"}
LIMITS = Limits(body_bytes=4_000, inputs=3, characters_per_token=2)
PATHS = (
    "/predict",
    "/",
    "/tokenize",
    "/models/ner/predict",
    "/models/qa/predict",
    "/models/mask/predict",
    "/embed",
    "/v1/embeddings",
)
KEYS = (
    "inputs",
    "parameters",
    "top_k",
    "text",
    "text_pair",
    "question",
    "context",
    "input",
    "model",
    "targets",
    "dimensions",
    "aggregation_strategy",
    "ignore_labels",
    "max_seq_len",
    "doc_stride",
    "normalize",
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | st.text(), inner),
    max_leaves=12,
)
DOCUMENTED = {(400, "validation"), (422, "validation"), (413, "too_large"), (404, "not_found")}
QUICK = settings(max_examples=60, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module")
def client(encoder, task_encoder):
    models = {name: task_encoder(name) for name in ("ner", "qa", "mask", "vector")}
    return TestClient(create_app(FakeEngine(tiny=encoder, **models), limits=LIMITS))


def assert_documented(client, path, body):
    response = client.post(path, content=body, headers=JSON)
    content = response.json()
    if response.status_code != 200:
        if path.startswith("/v1/"):
            content = {"error": content["error"]["message"], "error_type": content["error"]["code"]}
        assert (response.status_code, content["error_type"]) in DOCUMENTED, content
        assert sorted(content) == ["error", "error_type"]
    return response.status_code


@QUICK
@given(st.sampled_from(PATHS), st.binary(max_size=200))
def test_any_bytes_get_a_documented_answer(client, path, body):
    assert_documented(client, path, body)


@QUICK
@given(st.sampled_from(PATHS), ANYTHING)
def test_any_json_gets_a_documented_answer(client, path, content):
    assert_documented(client, path, json.dumps(content).encode())


@QUICK
@given(st.sampled_from(PATHS), ANYTHING, st.dictionaries(st.sampled_from(KEYS), ANYTHING, max_size=4))
def test_any_inputs_and_parameters_get_a_documented_answer(client, path, inputs, parameters):
    body = {"inputs": inputs, "parameters": parameters}
    assert_documented(client, path, json.dumps(body).encode())


@QUICK
@given(st.text(st.characters(exclude_categories=()), max_size=60))
def test_every_short_text_is_answered(client, text):
    for path in ("/predict", "/tokenize", "/models/ner/predict", "/models/vector/predict"):
        assert assert_documented(client, path, json.dumps({"inputs": text}).encode()) == 200


@QUICK
@given(st.binary(min_size=1, max_size=4), st.integers(0, 60))
def test_a_spoilt_body_gets_a_documented_answer(client, noise, at):
    body = b'{"inputs": ["a good film", {"text": "a", "text_pair": "b"}], "parameters": {"top_k": 1}}'
    assert_documented(client, "/predict", body[:at] + noise + body[at + len(noise) :])
