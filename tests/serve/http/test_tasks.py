"""The other tasks and the other wire formats: embeddings, tokens, OpenAI's, Hugging Face's."""

import base64

import numpy as np
import pytest
from starlette.testclient import TestClient

from potstill.serve.http import create_app
from tests.serve.http.conftest import LIMITS
from tests.serve.http.fake import FakeEngine
from tests.serve.http.test_predict import assert_error, post

TEXT = {
    "ner": "a good film",
    "qa": {"question": "was it good", "context": "the book was very good"},
    "mask": "a very [MASK] film",
    "vector": "a good film",
    "multi": "a good film",
    "regression": "a good film",
}


@pytest.fixture(scope="module")
def served(encoder, task_encoder):
    """Give a client of one model of each task, by the names above."""
    engine = FakeEngine(tiny=encoder, **{name: task_encoder(name) for name in TEXT})
    return TestClient(create_app(engine, limits=LIMITS))


@pytest.fixture(scope="module")
def vectors(task_encoder):
    return TestClient(create_app(FakeEngine(vector=task_encoder("vector")), limits=LIMITS))


@pytest.mark.parametrize("name", TEXT)
def test_every_task_answers_a_scalar_and_a_list_as_its_encoder_does(served, task_encoder, name):
    item = TEXT[name]
    plain = (item["question"], item["context"]) if name == "qa" else item
    one = post(served, {"inputs": item}, f"/models/{name}/predict").json()
    assert one == task_encoder(name).predict(plain)
    assert post(served, {"inputs": [item, item]}, f"/models/{name}/predict").json() == [one, one]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("qa", {"inputs": "hunter2"}, "inputs is a string; expected an object with 'question' and 'context'"),
        ("qa", {"inputs": [{"question": "hunter2"}]}, "inputs[0] has no 'context'"),
        ("ner", {"inputs": {"text": "a", "text_pair": "b"}}, "inputs is an object; expected a string"),
        ("ner", {"inputs": "a", "parameters": {"ignore_labels": ["O", 7]}}, "parameters.ignore_labels[1] is a number"),
        ("ner", {"inputs": "a", "parameters": {"ignore_labels": "O"}}, "ignore_labels is a string; expected a list"),
        ("ner", {"inputs": "a", "parameters": {"aggregation_strategy": "hunter2"}}, "is not one of 'none'"),
        ("mask", {"inputs": "a [MASK]", "parameters": {"targets": []}}, "has too few entries; expected at least 1"),
        ("mask", {"inputs": "a [MASK]", "parameters": {"targets": ["a"] * 1001}}, "expected at most 1000"),
        ("vector", {"inputs": "a", "parameters": {"normalize": "hunter2"}}, "is a string; expected true or false"),
        ("vector", {"inputs": "a", "parameters": {"prompt_name": "hunter2"}}, "is a string; expected null"),
        ("qa", {"inputs": TEXT["qa"], "parameters": {"handle_impossible_answer": 1}}, "expected true or false"),
    ],
)
def test_wrong_inputs_and_parameters_are_named_by_place_and_type(served, name, content, says):
    assert says in assert_error(post(served, content, f"/models/{name}/predict"), 422, "validation")


def test_what_only_the_tokenizer_can_see_is_a_422_too(served):
    assert "no [MASK]" in assert_error(post(served, {"inputs": "hunter2"}, "/models/mask/predict"), 422, "validation")


def test_embed_takes_the_first_model_that_makes_vectors(served, task_encoder):
    want = task_encoder("vector").predict(["a good film", "bad"])
    assert post(served, {"inputs": ["a good film", "bad"]}, "/embed").json() == want
    assert post(served, {"inputs": "a good film"}, "/models/vector/embed").json() == want[0]
    assert_error(post(served, {"inputs": "x"}, "/models/tiny/embed"), 404, "not_found")


def test_embed_takes_parameters_beside_the_inputs(vectors, task_encoder):
    want = task_encoder("vector").predict("good", parameters={"dimensions": 3})
    assert len(want) == 3
    assert post(vectors, {"inputs": "good", "dimensions": 3}, "/embed").json() == want
    assert post(vectors, {"inputs": "good", "parameters": {"dimensions": 3}}).json() == want
    assert "known: inputs, normalize" in assert_error(
        post(vectors, {"inputs": "x", "hunter2": 1}, "/embed"), 422, "validation"
    )
    assert "no 'inputs'" in assert_error(post(vectors, {"dimensions": 3}, "/embed"), 422, "validation")


