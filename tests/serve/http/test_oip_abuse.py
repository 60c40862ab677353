"""What Triton had to be patched for, and the rest: refused with the right status, in the one shape, without an echo."""

import json
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from potstill.serve.http import create_app, oip
from potstill.serve.limits import Limits
from tests.serve.http.fake import FakeEngine
from tests.serve.http.test_oip import PATH, ids, pack, post, post_binary, texts

SECRET = "hunter2"


@pytest.fixture(scope="module")
def client(encoder, task_encoder):
    engine = FakeEngine(tiny=encoder, ner=task_encoder("ner"), mask=task_encoder("mask"))
    limits = Limits(body_bytes=200_000, inputs=8, characters_per_token=10)
    return TestClient(create_app(engine, limits=limits))


def refused(response, *statuses):
    content = response.json()
    assert response.status_code in statuses, content
    assert sorted(content) == ["error", "error_type"]
    assert SECRET not in response.text
    return content["error"]


def header(name="text", *, size, shape=(1,), datatype="BYTES"):
    return {
        "inputs": [{"name": name, "shape": list(shape), "datatype": datatype, "parameters": {"binary_data_size": size}}]
    }


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"inputs": []},
        {"inputs": {}},
        {"inputs": [SECRET]},
        {"inputs": [{}]},
        {"inputs": [texts([SECRET])], SECRET: 1},
        {"inputs": [texts([SECRET]) | {SECRET: 1}]},
        {"inputs": [texts([SECRET], SECRET)]},
        {"inputs": [texts([SECRET])], "id": 7},
        {"inputs": [texts([SECRET])], "id": "x" * 1025},
        {"inputs": [texts([SECRET])], "parameters": []},
        {"inputs": [texts([SECRET])], "parameters": {SECRET: 1}},
        {"inputs": [texts([SECRET])], "parameters": {"top_k": 0}},
        {"inputs": [texts([SECRET])], "parameters": {"timeout": 0}},
        {"inputs": [texts([SECRET])], "parameters": {"timeout": 1.5}},
        {"inputs": [texts([SECRET])], "parameters": {"binary_data_output": 1}},
        {"inputs": [texts([SECRET])], "parameters": {"sequence_id": 3}},
        {"inputs": [texts([SECRET])], "outputs": [{"name": SECRET}]},
        {"inputs": [texts([SECRET])], "outputs": [{"name": "logits"}]},
        {"inputs": [texts([SECRET])], "outputs": [{"name": "label"}, {"name": "label"}]},
        {"inputs": [texts([SECRET])], "outputs": [{"name": "label", "parameters": {"binary_data": "yes"}}]},
        {"inputs": [texts([SECRET])], "outputs": [{"name": "label", "parameters": {"classification": 2}}]},
        {"inputs": [texts([SECRET])], "outputs": [{"name": "label", "parameters": {"shared_memory_region": "a"}}]},
        {"inputs": [texts([SECRET]), texts([SECRET])]},
        {"inputs": [texts([SECRET], "text_pair")]},
        {"inputs": [texts([SECRET]), ids([[1]])]},
        {"inputs": [texts([SECRET]), texts([SECRET, "b"], "text_pair")]},
        {"inputs": [texts([SECRET], shape=[])]},
        {"inputs": [texts([SECRET], shape=[0])]},
        {"inputs": [texts([SECRET], shape=[-1])]},
        {"inputs": [texts([SECRET], shape=[2])]},
        {"inputs": [texts([SECRET], shape=[1, 2])]},
        {"inputs": [texts([SECRET], shape=[1, 1, 1])]},
        {"inputs": [texts([SECRET], shape=[1.5])]},
        {"inputs": [texts([SECRET], shape=["1"])]},
        {"inputs": [texts([[SECRET]], shape=[1])]},
        {"inputs": [texts([[SECRET, SECRET]], shape=[1, 1])]},
        {"inputs": [texts([1])]},
        {"inputs": [texts([None])]},
        {"inputs": [texts(SECRET)]},
        {"inputs": [texts([SECRET], datatype="FP32")]},
        {"inputs": [texts([SECRET], datatype=SECRET)]},
        {"inputs": [texts([SECRET], parameters={"shared_memory_region": SECRET})]},
        {"inputs": [texts([SECRET], parameters={"binary_data_size": 3})]},
        {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES"}]},
        {"inputs": [ids([[1]], datatype="BYTES")]},
        {"inputs": [ids([[1]], datatype="UINT8")]},
        {"inputs": [ids([1])]},
        {"inputs": [ids([[-1]])]},
        {"inputs": [ids([[10**6]])]},
        {"inputs": [ids([[2**63]])]},
        {"inputs": [ids([[True]])]},
        {"inputs": [ids([[1.5]])]},
        {"inputs": [ids([[1, 2], [3]], shape=[2, 2])]},
        {"inputs": [ids([[1], 2], shape=[2, 1])]},
        {"inputs": [ids([1, [2]], shape=[1, 2])]},
        {"inputs": [ids([[1]], shape=[1, 33])]},
        {"inputs": [ids([[1]], shape=[1, 2**62])]},
        {"inputs": [ids([[1]], shape=[1, -(2**63)])]},
        {"inputs": [ids([[1]], "attention_mask")]},
        {"inputs": [ids([[1]]), ids([[0]], "attention_mask")]},
        {"inputs": [ids([[1]]), ids([[2]], "attention_mask")]},
        {"inputs": [ids([[1]]), ids([[2]], "token_type_ids")]},
        {"inputs": [ids([[1]]), ids([[1, 1]], "attention_mask")]},
        {"inputs": [ids([[1]])], "parameters": {"top_k": 1}},
    ],
)
def test_what_cannot_be_is_422(client, content):
    assert refused(client.post(PATH, json=content), 422)


