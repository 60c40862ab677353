"""What is decided before an endpoint runs: paths, methods, keys, refusals, and their price."""

import asyncio
import json
from time import perf_counter

import pytest
from starlette.testclient import TestClient

from potstill.serve.http import create_app
from potstill.serve.http_errors import overloaded, unavailable
from tests.serve.http.fake import FakeEngine
from tests.serve.http.test_predict import SECRET, assert_error, post

KEYS = ("a key", "schlüssel")


@pytest.fixture
def locked(engine):
    return TestClient(create_app(engine, api_keys=KEYS))


def test_the_engine_is_told_which_client_asks(locked, client, engine):
    """A key is a client, and where there are none an address is."""
    clients = []
    for key in (*KEYS, KEYS[0]):
        sent = {b"authorization": b"Bearer " + key.encode()}
        assert locked.post("/predict", json={"inputs": "good"}, headers=sent).status_code == 200
        clients.append(engine.asked[-1]["client"])
    assert clients[0] == clients[2] != clients[1]
    assert not any(key in told for key in KEYS for told in clients)
    assert client.post("/predict", json={"inputs": "good"}).status_code == 200
    assert engine.asked[-1]["client"] == "testclient"


def test_unknown_paths_name_the_known_ones(client):
    for path in ("/predict/", "/hunter2", "/predict/%00", "/models/", "/models/tiny/hunter2", "/static/../app.py"):
        assert "/predict" in assert_error(client.get(path), 404, "not_found")


def test_another_method_is_a_405_that_says_which(client):
    for method, path, allowed in [
        ("GET", "/predict", "POST"),
        ("DELETE", "/info", "GET, HEAD"),
        ("BREW", "/health", "GET, HEAD"),
        ("PUT", "/", "GET, HEAD, POST"),
        ("HEAD", "/models/tiny/predict", "POST"),
    ]:
        response = client.request(method, path)
        assert (response.status_code, response.headers["allow"]) == (405, allowed)
        if method != "HEAD":
            assert allowed in assert_error(response, 405, "method_not_allowed")


def test_options_and_head_answer_without_a_body(client):
    response = client.options("/predict")
    assert (response.status_code, response.headers["allow"], response.content) == (204, "OPTIONS, POST", b"")
    assert "content-length" not in response.headers
    whole, head = client.get("/info"), client.head("/info")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(whole.content))
    assert client.options("/hunter2").status_code == 404


def test_a_full_engine_refuses_before_the_body_is_read(engine):
    app = create_app(engine)
    engine.refusal = overloaded(0.3)
    sent = []

    async def receive():
        raise AssertionError("the body was asked for")

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": [(b"content-type", b"text/plain")]}
    asyncio.run(app(scope, receive, send))
    headers = dict(sent[0]["headers"])
    assert (sent[0]["status"], headers[b"retry-after"]) == (429, b"1")
    assert json.loads(sent[1]["body"])["error_type"] == "overloaded"
    assert engine.asked == []


def test_a_full_engine_still_answers_what_costs_nothing(client, engine):
    engine.refusal = overloaded(0.3)
    for path in ("/health/live", "/health/ready", "/info", "/metrics", "/", "/docs", "/openapi.json", "/v1/models"):
        assert client.get(path).status_code == 200
    for path in ("/predict", "/", "/tokenize", "/models/tiny/predict", "/models/tiny/tokenize"):
        assert_error(post(client, {"inputs": "x"}, path), 429, "overloaded")


def test_health_tells_an_end_from_a_wedge(client, engine):
    assert client.get("/health/live").json() == {"status": "ok"}
    assert client.get("/health").json() == {"status": "ok"}
    engine.ready = False
    assert client.get("/health/live").status_code == 200
    assert_error(client.get("/health/ready"), 503, "unavailable")
    assert "retry-after" in client.get("/health").headers
    engine.alive = False
    assert_error(client.get("/health/live"), 503, "unavailable")


