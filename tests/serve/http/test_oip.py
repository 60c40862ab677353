"""The Open Inference Protocol: every answer equals the encoder's own."""

import asyncio
import json

import httpx2
import numpy as np
import pytest
from starlette.testclient import TestClient

from potstill.serve.batching import Engine, EngineSettings
from potstill.serve.http import create_app
from potstill.serve.http_errors import overloaded
from potstill.serve.limits import Limits
from tests.serve.http.fake import FakeEngine

TEXTS = ["a good film", "a very bad book !", ""]
PATH = "/v2/models/tiny/infer"


@pytest.fixture
def engine(encoder, task_encoder):
    names = ("ner", "qa", "mask", "vector", "tokens", "multi")
    return FakeEngine(tiny=encoder, **{name: task_encoder(name) for name in names})


@pytest.fixture
def client(engine):
    return TestClient(create_app(engine, limits=Limits(inputs=8)))


def texts(values, name="text", **more):
    return {"name": name, "shape": [len(values)], "datatype": "BYTES", "data": values} | more


def ids(values, name="input_ids", datatype="INT64", *, shape=None):
    shape = list(np.shape(values)) if shape is None else shape
    return {"name": name, "shape": shape, "datatype": datatype, "data": values}


def post(client, *inputs, path=PATH, **more):
    return client.post(path, json={"inputs": list(inputs)} | more)


def alone(encoder, items, **parameters):
    """Return the answers as this engine gives them: the company in a batch moves the last bit."""
    return [encoder.predict(item, **parameters) for item in items]


def outputs_of(response):
    assert response.status_code == 200, response.text
    return {output["name"]: output for output in response.json()["outputs"]}


def pack(*values):
    """Write texts as a binary tensor."""
    return b"".join(len(value).to_bytes(4, "little") + value for value in values)


def post_binary(client, content, *parts, path=PATH, **headers):
    head = json.dumps(content).encode()
    return client.post(
        path, content=b"".join([head, *parts]), headers={"inference-header-content-length": str(len(head))} | headers
    )


