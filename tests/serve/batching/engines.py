"""Engines at work, requests to them, and encoders whose runs a test can hold, slow down, break and count."""

import asyncio
import copy
import threading
import time
from contextlib import asynccontextmanager

import pytest

from potstill.errors import CheckError
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


class ScriptedSession:
    """A session that passes a gate before each run; a stop opens it with an error, unless it is deaf."""

    def __init__(self, session):
        self._session = session
        self.inputs, self.outputs, self.threads = session.inputs, session.outputs, session.threads
        self.output_widths, self.model_file = session.output_widths, session.model_file
        self.sizes = session.sizes
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.runs = []
        self.seconds = 0.0
        self.deaf = False
        self.breaks = lambda feeds: None

    def run(self, feeds, stop=None):
        self.runs.append(feeds["input_ids"].shape)
        self.entered.release()
        while not self.gate.wait(0.002):
            if stop is not None and stop.is_set and not self.deaf:
                raise CheckError("stopped")
        time.sleep(self.seconds)
        error = self.breaks(feeds)
        if error is not None:
            raise error
        return self._session.run(feeds, stop)

    def hold(self):
        self.gate.clear()

    def wait_for_a_run(self):
        assert self.entered.acquire(timeout=10)


def scripted(encoder):
    own = copy.copy(encoder)
    own.session = ScriptedSession(encoder.session)
    return own
