"""One test for each kind of fault that was found by using the server over HTTP, by its row in the list of faults.

Each failed on the code as it was. C2 is in tests/serve/batching, C3's token ids in tests/serve/http/test_tasks.py, and
C7, C8, C9, C11, C12 and C13 are where the tokenizer, the bundle and the engine are tested.
"""

import json
import time

import pytest

from tests.faults.bed import Bed, tiny_bundle, well
from tests.faults.rawhttp import Connection, ask, get, message, predict_message
from tests.faults.served import Ended, Server


@pytest.fixture(scope="module")
def bed(tmp_path_factory):
    with tiny_bundle() as bundle:
        bed = Bed(bundle=bundle, scratch=tmp_path_factory.mktemp("rows"))
        yield bed
        bed.close()


@pytest.fixture(scope="module")
def server(bed):
    """A server as most people start one: on loopback, without keys."""
    return bed.shared()


@pytest.fixture(scope="module")
def locked(bed):
    """A server that asks for a key."""
    with Server([bed.bundle], environment={"POTSTILL_API_KEYS": "key-of-the-test"}) as server:
        yield server


def model_of(server):
    return get(server.port, "/info").json()["default_model"]


def test_forty_bytes_do_not_stop_the_loop(bed):
    """Row C1: `GET / HTTP/1.0`, a length of 1 and one byte: the event loop spun for ever, and SIGTERM did nothing."""
    with bed.server(limits={"header_seconds": 1.0, "body_seconds": 1.0}) as (server, _):
        with Connection(server.port, seconds=5) as connection:
            response = connection.ask(b"GET / HTTP/1.0\r\nContent-Length: 1\r\n\r\nx")
            assert (response.status, response.closes) == (200, True)
            assert get(server.port, "/health/live", seconds=5).status == 200
        assert server.terminate(seconds=15) == 0


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("POST", "/v1/embeddings", 404, "invalid_request_error"),
        ("GET", "/v1/models/none", 404, "invalid_request_error"),
        ("PUT", "/v1/models", 405, "invalid_request_error"),
    ],
)
def test_errors_under_v1_have_the_shape_that_openais_clients_read(server, method, path, status, kind):
    """Row C3: they read `error.message`, found a text instead of an object, and printed "Error code: 422" alone."""
    response = ask(server.port, message(method, path, b'{"input": "a"}'))
    assert response.status == status
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert (error["type"], error["param"]) == (kind, None)
    assert set(ask(server.port, message("GET", "/none")).json()) == {"error", "error_type"}


@pytest.mark.parametrize("where", ["parameters", "pair", "tensor"])
def test_unknown_keys_are_refused_before_values_are_read(server, where):
    """Row C4: 170,000 unknown keys took the event loop half a second; to read their JSON takes a fraction of that."""
    keys = {str(number): 0 for number in range(170_000)}
    content, path = {
        "parameters": ({"inputs": "a", "parameters": keys}, "/predict"),
        "pair": ({"inputs": [{"text": "a", "text_pair": "b"} | keys]}, "/predict"),
        "tensor": ({"inputs": [{"name": "text"} | keys]}, f"/v2/models/{model_of(server)}/infer"),
    }[where]

    def to_bytes(content, path):
        return message("POST", path, json.dumps(content, separators=(",", ":")).encode())

    def seconds(data):
        started = time.monotonic()
        response = ask(server.port, data)
        assert response.status == 422
        assert "key that is not known" in response.json()["error"]
        return time.monotonic() - started

    nested, plain, took, read = to_bytes(content, path), to_bytes({"inputs": "a"} | keys, "/predict"), [], []
    for _ in range(4):  # in turns, for the machine may do something else as well
        took.append(seconds(nested))
        read.append(seconds(plain))
    assert min(took) < 2 * min(read) + 0.05


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.nip.io", "10.0.0.1"]
)
@pytest.mark.parametrize("path", ["/predict", "/info", "/health/live", "/"])
def test_another_hosts_name_is_refused_on_loopback_without_keys(server, host, path):
    """Row C5: a web page whose name was made to point at 127.0.0.1 could ask, and read the answers (DNS rebinding)."""
    body = b'{"inputs": "a"}' if path == "/predict" else b""
    raw = message("POST" if body else "GET", path, body or None).replace(b"Host: localhost", b"Host: " + host.encode())
    response = ask(server.port, raw)
    assert response.status == 400
    assert "Host" in response.json()["error"]
    for own in (b"localhost", b"LOCALHOST:1", b"127.0.0.1:8000", b"[::1]:8000", b"localhost."):
        assert ask(server.port, raw.replace(host.encode(), own)).status == 200


