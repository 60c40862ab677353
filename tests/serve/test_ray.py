"""A replica of the Ray Serve application, without Ray: it answers as the application does."""

import asyncio

import httpx
import pytest
from pydantic import ValidationError
from starlette.requests import Request

from potstill.errors import MissingExtraError, UsageError
from potstill.serve.batching import Engine, EngineSettings
from potstill.serve.http import create_app
from potstill.serve.ray import Arguments, Replica, app

REQUESTS = [
    ("POST", "/predict", {"inputs": ["a good film", "a bad book"]}),
    ("POST", "/predict", {"inputs": 3}),
    ("GET", "/health/ready", None),
    ("GET", "/nothing", None),
    ("GET", "/v1/models", None),
]
OWN = {"x-tokenize-time-ms", "x-queue-time-ms", "x-inference-time-ms"}


def test_a_replica_answers_as_the_server(bundle_dir, encoder):
    async def through_ray(scope, receive, send):
        if scope["type"] == "http":
            response = await replica(Request(scope, receive, send))
            await response(scope, receive, send)

    async def ask(application):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(application), base_url="http://test") as client:
            return [await client.request(method, path, json=content) for method, path, content in REQUESTS]

    async def both():
        nonlocal replica
        replica = Replica.__new__(Replica)
        await replica.__init__(Arguments(bundle=bundle_dir))
        replica.check_health()
        engine = Engine({bundle_dir.name: encoder}, settings=EngineSettings())
        engine.warm_up()
        engine.start(asyncio.get_running_loop())
        got, want = await ask(through_ray), await ask(create_app(engine))
        await engine.close()
        await replica._engine.close()
        with pytest.raises(RuntimeError, match="engine does not answer"):
            replica.check_health()
        return got, want

    replica = None
    got, want = asyncio.run(both())
    assert [response.status_code for response in got] == [200, 422, 200, 404, 200]
    for ours, theirs in zip(got, want, strict=True):
        assert ours.status_code == theirs.status_code
        assert set(ours.headers) == set(theirs.headers) - {"x-request-id"}
        assert {name for name in ours.headers if ours.headers[name] != theirs.headers[name]} <= OWN
        assert ours.json() == theirs.json()


def test_arguments_are_checked():
    given = Arguments.model_validate({"bundle": "b", "replicas": "2", "cpus": "1"})
    assert (given.replicas, given.precision, given.allow_drift) == (2, None, False)
    with pytest.raises(ValidationError, match="precison"):
        Arguments.model_validate({"bundle": "b", "precison": "int8"})


def test_a_list_of_keys_without_a_key_is_refused(bundle_dir, monkeypatch):
    """Row C6 of the faults found: no key was asked for."""
    monkeypatch.setenv("POTSTILL_API_KEYS", ",, ,")
    with pytest.raises(UsageError, match="POTSTILL_API_KEYS has no key"):
        asyncio.run(Replica.__new__(Replica).__init__(Arguments(bundle=bundle_dir)))


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray.serve", None)
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'potstill\[ray\]'"):
        app(Arguments(bundle="b"))
