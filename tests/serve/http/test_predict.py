"""Every answer and every refusal of POST /predict."""

import json
import logging
from dataclasses import replace

import pytest
from starlette.testclient import TestClient

from potstill.errors import CheckError
from potstill.serve.http import create_app
from potstill.serve.http_errors import failed, overloaded
from tests.serve.http.conftest import LIMITS

MOST_CHARACTERS = 320  # 10 for each of 32 tokens
SECRET = "hunter2"
JSON = {"content-type": "application/json"}


def post(client, content, path="/predict", **headers):
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return client.post(path, content=body, headers=JSON | headers)


def assert_error(response, status, error_type):
    content = response.json()
    if response.request.url.path.startswith("/v1/"):  # the shape that OpenAI's clients read
        assert sorted(content["error"]) == ["code", "message", "param", "type"]
        content = {"error": content["error"]["message"], "error_type": content["error"]["code"]}
    assert (response.status_code, content["error_type"]) == (status, error_type), content
    assert sorted(content) == ["error", "error_type"]
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    assert content["error"]
    assert SECRET not in response.text
    return content["error"]


def test_a_text_gets_its_answer_and_a_list_gets_a_list(client, encoder):
    assert post(client, {"inputs": "a good film"}).json() == encoder.predict("a good film")
    assert post(client, {"inputs": ["a good film"]}).json() == encoder.predict(["a good film"])
    got = post(client, {"inputs": ["good", "a very bad book"]}).json()
    assert got == [encoder.predict("good"), encoder.predict("a very bad book")]


def test_a_pair_is_given_by_its_keys_alone_or_in_a_list(client, encoder):
    pair, text = {"text": "good", "text_pair": "bad"}, "a film"
    assert post(client, {"inputs": pair}).json() == encoder.predict(("good", "bad"))
    assert post(client, {"inputs": [text, pair]}).json() == encoder.predict([text, ("good", "bad")])


def test_parameters_reach_the_model(client, encoder):
    got = post(client, {"inputs": ["good"], "parameters": {"top_k": 2, "function_to_apply": "sigmoid"}}).json()
    assert got == encoder.predict(["good"], parameters={"top_k": 2, "function_to_apply": "sigmoid"})
    assert len(got[0]) == 2


def test_a_model_is_named_by_its_path(client, encoder):
    assert post(client, {"inputs": "good"}, "/models/tiny/predict").json() == encoder.predict("good")
    says = assert_error(post(client, {"inputs": "good"}, "/models/hunter2/predict"), 404, "not_found")
    assert "tiny" in says


def test_the_answer_says_where_the_time_went_and_how_many_tokens_there_were(client):
    headers = post(client, {"inputs": "good"}).headers
    names = ("x-tokenize-time-ms", "x-queue-time-ms", "x-inference-time-ms", "x-tokens")
    assert [headers[name] for name in names] == ["1.000", "0.500", "2.000", "3"]


def test_a_sane_request_id_comes_back_and_another_does_not(client):
    assert post(client, {"inputs": "good"}, **{"x-request-id": "a-1.b:2"}).headers["x-request-id"] == "a-1.b:2"
    made = [
        post(client, {"inputs": "good"}, **{"x-request-id": bad}).headers["x-request-id"] for bad in ("a b", "x" * 129)
    ]
    assert len(set(made)) == 2
    assert all(" " not in name and len(name) < 40 for name in made)


def test_the_engine_is_told_how_long_the_client_waits_and_how_much_it_sends(client, engine):
    post(client, {"inputs": ["good", {"text": "ab", "text_pair": "cde"}]}, **{"x-request-timeout-ms": "250"})
    assert engine.asked[-1] == {
        "model": "tiny",
        "characters": [4, 5],
        "client": "testclient",
        "timeout_s": 0.25,
        "received_at": None,
    }
    post(client, {"inputs": "good"}, **{"x-request-timeout-ms": "3600000"})
    assert engine.asked[-1]["timeout_s"] == 60.0
    post(client, {"inputs": "good"}, **{"x-request-timeout-ms": "10"})
    assert engine.asked[-1]["timeout_s"] == 0.01
    post(client, {"inputs": "good"})
    assert engine.asked[-1]["timeout_s"] is None