def unpack(response):
    """Return the outputs of a binary answer as arrays, or lists of bytes."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/octet-stream"
    size = int(response.headers["inference-header-content-length"])
    content, tail = json.loads(response.content[:size]), response.content[size:]
    found = {}
    for output in content["outputs"]:
        length = output["parameters"]["binary_data_size"]
        own, tail = tail[:length], tail[length:]
        if output["datatype"] == "BYTES":
            values = []
            while own:
                end = 4 + int.from_bytes(own[:4], "little")
                values.append(own[4:end])
                own = own[end:]
            found[output["name"]] = values
            assert output["shape"] == [len(values)]
        else:
            found[output["name"]] = np.frombuffer(own, "<f4").reshape(output["shape"])
    assert tail == b""
    return content, found


def test_health_and_the_server_are_described(client, engine):
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get("/v2/models/tiny/ready").json() == {"name": "tiny", "ready": True}
    about = client.get("/v2").json()
    assert (about["name"], about["extensions"]) == ("potstill", ["binary_tensor_data", "parameters"])
    engine.ready = False
    for path in ("/v2/health/ready", "/v2/models/tiny/ready", "/v2/models/tiny/versions/1/ready"):
        response = client.get(path)
        assert (response.status_code, response.json()["error_type"]) == (503, "unavailable")
        assert response.headers["retry-after"] == "1"
    assert client.get("/v2/health/live").status_code == 200
    engine.alive = False
    assert client.get("/v2/health/live").status_code == 503


def test_keys_are_wanted_for_all_but_health(engine):
    client = TestClient(create_app(engine, api_keys=["secret"]))
    assert client.get("/v2/health/live").status_code == client.get("/v2/health/ready").status_code == 200
    for path in ("/v2", "/v2/models/tiny", "/v2/models/tiny/ready"):
        assert client.get(path).status_code == 401
        assert client.get(path, headers={"authorization": "Bearer secret"}).status_code == 200
    assert post(client, texts(TEXTS)).status_code == 401


def test_a_model_says_what_it_takes_and_gives(client, encoder):
    about = client.get("/v2/models/tiny").json()
    assert about == {
        "name": "tiny",
        "versions": ["1"],
        "platform": "onnx_onnxv1",
        "inputs": [
            {"name": "text", "datatype": "BYTES", "shape": [-1]},
            {"name": "text_pair", "datatype": "BYTES", "shape": [-1]},
            *({"name": name, "datatype": "INT64", "shape": [-1, -1]} for name in encoder.session.inputs),
        ],
        "outputs": [
            {"name": "answers", "datatype": "BYTES", "shape": [-1]},
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
            {"name": "score", "datatype": "FP32", "shape": [-1]},
            {"name": "logits", "datatype": "FP32", "shape": [-1, 3]},
        ],
    }
    assert client.get("/v2/models/tiny/versions/1").json() == about
    for path in ("/v2/models/tiny/versions/2", "/v2/models/other", "/v2/models/other/ready", "/v2/models"):
        assert client.get(path).status_code == 404
    shapes = {
        name: [output["shape"] for output in client.get(f"/v2/models/{name}").json()["outputs"]]
        for name in ("ner", "qa", "vector")
    }
    assert shapes == {
        "ner": [[-1], [-1, -1, 5]],
        "qa": [[-1], [-1, -1], [-1, -1]],
        "vector": [[-1, -1], [-1, -1, 16], [-1, 16]],
    }


def test_texts_get_the_answers_of_predict(client, encoder):
    outputs = outputs_of(post(client, texts(TEXTS), id="one"))
    expected = alone(encoder, TEXTS)
    assert list(outputs) == ["answers", "label", "score"]
    assert [json.loads(row) for row in outputs["answers"]["data"]] == expected
    assert outputs["label"]["data"] == [answer[0]["label"] for answer in expected]
    np.testing.assert_array_equal(
        np.float32(outputs["score"]["data"]), np.float32([answer[0]["score"] for answer in expected])
    )
    assert [output["shape"] for output in outputs.values()] == [[3], [3], [3]]
    assert [output["datatype"] for output in outputs.values()] == ["BYTES", "BYTES", "FP32"]


def test_the_answer_names_its_request_and_model(client):
    content = post(client, texts(["good"]), id="é-1").json()
    assert {name: content[name] for name in ("model_name", "model_version", "id")} == {
        "model_name": "tiny",
        "model_version": "1",
        "id": "é-1",
    }
    assert "id" not in post(client, texts(["good"])).json()
    response = post(client, texts(["good"]), path="/v2/models/tiny/versions/1/infer")
    assert response.json()["model_version"] == "1"
    assert response.headers["x-tokens"] == "3"


@pytest.mark.parametrize(("shape", "data"), [([3], TEXTS), ([3, 1], TEXTS), ([3, 1], [[text] for text in TEXTS])])
def test_texts_may_be_flat_or_nested(client, encoder, shape, data):
    outputs = outputs_of(post(client, texts(data, shape=shape)))
    assert [json.loads(row) for row in outputs["answers"]["data"]] == alone(encoder, TEXTS)


def test_pairs_and_parameters_reach_the_model(client, encoder, engine):
    asked = post(client, texts(["good", "bad"]), texts(["film", "a book"], "text_pair"), parameters={"top_k": 1})
    answers = [json.loads(row) for row in outputs_of(asked)["answers"]["data"]]
    assert answers == alone(encoder, [("good", "film"), ("bad", "a book")], top_k=1)
    assert engine.asked[-1]["characters"] == [len("goodfilm"), len("bada book")]


@pytest.mark.parametrize(
    ("model", "asked", "inputs"),
    [
        ("ner", ["Ada good film", "x"], [texts(["Ada good film", "x"])]),
        ("mask", ["a [MASK] film"], [texts(["a [MASK] film"])]),
        ("multi", ["a film"], [texts(["a film"])]),
        (
            "qa",
            [("what is it ?", "it is a book")],
            [texts(["what is it ?"], "question"), texts(["it is a book"], "context")],
        ),
    ],
)
def test_every_task_answers_texts(client, task_encoder, model, asked, inputs):
    outputs = outputs_of(post(client, *inputs, path=f"/v2/models/{model}/infer"))
    assert [json.loads(row) for row in outputs["answers"]["data"]] == alone(task_encoder(model), asked)


def test_vectors_are_numbers(client, task_encoder):
    outputs = outputs_of(post(client, texts(TEXTS), path="/v2/models/vector/infer"))
    assert list(outputs) == ["embedding"]
    expected = np.float32(alone(task_encoder("vector"), TEXTS))
    np.testing.assert_array_equal(np.float32(outputs["embedding"]["data"]).reshape(expected.shape), expected)
    assert outputs["embedding"]["shape"] == list(expected.shape)


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("datatype", ["INT64", "INT32"])
def test_ids_get_what_the_graph_gives(client, encoder, nested, datatype):
    feeds = encoder.tokenizer.encode(TEXTS)
    inputs = []
    for name, values in feeds.items():
        data = values if nested else values.ravel()
        inputs.append(ids(data.tolist(), name, datatype, shape=list(values.shape)))
    outputs = outputs_of(post(client, *inputs))
    expected = encoder.session.run(feeds)["logits"]
    assert outputs["logits"]["shape"] == list(expected.shape)
    np.testing.assert_allclose(outputs["logits"]["data"], expected.ravel(), atol=1e-6)


def test_masks_and_types_have_defaults(client, encoder):
    row = encoder.tokenizer.rows(["a good film"])[0]
    outputs = outputs_of(post(client, ids([row["input_ids"].tolist()])))
    np.testing.assert_allclose(outputs["logits"]["data"], encoder.logits(["a good film"])[0], atol=1e-6)


@pytest.mark.parametrize("model", ["ner", "qa", "mask", "vector", "tokens"])
def test_outputs_per_token_have_the_shape_that_was_sent(client, task_encoder, model):
    encoder = task_encoder(model)
    feeds = encoder.tokenizer.encode(["a good film", "good"])
    inputs = [ids(values.tolist(), name) for name, values in feeds.items()]
    outputs = outputs_of(post(client, *inputs, path=f"/v2/models/{model}/infer"))
    for name, expected in encoder.session.run(feeds).items():
        assert outputs[name]["shape"] == list(expected.shape)
        np.testing.assert_allclose(outputs[name]["data"], expected.ravel(), atol=1e-5)


def test_only_the_wanted_outputs_come(client):
    outputs = outputs_of(post(client, texts(TEXTS), outputs=[{"name": "score"}, {"name": "label"}]))
    assert list(outputs) == ["score", "label"]
    assert list(outputs_of(post(client, texts(TEXTS), outputs=[]))) == ["answers", "label", "score"]


def test_texts_go_and_come_as_bytes(client, encoder):
    raw = [text.encode() for text in ["a good film", "é中🙂\0", ""]]
    packed = pack(*raw)
    tensor = {"name": "text", "shape": [3], "datatype": "BYTES", "parameters": {"binary_data_size": len(packed)}}
    asked = {"id": "7", "inputs": [tensor], "parameters": {"binary_data_output": True}}
    content, found = unpack(post_binary(client, asked, packed))
    expected = alone(encoder, [each.decode() for each in raw])
    assert content["id"] == "7"
    assert [json.loads(row) for row in found["answers"]] == expected
    assert found["label"] == [answer[0]["label"].encode() for answer in expected]
    np.testing.assert_array_equal(found["score"], np.float32([answer[0]["score"] for answer in expected]))


@pytest.mark.parametrize(("datatype", "kind"), [("INT64", "<i8"), ("INT32", "<i4")])
def test_ids_go_and_come_as_bytes(client, encoder, datatype, kind):
    feeds = encoder.tokenizer.encode(TEXTS)
    parts = [values.astype(kind).tobytes() for values in feeds.values()]
    inputs = [
        {"name": name, "shape": list(values.shape), "datatype": datatype, "parameters": {"binary_data_size": len(part)}}
        for (name, values), part in zip(feeds.items(), parts, strict=True)
    ]
    asked = {"inputs": inputs, "outputs": [{"name": "logits", "parameters": {"binary_data": True}}]}
    for headers in ({}, {"content-type": "application/octet-stream"}):
        _, found = unpack(post_binary(client, asked, *parts, **headers))
        np.testing.assert_allclose(found["logits"], encoder.session.run(feeds)["logits"], atol=1e-6)


def test_bytes_and_json_may_be_mixed(client, encoder):
    wanted = [{"name": "score", "parameters": {"binary_data": True}}, {"name": "label"}]
    packed = pack(b"film")
    pair = {"name": "text_pair", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(packed)}}
    response = post_binary(client, {"inputs": [texts(["good"]), pair], "outputs": wanted}, packed)
    size = int(response.headers["inference-header-content-length"])
    score, label = json.loads(response.content[:size])["outputs"]
    best = encoder.predict(("good", "film"))[0]
    assert (score["parameters"], label["data"]) == ({"binary_data_size": 4}, [best["label"]])
    assert np.frombuffer(response.content[size:], "<f4") == np.float32([best["score"]])


def test_a_timeout_in_microseconds_is_the_clients_deadline(client, engine):
    def asked(**more):
        assert post(client, texts(["good"]), **more).status_code == 200
        return engine.asked[-1]["timeout_s"]

    assert asked() is None
    assert asked(parameters={"timeout": 250_000}) == 0.25
    assert asked(parameters={"timeout": 10**12}) == Limits().request_seconds
    assert asked(parameters={"timeout": 10_000}) == 0.01
    client.headers["x-request-timeout-ms"] = "100"
    assert asked(parameters={"timeout": 250_000}) == 0.1
    assert post(client, texts(["good"]), parameters={"timeout": 9_999}).status_code == 422


def test_what_other_clients_of_the_protocol_add_is_taken(client):
    tensor = texts(["good"], parameters={"content_type": "str"})
    outputs_of(post(client, tensor, parameters={"priority": 1, "content_type": "str"}))


def test_a_full_engine_refuses(client, engine):
    engine.refusal = overloaded(2.5)
    response = post(client, texts(["good"]))
    assert (response.status_code, response.headers["retry-after"]) == (429, "3")
    assert client.get("/v2/health/ready").status_code == 200


def test_ids_count_as_the_characters_of_an_english_text(client, engine):
    outputs_of(post(client, ids([[1, 2, 3, 4]] * 2)))
    assert engine.asked[-1]["characters"] == [16, 16]


async def _ask_together(bodies, **models):
    """Send all bodies at once to a real engine, each to its model; return the answers."""
    engine = Engine(models, settings=EngineSettings(threads=1, limits=Limits(wait_ms=60_000)))
    engine.warm_up()
    engine.start(asyncio.get_running_loop())
    transport = httpx2.ASGITransport(create_app(engine))
    try:
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
            asked = [client.post(f"/v2/models/{model}/infer", json=body) for model, body in bodies]
            return await asyncio.gather(*asked)
    finally:
        await engine.close()


def test_requests_at_the_same_time_do_not_mix(encoder, int8_encoder, task_encoder):
    models = {"tiny": encoder, "int8": int8_encoder, "ner": task_encoder("ner")}
    asked = []
    for turn in range(20):
        some = ["a good film " * (turn % 7), "x" * (turn % 5)]
        for name in models:
            asked.append((name, some, {"inputs": [texts(some)]}))
            feeds = models[name].tokenizer.encode(some[:1])
            asked.append((name, feeds, {"inputs": [ids(values.tolist(), key) for key, values in feeds.items()]}))
    responses = asyncio.run(_ask_together([(name, body) for name, _, body in asked], **models))
    for (name, what, _), response in zip(asked, responses, strict=True):
        outputs, model = outputs_of(response), models[name]
        if isinstance(what, dict):
            np.testing.assert_allclose(outputs["logits"]["data"], model.session.run(what)["logits"].ravel(), atol=1e-5)
        elif name == "ner":
            answers = [json.loads(row) for row in outputs["answers"]["data"]]
            assert [[each["word"] for each in row] for row in answers] == [
                [each["word"] for each in row] for row in alone(model, what)
            ]
        else:
            scores = [answer[0]["score"] for answer in alone(model, what)]
            np.testing.assert_allclose(outputs["score"]["data"], scores, atol=1e-6)