def test_a_key_is_needed_where_keys_are_set(locked):
    for path in ("/info", "/metrics", "/v1/models", "/models/tiny", "/hunter2"):
        response = locked.get(path)
        assert_error(response, 401, "unauthorized")
        assert response.headers["www-authenticate"].startswith("Bearer")
    assert_error(post(locked, {"inputs": SECRET}), 401, "unauthorized")
    for path in ("/health", "/health/live", "/health/ready", "/", "/docs", "/openapi.json", "/static/page.js"):
        assert locked.get(path).status_code == 200
    assert locked.delete("/health").status_code == 405


@pytest.mark.parametrize(
    "given", ["", "a key", "Basic a key", "Bearer", "Bearer a ke", "Bearer a key x", "Bearer hunter2"]
)
def test_a_wrong_key_is_no_key(locked, given):
    assert_error(post(locked, {"inputs": "x"}, authorization=given), 401, "unauthorized")


def test_every_key_opens(locked):
    for key in KEYS:
        response = locked.post(
            "/predict", json={"inputs": "good"}, headers={b"authorization": b"Bearer " + key.encode()}
        )
        assert response.status_code == 200
    assert post(locked, {"inputs": "good"}, authorization="bearer  a key").status_code == 200


def test_the_key_comes_before_the_queue(locked, engine):
    engine.refusal = unavailable("the server is ending")
    assert_error(post(locked, {"inputs": "x"}), 401, "unauthorized")
    assert_error(post(locked, {"inputs": "x"}, authorization="Bearer a key"), 503, "unavailable")


def test_a_client_that_hangs_up_is_counted_and_its_work_is_cancelled(engine):
    app, entered = create_app(engine), asyncio.Event()

    async def answer(model, prepare, **_):
        entered.set()
        await asyncio.sleep(20)

    async def receive():
        return {"type": "http.request", "body": b'{"inputs": "x"}'}

    async def hang_up():
        engine.answer = answer
        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/predict", "headers": headers}
        task = asyncio.ensure_future(app(scope, receive, None))
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(hang_up())
    metrics = TestClient(app).get("/metrics").text
    assert 'potstill_requests_total{code="499",method="POST",path="/predict"} 1.0' in metrics
    assert "potstill_requests_in_flight 1.0" in metrics  # the one that asks


def test_a_body_that_ends_early_is_a_400(engine):
    sent, messages = [], iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])

    async def receive():
        return next(messages)

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/predict",
        "headers": [(b"content-type", b"application/json")],
    }
    asyncio.run(create_app(engine)(scope, receive, send))
    assert sent[0]["status"] == 400


def test_slow_bodies_together_cannot_fill_the_memory(engine):
    """The server holds 128 MiB of bodies that are not whole, which is 68 of these."""
    app, statuses, part = create_app(engine), [], b" " * 1_900_000

    async def main():
        more = asyncio.Event()

        async def ask():
            messages = iter([part, b""])

            async def receive():
                body = next(messages)
                if not body:
                    await more.wait()
                return {"type": "http.request", "body": body, "more_body": bool(body)}

            async def send(message):
                if message["type"] == "http.response.start":
                    statuses.append(message["status"])

            headers = [(b"content-type", b"application/json")]
            await app({"type": "http", "method": "POST", "path": "/predict", "headers": headers}, receive, send)

        asked = [asyncio.ensure_future(ask()) for _ in range(80)]
        await asyncio.sleep(0.1)
        assert statuses == [503] * 10
        more.set()
        await asyncio.gather(*asked)
        await ask()

    asyncio.run(main())
    assert statuses[10:] == [400] * 71


def test_the_lifespan_is_acknowledged(engine):
    with TestClient(create_app(engine)) as client:
        assert client.get("/health").status_code == 200


def test_a_refusal_costs_microseconds(encoder):
    engine = FakeEngine(tiny=encoder)
    app, headers = create_app(engine), [(b"host", b"x"), (b"content-type", b"application/json"), (b"accept", b"*/*")]

    async def send(message):
        return None

    async def flood(number):
        started = perf_counter()
        for _ in range(number):
            engine.refusal = overloaded(1.2)
            await app({"type": "http", "method": "POST", "path": "/predict", "headers": headers}, None, send)
        return (perf_counter() - started) / number

    # 35 us here; the bound is for a machine that does something else as well.
    assert min(asyncio.run(flood(300)) for _ in range(5)) < 400e-6