@pytest.mark.parametrize(
    "value", ["0", "9", "-5", "hunter2", "nan", "1e3", "", "10.5", "86400001", "9" * 5000, "10,20"]
)
def test_a_timeout_that_is_no_number_of_milliseconds_or_out_of_bounds_is_a_422(client, value):
    response = post(client, {"inputs": "good"}, **{"x-request-timeout-ms": value})
    assert "whole number of milliseconds" in assert_error(response, 422, "validation")


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        (b'{"inputs": ""}', ""),
        (rb'{"inputs": "a \ud83d film"}', "a \ufffd film"),
        (rb'{"inputs": "a \ud83d\ude00 film"}', "a \U0001f600 film"),
        (rb'{"inputs": "nul \u0000 film"}', "nul film"),
        ('{"inputs": "🙂 שלום"}'.encode(), "🙂 שלום"),
        (b'{"inputs": "[MASK] [SEP]"}', "[MASK] [SEP]"),
        (b'{"inputs": "bad", "inputs": "good"}', "good"),
        (b'{"inputs": "good", "parameters": {}}', "good"),
        (b'{"inputs": "good", "parameters": {"top_k": null}}', "good"),
        (b'{"inputs": "good", "parameters": {"top_k": 3.0}}', "good"),
        (b'{"inputs": "[[[[[[[[[[ {{{{{{{{{{ ]]]] }}}}"}', "[[[[[[[[[[ {{{{{{{{{{ ]]]] }}}}"),
        (json.dumps({"inputs": "x" * MOST_CHARACTERS}).encode(), "x" * MOST_CHARACTERS),
    ],
)
def test_odd_texts_are_answered_like_what_they_mean(client, encoder, sent, read):
    response = post(client, sent)
    assert response.status_code == 200
    assert response.json() == encoder.predict(read)


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
        ({"inputs": None}, "inputs is null; expected a string or an object with 'text' and 'text_pair'"),
        ({"inputs": 7}, "inputs is a number"),
        ({"inputs": ["hunter2", 1]}, "inputs[1] is a number"),
        ({"inputs": [["hunter2", "b"]]}, "inputs[0] is a list"),
        ({"inputs": [{"text": "hunter2"}]}, "inputs[0] has no 'text_pair'"),
        ({"inputs": {"text": "a", "text_pair": None}}, "inputs.text_pair is null; expected a string"),
        ({"inputs": {"text": "a", "textpair": "b"}}, "did you mean 'text_pair'?"),
        ({"inputs": {"text": "a", "text_pair": "b", "hunter2": ""}}, "known: text, text_pair"),
        ({"inputs": "x", "parameters": []}, "parameters is a list"),
        ({"inputs": "x", "parameters": None}, "parameters is null"),
        ({"inputs": "x", "parameters": {"topk": 1}}, "did you mean 'top_k'?"),
        ({"inputs": "x", "parameters": {"hunter2": "hunter2"}}, "known: top_k, function_to_apply"),
        ({"inputs": "x", "parameters": {"top_k": 0}}, "parameters.top_k is too small; expected at least 1"),
        ({"inputs": "x", "parameters": {"top_k": -1}}, "top_k is too small"),
        ({"inputs": "x", "parameters": {"top_k": 1001}}, "top_k is too large; expected at most 1000"),
        ({"inputs": "x", "parameters": {"top_k": 2**63}}, "top_k is too large"),
        ({"inputs": "x", "parameters": {"top_k": 10**4000}}, "top_k is too large"),
        ({"inputs": "x", "parameters": {"top_k": True}}, "top_k is a boolean; expected a whole number"),
        ({"inputs": "x", "parameters": {"top_k": 1.5}}, "top_k is a number; expected a whole number"),
        ({"inputs": "x", "parameters": {"top_k": "hunter2"}}, "top_k is a string"),
        ({"inputs": "x", "parameters": {"function_to_apply": SECRET}}, "is not one of 'softmax', 'sigmoid' or 'none'"),
    ],
)
def test_json_that_asks_for_something_else_is_a_422(client, content, says):
    assert says in assert_error(post(client, content), 422, "validation")


def test_a_number_beyond_floats_is_a_422(client):
    body = b'{"inputs": "x", "parameters": {"top_k": 1e999}}'
    assert "top_k is a number" in assert_error(post(client, body), 422, "validation")


def test_too_much_is_a_413_that_names_the_limit(client):
    assert "at most 4" in assert_error(post(client, {"inputs": ["x"] * 5}), 413, "too_large")
    for text in ("x" * (MOST_CHARACTERS + 1), {"text": "x", "text_pair": "x" * (MOST_CHARACTERS + 1)}):
        says = assert_error(post(client, {"inputs": ["y", text]}), 413, "too_large")
        assert "has 321 characters; at most 320" in says
    assert "over 20000 bytes" in assert_error(post(client, b" " * 20_001), 413, "too_large")
    assert post(client, b'{"inputs": "good"}'.ljust(20_000)).status_code == 200


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"inputs": [' + b"[]," * 300 + b"1]}", "over 256 lists and objects"),
        (b'{"inputs": [' + b'["x"],' * 300 + b"1]}", "over 256 lists and objects"),
        (b'{"inputs": [' + b"1," * 17_000 + b"1]}", "over 16384 values"),
    ],
)
def test_a_body_of_many_parts_is_refused_before_it_is_taken_apart(engine, body, says):
    client = TestClient(create_app(engine, limits=replace(LIMITS, body_bytes=100_000)))
    assert says in assert_error(post(client, body), 413, "too_large")


def test_brackets_and_commas_in_a_text_are_not_parts(engine, encoder):
    client = TestClient(create_app(engine, limits=replace(LIMITS, body_bytes=400_000, characters_per_token=10_000)))
    text = '[{,"\\' * 20_000
    assert post(client, {"inputs": text}).json() == encoder.predict(text)


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


def test_the_engines_refusals_have_the_one_shape(client, engine):
    engine.failure = overloaded(2.4)
    response = post(client, {"inputs": "good"})
    assert_error(response, 429, "overloaded")
    assert (response.headers["retry-after"], response.headers["retry-after-ms"]) == ("3", "2400")
    engine.failure = failed()
    assert_error(post(client, {"inputs": "good"}), 500, "backend")


@pytest.mark.parametrize("failure", [RuntimeError(f"could not read {SECRET}"), CheckError(SECRET), KeyError(SECRET)])
def test_what_nobody_foresaw_is_a_500_without_the_text_in_answer_or_log(client, engine, failure, caplog):
    engine.failure = failure
    with caplog.at_level(logging.DEBUG):
        assert_error(post(client, {"inputs": SECRET}), 500, "backend")
    assert type(failure).__name__ in caplog.text
    assert SECRET not in caplog.text
    engine.failure = None
    assert post(client, {"inputs": "good"}).status_code == 200
