"""Every answer and every refusal of the HTTP application."""

import json
import logging
import threading

import numpy as np
import pytest
from starlette.testclient import TestClient

import potstill
from potstill.errors import CheckError
from potstill.serve.http import create_app
from potstill.serve.limits import Limits

LIMITS = Limits(body_bytes=20_000, inputs=4, characters_per_token=10, waiting=1)
MOST_CHARACTERS = 320  # 10 for each of 32 tokens
SECRET = "hunter2"
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def client(encoder):
    with TestClient(create_app(encoder, limits=LIMITS), raise_server_exceptions=False) as client:
        yield client


def post(client, content):
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return client.post("/predict", content=body, headers=JSON)


def assert_error(response, status, error_type):
    content = response.json()
    assert (response.status_code, content["error_type"]) == (status, error_type), content
    assert sorted(content) == ["error", "error_type"]
    assert response.headers["content-type"] == "application/json"
    assert content["error"]
    assert SECRET not in response.text
    return content["error"]


def same(got, want):
    """Floats survive JSON exactly."""
    return json.loads(json.dumps(want)) == got


def test_a_text_gets_its_answer_and_a_list_gets_a_list(client, encoder):
    assert same(post(client, {"inputs": "a good film"}).json(), encoder.predict(["a good film"])[0])
    assert same(post(client, {"inputs": ["a good film"]}).json(), encoder.predict(["a good film"]))
    got = post(client, {"inputs": ["good", "a very bad book"]}).json()
    assert same(got, encoder.predict(["good", "a very bad book"]))


def test_a_pair_is_given_by_its_keys_alone_or_in_a_list(client, encoder):
    pair, text = {"text": "good", "text_pair": "bad"}, "a film"
    assert same(post(client, {"inputs": pair}).json(), encoder.predict([("good", "bad")])[0])
    assert same(post(client, {"inputs": [text, pair]}).json(), encoder.predict([text, ("good", "bad")]))


