"""Engines at work, and requests to them."""

import asyncio
import time
from contextlib import asynccontextmanager

import pytest

from potstill.serve.batching import Engine, EngineSettings
from potstill.serve.http_errors import RequestError
from potstill.serve.limits import Limits

TEXTS = ["a good film", "the book was not very good", "bad", "it is a very very warm film, is it", "was it the film ?"]


class Counts:
    def __init__(self):
        self.outcomes, self.stages, self.batches, self.shadows = [], [], [], []

    def batch(self, model, *, rows, tokens, padded_tokens, seconds):
        assert padded_tokens >= tokens >= rows
        assert seconds > 0
        self.batches.append(rows)

    def stage(self, model, name, seconds):
        self.stages.append(name)

    def outcome(self, model, name):
        self.outcomes.append(name)

    def shadow(self, model, shadow, *, agreed):
        self.shadows.append((model, shadow, agreed))


@asynccontextmanager
async def running(models, *, observer=None, **settings):
    """Give an engine that is at work."""
    models = models if isinstance(models, dict) else {"m": models}
    limits = settings.pop("limits", Limits(wait_ms=60_000))
    settings.setdefault("runners", 1)
    engine = Engine(models, settings=EngineSettings(limits=limits, **settings), observer=observer or Counts())
    engine.warm_up()
    engine.start(asyncio.get_running_loop())
    try:
        yield engine
    finally:
        for encoder in models.values():
            if hasattr(encoder.session, "gate"):
                encoder.session.gate.set()
        assert await engine.close()


def ask(engine, encoder, texts, *, model="m", **about):
    return engine.answer(model, lambda: encoder.prepare(texts), characters=list(map(len, texts)), **about)


async def refused(status, awaitable):
    with pytest.raises(RequestError) as caught:
        await awaitable
    assert caught.value.status == status
    return caught.value


async def until(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.002)


async def occupy(engine, encoder):
    """Begin a request and hold it in its run, alone."""
    encoder.session.hold()
    held = asyncio.ensure_future(ask(engine, encoder, ["good"]))
    await until(lambda: engine.stats("m").running_rows == 1)
    return held


def start(engine, encoder, requests):
    return [asyncio.ensure_future(ask(engine, encoder, texts)) for texts in requests]