def test_hosts_are_anyones_where_keys_are_asked_for_or_a_network_is_listened_on(bed, locked):
    """Row C5: whoever listens on a network, or asks for keys, is called by names that it cannot know."""
    raw = predict_message("a").replace(b"Host: localhost", b"Host: proxy.example")
    for options, status in ((("--host", "0.0.0.0"), 200), (("--allowed-host", "proxy.example"), 200)):
        port = {"--host": "8791"}.get(options[0], "0")
        with Server([bed.bundle], options=[*options, *(("--port", port) if port != "0" else ())]) as server:
            assert ask(server.port, raw).status == status
    assert ask(locked.port, raw).status == 401


def test_a_page_of_another_origin_cannot_send_tensors_without_a_type(server):
    """Row C5: a browser sends a body without a content type to another origin without asking first."""
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}
    path, body = f"/v2/models/{model_of(server)}/infer", json.dumps({"inputs": [tensor]}).encode()

    def infer(**headers):
        return ask(server.port, message("POST", path, body, headers=headers, json_body=False)).status

    assert infer(Origin="https://evil.example") == 415
    assert infer(Origin="null") == 415
    assert infer(Origin="https://evil.example", **{"Content-Type": "text/plain"}) == 415
    assert infer() == 200
    assert infer(Origin="http://localhost") == 200
    assert infer(Origin="https://evil.example", **{"Content-Type": "application/json"}) == 200  # asked for beforehand


def test_keys_that_are_none_end_the_start(bed):
    """Row C6: `POTSTILL_API_KEYS=",, ,"` was an open server."""
    with pytest.raises(Ended) as ended, Server([bed.bundle], environment={"POTSTILL_API_KEYS": ",, ,"}):
        pass
    assert ended.value.code == 2
    assert "POTSTILL_API_KEYS has no key" in ended.value.stderr


@pytest.mark.parametrize("path", ["/nope", "/predict", "/models/none/predict", "*"])
def test_options_needs_a_key_like_every_method(locked, path):
    """Row C6: `OPTIONS /nope` without a key was a 404 that listed paths and models."""
    response = ask(locked.port, message("OPTIONS", path))
    assert response.status == 401
    assert b"predict" not in response.body
    keyed = {"Authorization": "Bearer key-of-the-test"}
    assert ask(locked.port, message("OPTIONS", "/predict", headers=keyed)).status == 204


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json; charset=utf8; x=y", 200),
        ('application/json;x="a;charset=latin-1"; charset="utf-8"', 200),
        ("Application/JSON ; Charset=UTF-8", 200),
        ("application/json;", 200),
        ("application/json; charset=utf-8 ", 200),
        ("application/json; x=y; charset=latin-1", 415),
        ("application/jsonx", 415),
        ("text/plain; application/json", 415),
    ],
)
def test_media_types_are_read_with_their_parameters(server, kind, status):
    """Row C10: `application/json; charset=utf8; x=y` was a 415."""
    raw = message("POST", "/predict", b'{"inputs": "a"}', headers={"Content-Type": kind}, json_body=False)
    assert ask(server.port, raw).status == status


@pytest.mark.parametrize("value", ["5000 ", "5000\t", "\t 5000 \t"])
def test_white_space_around_a_headers_value_does_not_count(server, value):
    """Row C10: a space behind `X-Request-Timeout-Ms: 500` was a 422."""
    assert ask(server.port, predict_message("a", headers={"X-Request-Timeout-Ms": value})).status == 200
    well(server)
