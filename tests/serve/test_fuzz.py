"""Whatever bytes come, the answer is one of the documented ones."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from potstill.serve.http import create_app
from potstill.serve.limits import Limits

JSON = {"content-type": "application/json"}
LIMITS = Limits(body_bytes=4_000, inputs=3, characters_per_token=2)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["inputs", "parameters", "top_k", "text", "text_pair"]) | st.text(), inner)
    ),
    max_leaves=12,
)
QUICK = settings(max_examples=60, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module")
def client(encoder):
    with TestClient(create_app(encoder, limits=LIMITS)) as client:
        yield client


def assert_documented(response):
    content = response.json()
    if response.status_code == 200:
        first = content[0] if isinstance(content[0], dict) else content[0][0]
        assert sorted(first) == ["label", "score"]
    else:
        assert (response.status_code, content["error_type"]) in {
            (400, "validation"),
            (422, "validation"),
            (413, "too_large"),
        }
        assert sorted(content) == ["error", "error_type"]


@QUICK
@given(st.binary(max_size=200))
def test_any_bytes_get_a_documented_answer(client, body):
    assert_documented(client.post("/predict", content=body, headers=JSON))


@QUICK
@given(ANYTHING)
def test_any_json_gets_a_documented_answer(client, content):
    assert_documented(client.post("/predict", content=json.dumps(content).encode(), headers=JSON))


@QUICK
@given(ANYTHING, ANYTHING)
def test_any_inputs_and_parameters_get_a_documented_answer(client, inputs, parameters):
    body = json.dumps({"inputs": inputs, "parameters": parameters}).encode()
    assert_documented(client.post("/predict", content=body, headers=JSON))


@QUICK
@given(st.text(st.characters(exclude_categories=()), max_size=60))
def test_every_short_text_is_answered(client, text):
    assert client.post("/predict", content=json.dumps({"inputs": text}).encode(), headers=JSON).status_code == 200