def test_top_k_cuts_the_answer(client, encoder):
    got = post(client, {"inputs": ["good"], "parameters": {"top_k": 2}}).json()
    assert same(got, encoder.predict(["good"], top_k=2))
    assert len(got[0]) == 2


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        (b'{"inputs": ""}', ""),
        (rb'{"inputs": "a \ud83d film"}', "a \ufffd film"),
        (rb'{"inputs": "nul \u0000 film"}', "nul film"),
        ('{"inputs": "🙂 שלום"}'.encode(), "🙂 שלום"),
        (b'{"inputs": "[MASK] [SEP]"}', "[MASK] [SEP]"),
        (b'{"inputs": "bad", "inputs": "good"}', "good"),
        (b'{"inputs": "good", "parameters": {}}', "good"),
        (json.dumps({"inputs": "x" * MOST_CHARACTERS}).encode(), "x" * MOST_CHARACTERS),
    ],
)
def test_odd_texts_are_answered_like_what_they_mean(client, encoder, sent, read):
    response = post(client, sent)
    assert response.status_code == 200
    assert same(response.json(), encoder.predict([read])[0])


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not JSON: it breaks at line 1 column 1"),
        (b'{"inputs": "hunter2', "not JSON"),
        (b'{"inputs": "hunter2"} x', "not JSON"),
        (b'{"inputs": "nul \x00"}', "not JSON"),
        (b'\xef\xbb\xbf{"inputs": "bom"}', "not JSON"),
        ('{"inputs": "x"}'.encode("utf-16"), "not UTF-8"),
        (b'{"inputs": "\xff\xfe"}', "not UTF-8: byte 12 is wrong"),
        (b'{"inputs": "\xc0\xaf"}', "not UTF-8"),
        (b'{"inputs": NaN}', "NaN, which JSON does not have"),
        (b'{"inputs": -Infinity}', "-Infinity, which JSON does not have"),
        (b"[" * 10_000, "nested too deeply; at most 8 levels"),
        (b'{"inputs":' * 1_500, "nested too deeply"),
        (b'{"inputs": ' + b"[" * 8 + b"]" * 8 + b"}", "nested too deeply"),
        (b'{"inputs": ' + b"9" * 10_000 + b"}", "number with too many digits"),
    ],
)
def test_what_is_not_json_is_a_400(client, body, says):
    assert says in assert_error(post(client, body), 400, "validation")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "the body is null"),
        ([], "the body is a list"),
        ("hunter2", "the body is a string"),
        (7, "the body is a number"),
        (True, "the body is a boolean"),
        ({}, "the body has no 'inputs'"),
        ({"input": "hunter2"}, "did you mean 'inputs'?"),
        ({"inputs": "x", "parameter": {}}, "did you mean 'parameters'?"),
        ({"inputs": "x", "hunter2": 1}, "known: inputs, parameters"),
        ({"inputs": "x"} | {f"key {index}": 0 for index in range(1000)}, "a key that is not known"),
        ({"inputs": []}, "'inputs' is an empty list"),
        ({"inputs": None}, "inputs is null; expected a string or a pair"),
        ({"inputs": 7}, "inputs is a number"),
        ({"inputs": ["hunter2", 1]}, "inputs[1] is a number"),
        ({"inputs": [["hunter2", "b"]]}, "inputs[0] is a list"),
        ({"inputs": [{"text": "hunter2"}]}, "inputs[0] has no 'text_pair'"),
        ({"inputs": {"text": "a", "text_pair": None}}, "inputs.text_pair is null; expected a string"),
        ({"inputs": {"text": "a", "textpair": "b"}}, "did you mean 'text_pair'?"),
        ({"inputs": "x", "parameters": []}, "'parameters' is a list"),
        ({"inputs": "x", "parameters": None}, "'parameters' is null"),
        ({"inputs": "x", "parameters": {"topk": 1}}, "did you mean 'top_k'?"),
        ({"inputs": "x", "parameters": {"top_k": 0}}, "top_k is too small; expected a whole number from 1 to 3"),
        ({"inputs": "x", "parameters": {"top_k": -1}}, "top_k is too small"),
        ({"inputs": "x", "parameters": {"top_k": 4}}, "top_k is too large"),
        ({"inputs": "x", "parameters": {"top_k": 2**63}}, "top_k is too large"),
        ({"inputs": "x", "parameters": {"top_k": True}}, "top_k is a boolean"),
        ({"inputs": "x", "parameters": {"top_k": 1.0}}, "top_k is a number; expected a whole number"),
        ({"inputs": "x", "parameters": {"top_k": "hunter2"}}, "top_k is a string"),
        ({"inputs": "x", "parameters": {"top_k": None}}, "top_k is null"),
    ],
)
def test_json_that_asks_for_something_else_is_a_422(client, content, says):
    assert says in assert_error(post(client, content), 422, "validation")


def test_a_number_beyond_floats_is_a_422(client):
    assert "top_k is a number" in assert_error(
        post(client, b'{"inputs": "x", "parameters": {"top_k": 1e999}}'), 422, "validation"
    )


def test_too_much_is_a_413_that_names_the_limit(client):
    assert "at most 4" in assert_error(post(client, {"inputs": ["x"] * 5}), 413, "too_large")
    for text in ("x" * (MOST_CHARACTERS + 1), {"text": "x", "text_pair": "x" * (MOST_CHARACTERS + 1)}):
        says = assert_error(post(client, {"inputs": ["y", text]}), 413, "too_large")
        assert "has 321 characters; at most 320" in says
    assert "over 20000 bytes" in assert_error(post(client, b" " * 20_001), 413, "too_large")
    assert post(client, b'{"inputs": "good"}'.ljust(20_000)).status_code == 200


def test_a_body_without_a_declared_length_is_counted_as_it_comes(client):
    response = client.post("/predict", content=(b" " * 1000 for _ in range(30)), headers=JSON)
    assert_error(response, 413, "too_large")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/json; charset=latin-1"},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
)
def test_another_media_type_is_a_415(client, headers):
    response = client.post("/predict", content=b'{"inputs": "x"}', headers=headers)
    assert "Content-Type: application/json" in assert_error(response, 415, "unsupported_media_type")


def test_a_media_type_may_name_utf_8(client):
    for kind in ("application/json; charset=utf-8", 'Application/JSON;charset="UTF-8"'):
        response = client.post("/predict", content=b'{"inputs": "x"}', headers={"content-type": kind})
        assert response.status_code == 200