def test_too_much_is_413(client):
    refused(post(client, texts(["a"] * 9)), 413)
    refused(post(client, ids([[1]], shape=[2**62, 2])), 413)
    refused(post(client, texts(["x" * 321])), 413)
    refused(post(client, texts(["x" * 300_000])), 413)


@pytest.mark.parametrize(("count", "statuses"), [(100, (413, 422)), (100_000, (413, 422))])
def test_many_outputs_or_inputs_cost_nothing(encoder, count, statuses):
    client = TestClient(create_app(FakeEngine(tiny=encoder), limits=Limits(body_bytes=10_000_000)))
    refused(post(client, texts(["a"]), outputs=[{"name": "label"}] * count), *statuses)
    refused(post(client, *([{}] * count)), *statuses)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[" * 100_000, b'{"inputs":' * 100, b"\xff\xfe{}", b'{"inputs": [NaN]}', b'{"id": ' + b"9" * 5000],
)
def test_what_cannot_be_read_is_refused(client, body):
    statuses = (400,) if len(body) < 10_000 else (400, 413)  # too deep, or too many
    refused(client.post(PATH, content=body), *statuses)
    refused(client.post(PATH, content=body, headers={"inference-header-content-length": str(len(body))}), *statuses)


@pytest.mark.parametrize("length", ["-1", "x", "", "99999999", "9" * 400, "1e2", "0x10", "²"])
def test_a_wrong_length_of_the_header_is_400(client, length):
    body = json.dumps({"inputs": [texts([SECRET])]}).encode()
    refused(client.post(PATH, content=body, headers={"inference-header-content-length": length.encode()}), 400)


@pytest.mark.parametrize(
    ("content", "parts", "status"),
    [
        (header(size=5), [], 400),  # more than is there
        (header(size=2**62), [b"x"], 400),
        (header(size=-1), [b"x"], 422),
        (header(size="5"), [b"x"], 422),
        (header(size=True), [b"x"], 422),
        (header(size=5), [pack(b"a"), b"more"], 400),  # bytes that belong to nothing
        (header(size=0), [], 400),
        (header(size=3), [b"\1\0\0"], 400),  # a length that is cut off
        (header(size=5), [b"\xff\xff\xff\xffa"], 400),  # a text of 4 GB
        (header(size=5), [pack(b"\xff")], 400),  # no UTF-8
        (header(size=10, shape=[1]), [pack(b"a", b"b")], 400),
        (header(size=5, shape=[2]), [pack(b"a")], 400),
        # Eight bytes that claim to be many ids: the type-size explosions.
        (header("input_ids", size=8, shape=[8, 32], datatype="INT64"), [b"\0" * 8], 422),
        (header("input_ids", size=8, shape=[1, 1], datatype="INT32"), [b"\0" * 8], 422),
        (header("input_ids", size=9, shape=[1, 1], datatype="INT64"), [b"\0" * 9], 422),
        (header("input_ids", size=8, shape=[2**40, 2**40], datatype="INT64"), [b"\0" * 8], 413),
        (header("input_ids", size=8, shape=[1, 1], datatype="INT64"), [b"\xff" * 8], 422),
    ],
)
def test_wrong_bytes_are_refused(client, content, parts, status):
    refused(post_binary(client, content, *parts), status)