def test_a_server_without_vectors_has_no_path_for_them(client):
    for path in ("/embed", "/v1/embeddings"):
        assert_error(post(client, {"inputs": "x"}, path), 404, "not_found")


def test_openai_gets_its_shape_and_its_tokens(vectors, task_encoder):
    want = task_encoder("vector").predict(["good", "a film"])
    body = {"input": ["good", "a film"], "model": "vector", "encoding_format": "float", "user": "x"}
    assert post(vectors, body, "/v1/embeddings").json() == {
        "object": "list",
        "data": [{"object": "embedding", "index": index, "embedding": want[index]} for index in (0, 1)],
        "model": "vector",
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
    }
    packed = post(vectors, {"input": "good", "encoding_format": "base64"}, "/v1/embeddings").json()["data"][0]
    np.testing.assert_array_equal(
        np.frombuffer(base64.b64decode(packed["embedding"]), "<f4"), np.array(want[0], dtype="<f4")
    )
    short = post(vectors, {"input": "good", "dimensions": 3}, "/v1/embeddings").json()["data"][0]["embedding"]
    assert short == task_encoder("vector").predict("good", parameters={"dimensions": 3})


@pytest.mark.parametrize(
    ("content", "status", "says"),
    [
        ({}, 422, "the body has no 'input'"),
        ({"input": [1, 2, 3]}, 422, "check_embedding_ctx_length=False"),
        ({"input": [["x"]]}, 422, "input[0] is a list"),
        ({"input": [True]}, 422, "input[0] is a boolean; expected a string"),
        ({"input": [[1, 2]]}, 422, "check_embedding_ctx_length=False"),
        ({"input": []}, 422, "'input' is an empty list"),
        ({"input": "x", "hunter2": 1}, 422, "known: input, model"),
        ({"input": "x", "encoding_format": "hunter2"}, 422, "the body.encoding_format is not one of"),
        ({"input": "x", "dimensions": 0}, 422, "the body.dimensions is too small"),
        ({"input": "x", "model": "hunter2"}, 404, "there are: vector"),
        ({"input": ["x"] * 5}, 413, "at most 4"),
        ({"input": "x" * 321}, 413, "at most 320"),
    ],
)
def test_openais_wrong_bodies(vectors, content, status, says):
    kind = {422: "validation", 404: "not_found", 413: "too_large"}[status]
    assert says in assert_error(post(vectors, content, "/v1/embeddings"), status, kind)


def test_openai_lists_the_models(served):
    listed = served.get("/v1/models").json()
    assert [model["id"] for model in listed["data"]] == ["tiny", *TEXT]


def test_hugging_faces_shapes_come_from_the_root(client, encoder, vectors, task_encoder):
    assert post(client, {"inputs": "good", "parameters": {"top_k": 1}}, "/").json() == [
        encoder.predict("good", top_k=1)
    ]
    assert post(client, {"inputs": ["good"]}, "/").json() == [encoder.predict("good")]
    want = task_encoder("vector").predict("good", parameters={"normalize": False})
    assert post(vectors, {"inputs": "good", "normalize": False}, "/").json() == [want]
    for name in ("ner", "qa", "mask"):
        item = TEXT[name]
        app = create_app(FakeEngine(**{name: task_encoder(name)}))
        with TestClient(app) as root:
            assert post(root, {"inputs": item}, "/").json() == post(root, {"inputs": item}).json()


def test_tokenize_shows_what_the_model_reads(client):
    got = post(client, {"inputs": "good\U0001f642 film"}, "/tokenize").json()
    assert [(token["token"], token["start"], token["end"], token["special"]) for token in got["tokens"]] == [
        ("[CLS]", 0, 0, True),
        ("[UNK]", 0, 5, False),
        ("film", 6, 10, False),
        ("[SEP]", 0, 0, True),
    ]
    assert got["truncated"] is False
    several = post(client, {"inputs": ["good", "very " * 60]}, "/tokenize").json()
    assert [len(answer["tokens"]) for answer in several] == [3, 32]
    assert [answer["truncated"] for answer in several] == [False, True]


def test_tokenize_takes_texts_only(served):
    for content in (
        {"inputs": {"text": "a", "text_pair": "b"}},
        {"inputs": [1]},
        {"inputs": []},
        {"inputs": "a", "parameters": {}},
        {},
    ):
        assert_error(post(served, content, "/models/qa/tokenize"), 422, "validation")