def test_unknown_paths_and_methods_have_the_same_shape(client):
    for path in ("/", "/predict/", "/hunter2", "/v2/models", "/predict/%00"):
        assert "POST /predict" in assert_error(client.get(path), 404, "not_found")
    for method, path, allowed in [("GET", "/predict", "POST"), ("DELETE", "/info", "GET"), ("BREW", "/health", "GET")]:
        response = client.request(method, path)
        assert_error(response, 405, "method_not_allowed")
        assert allowed in response.headers["allow"]


def test_health_is_ok_and_info_tells_what_is_served(client, encoder):
    response = client.get("/health")
    assert (response.status_code, response.json()) == (200, {"status": "ok"})
    info = client.get("/info").json()
    assert info["model_sha256"] == encoder.manifest.files["onnx/model.onnx"].sha256
    assert {name: info[name] for name in ("task", "labels", "precision", "max_length", "threads", "parity")} == {
        "task": "text-classification",
        "labels": ["negative", "neutral", "positive"],
        "precision": "fp32",
        "max_length": 32,
        "threads": 1,
        "parity": {"max_difference": 0.0},
    }
    assert info["source"] == {"name": "tiny"}
    assert info["potstill_version"] == potstill.__version__
    assert info["parameters"] == encoder.manifest.parameters


def test_an_int8_answer_does_not_depend_on_its_list(int8_encoder):
    texts = ["a good film", "bad", "the book was not very good , it was bad"]
    with TestClient(create_app(int8_encoder)) as client:
        together = post(client, {"inputs": texts}).json()
        assert together == [post(client, {"inputs": text}).json() for text in texts]
        assert client.get("/info").json()["batch_invariant"] is False


def test_a_failing_model_is_a_500_without_the_text_in_answer_or_log(client, encoder, monkeypatch, caplog):
    def fail(feeds):
        raise RuntimeError(f"could not read {SECRET}")

    with monkeypatch.context() as patch, caplog.at_level(logging.DEBUG):
        patch.setattr(encoder.session, "run", fail)
        assert_error(post(client, {"inputs": SECRET}), 500, "backend")
    assert "RuntimeError" in caplog.text
    assert SECRET not in caplog.text
    assert post(client, {"inputs": "good"}).status_code == 200


def test_logits_that_are_not_finite_are_a_500(client, encoder, monkeypatch):
    monkeypatch.setattr(encoder.session, "run", lambda feeds: {"logits": np.full((1, 3), np.nan)})
    assert_error(post(client, {"inputs": "good"}), 500, "backend")


def test_a_model_that_does_not_answer_never_becomes_an_application(encoder, monkeypatch):
    monkeypatch.setattr(encoder.session, "run", lambda feeds: {"logits": np.full((1, 3), np.inf)})
    with pytest.raises(CheckError, match="infinite"):
        create_app(encoder)


def test_requests_beyond_the_queue_get_429_and_a_time_to_retry(client, encoder, monkeypatch):
    opened, entered = threading.Event(), threading.Event()
    run = encoder.session.run

    def slow(feeds):
        entered.set()
        assert opened.wait(20)
        return run(feeds)

    monkeypatch.setattr(encoder.session, "run", slow)
    answers = []
    accepted = [
        threading.Thread(target=lambda: answers.append(post(client, {"inputs": "good"}).status_code)) for _ in range(2)
    ]
    refused = None
    try:
        accepted[0].start()
        assert entered.wait(20)
        accepted[1].start()
        # The second is on its way into the queue; until it is there, a third would be let in and block.
        worker = client.app.router.routes[0].endpoint.__self__._worker
        while worker._in_flight < 2:
            threading.Event().wait(0.01)
        refused = post(client, {"inputs": "good"})
        assert client.get("/health").status_code == 200
    finally:
        opened.set()
        for thread in accepted:
            thread.join(20)
    assert_error(refused, 429, "overloaded")
    assert int(refused.headers["retry-after"]) >= 1
    assert answers == [200, 200]
    assert post(client, {"inputs": "good"}).status_code == 200