def test_bytes_without_their_header_are_refused(client):
    body = json.dumps(header(size=5)).encode()
    refused(client.post(PATH, content=body), 400)
    refused(client.post(PATH, content=body + pack(b"a")), 400)


def test_other_types_and_encodings_are_415(client):
    for headers in ({"content-type": "text/plain"}, {"content-encoding": "gzip"}, {"content-encoding": "deflate"}):
        refused(client.post(PATH, content=b"{}", headers=headers), 415)


def test_other_methods_are_405(client):
    assert client.get(PATH).headers["allow"] == "POST"
    assert client.post("/v2/health/live").headers["allow"] == "GET, HEAD"
    assert client.get(PATH).status_code == client.post("/v2/health/live").status_code == 405
    assert client.head("/v2").content == b""


def test_answers_of_too_many_numbers_are_refused_before_they_are_computed(client, monkeypatch):
    row = ids([[1, 2, 3]])
    monkeypatch.setattr(oip, "MOST_WRITTEN", 14)
    says = refused(post(client, row, path="/v2/models/ner/infer"), 413)
    assert says == "the answer has 15 numbers as JSON, over 14; ask for binary_data, or send fewer texts"
    binary = {"binary_data_output": True}
    assert post(client, row, path="/v2/models/ner/infer", parameters=binary).status_code == 200
    monkeypatch.setattr(oip, "MOST_NUMBERS", 14)
    refused(post(client, row, path="/v2/models/ner/infer", parameters=binary), 413)


def test_claims_of_size_make_nothing_of_that_size(client):
    content, part = header("input_ids", size=8, shape=[8, 32], datatype="INT64"), b"\0" * 8
    post_binary(client, content, part)
    tracemalloc.start()
    for shape in ([2**40, 2**20], [8, 2**60], [8, 32]):
        content["inputs"][0]["shape"] = shape
        post_binary(client, content, part)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


# Values that a client may put anywhere.
SCALARS = st.none() | st.booleans() | st.integers(-3, 40) | st.sampled_from([2**31, 2**63, 1.5, "", "text", "INT64"])
ANY = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner))
TENSORS = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["text", "text_pair", "input_ids", "attention_mask", "token_type_ids"]),
        "shape": st.lists(st.integers(-1, 9), min_size=1, max_size=3) | ANY,
        "datatype": st.sampled_from(["BYTES", "INT64", "INT32"]),
    },
    optional={
        "data": st.lists(st.integers(-1, 200) | st.text(max_size=5), max_size=9) | ANY,
        "parameters": st.fixed_dictionaries({}, optional={"binary_data_size": st.integers(-1, 40) | SCALARS}) | ANY,
    },
)
BODIES = st.fixed_dictionaries(
    {"inputs": st.lists(TENSORS | ANY, max_size=4) | ANY},
    optional={
        "id": st.text(max_size=4) | ANY,
        "parameters": st.dictionaries(st.sampled_from(["top_k", "timeout", "binary_data_output"]), SCALARS) | ANY,
        "outputs": st.lists(st.fixed_dictionaries({"name": st.sampled_from(["label", "logits"])}) | ANY) | ANY,
    },
)


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(content=BODIES, tail=st.binary(max_size=40), length=st.none() | st.integers(0, 300) | st.just("all"))
def test_nothing_makes_the_server_fail(client, content, tail, length):
    head = json.dumps(content).encode()
    size = len(head) if length == "all" else length
    headers = {} if size is None else {"inference-header-content-length": str(size)}
    response = client.post(PATH, content=head + tail, headers=headers)
    assert response.status_code in {200, 400, 413, 422}
