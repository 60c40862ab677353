"""The application in front of the real engine."""

import asyncio
import json

import pytest
from prometheus_client.parser import text_string_to_metric_families

from potstill.serve.batching import Engine, EngineSettings
from potstill.serve.http import create_app
from potstill.serve.limits import Limits

LIMITS = Limits(inputs=8)
TEXTS = ["a good film", "bad", "", "the book was not very good , it was bad", "very " * 60, "good"]


async def ask(app, path, content=None, *, headers=()):
    """Send one request; return its status, headers and body."""
    sent, body = [], b"" if content is None else json.dumps(content).encode()

    async def receive():
        return {"type": "http.request", "body": body}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET" if content is None else "POST",
        "path": path,
        "headers": [(b"content-type", b"application/json"), *headers],
        "state": {"received_at": asyncio.get_running_loop().time()},
    }
    await app(scope, receive, send)
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]


@pytest.fixture(scope="module")
def with_engine(encoder, task_encoder):
    """Give a function that runs `use(app, engine)` beside a started engine."""
    models = {"tiny": encoder, "qa": task_encoder("qa"), "vector": task_encoder("vector")}

    def run(use, **settings):
        async def main():
            engine = Engine(models, settings=EngineSettings(threads=1, limits=LIMITS, **settings))
            app = create_app(engine, limits=LIMITS)
            await asyncio.to_thread(engine.warm_up)
            engine.start(asyncio.get_running_loop())
            try:
                return await use(app, engine)
            finally:
                await engine.close()

        return asyncio.run(main())

    return run


def test_concurrent_requests_get_what_the_encoder_says(with_engine, encoder):
    bodies = [{"inputs": text} for text in TEXTS] + [{"inputs": TEXTS}]

    async def use(app, engine):
        return await asyncio.gather(*(ask(app, "/predict", body) for body in bodies * 2))

    for body, (status, headers, content) in zip(bodies * 2, with_engine(use), strict=True):
        assert status == 200, content
        want = encoder.predict(body["inputs"])
        got = json.loads(content)
        flat_got = got if isinstance(got[0], list) else [got]
        flat_want = want if isinstance(want[0], list) else [want]
        for one, other in zip(flat_got, flat_want, strict=True):
            assert [score["label"] for score in one] == [score["label"] for score in other]
            assert [score["score"] for score in one] == pytest.approx([score["score"] for score in other], abs=1e-6)
        assert int(headers[b"x-tokens"]) >= 2
        assert float(headers[b"x-inference-time-ms"]) > 0


def test_work_that_asks_nothing_of_the_model_is_answered(with_engine):
    async def use(app, engine):
        return await ask(app, "/tokenize", {"inputs": ["good", "a film"]})

    status, headers, content = with_engine(use)
    assert (status, headers[b"x-tokens"]) == (200, b"0")
    assert [len(answer["tokens"]) for answer in json.loads(content)] == [3, 4]


def test_other_tasks_and_names(with_engine, task_encoder):
    item = {"question": "was it good", "context": "the book was very good"}

    async def use(app, engine):
        return await ask(app, "/models/qa/predict", {"inputs": item}), await ask(app, "/embed", {"inputs": "good"})

    (status, _, answer), (also, _, vector) = with_engine(use)
    assert (status, also) == (200, 200)
    assert json.loads(answer)["answer"] == task_encoder("qa").predict((item["question"], item["context"]))["answer"]
    assert json.loads(vector) == pytest.approx(task_encoder("vector").predict("good"), abs=1e-6)


def test_metrics_count_what_the_engine_reports(with_engine):
    async def use(app, engine):
        for _ in range(3):
            await ask(app, "/predict", {"inputs": "good"})
        await asyncio.sleep(0.2)  # a run is counted after its answers are out
        return (await ask(app, "/metrics"))[2].decode()

    found = {family.name: family for family in text_string_to_metric_families(with_engine(use))}
    counts = {
        (sample.name, sample.labels.get("stage")): sample.value
        for family in ("potstill_stage_seconds", "potstill_batch_rows")
        for sample in found[family].samples
        if sample.labels["model"] == "tiny"
    }
    assert counts["potstill_batch_rows_count", None] == 3
    assert counts["potstill_stage_seconds_count", "infer"] == 3
    outcomes = {
        sample.labels["outcome"]: sample.value
        for sample in found["potstill_outcomes"].samples
        if sample.labels["model"] == "tiny" and sample.name.endswith("total")
    }
    assert outcomes["answered"] == 3


def test_an_end_is_told_and_refuses(with_engine):
    async def use(app, engine):
        before = (await ask(app, "/health/ready"))[0]
        engine.drain()
        return (
            before,
            (await ask(app, "/health/ready"))[0],
            (await ask(app, "/health/live"))[0],
            (await ask(app, "/predict", {"inputs": "good"})),
        )

    before, ready, live, (status, headers, content) = with_engine(use)
    assert (before, ready, live, status) == (200, 503, 200, 503)
    assert json.loads(content)["error_type"] == "unavailable"
    assert int(headers[b"retry-after"]) >= 1


def test_info_has_the_plan(with_engine):
    async def use(app, engine):
        return json.loads((await ask(app, "/info"))[2])

    info = with_engine(use)
    assert info["engine"]["runners"] >= 1
    assert set(info["engine"]["models"]) == {"tiny", "qa", "vector"}


def test_a_deadline_that_has_passed_is_a_504(with_engine):
    async def use(app, engine):
        loop = asyncio.get_running_loop()
        scope_time, loop_time = loop.time() - 1.0, loop.time
        assert scope_time < loop_time()
        sent = []

        async def receive():
            return {"type": "http.request", "body": b'{"inputs": "good"}'}

        async def send(message):
            sent.append(message)

        headers = [(b"content-type", b"application/json"), (b"x-request-timeout-ms", b"500")]
        await app(
            {
                "type": "http",
                "method": "POST",
                "path": "/predict",
                "headers": headers,
                "state": {"received_at": scope_time},
            },
            receive,
            send,
        )
        return sent[0]["status"], json.loads(sent[1]["body"])["error_type"]

    assert with_engine(use) == (504, "timeout")
