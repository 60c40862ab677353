"""What it takes to serve another task: one module in `potstill/serve/tasks` and one entry in `potstill/tasks.py`."""

import asyncio
import sys
from dataclasses import replace
from types import ModuleType

import pytest
from pydantic import StrictStr
from starlette.testclient import TestClient

from potstill import tasks
from potstill.serve import Encoder
from potstill.serve.batching import Engine, EngineSettings
from potstill.serve.http import create_app
from potstill.serve.limits import Limits
from potstill.serve.tasks import Features, ServedTask, served_task
from potstill.serve.tasks.inputs import Count, RequestModel, read_texts


class LoudnessParameters(RequestModel):
    """Of loudness."""

    times: Count = 1


def preprocess(model, items, parameters, _):
    output = model.outputs[0]

    def decode(outputs):
        return [{"loudness": parameters.times * float(own[output].max())} for own in outputs]

    return Features(rows=model.tokenizer.rows(read_texts(items)), decode=decode)


@pytest.fixture
def loud_dir(monkeypatch, resealed):
    """A bundle of a task that was added: the largest logit of a text."""
    module = ModuleType("potstill.serve.tasks.loudness")
    module.TASK = ServedTask(
        item=StrictStr,
        parameters=LoudnessParameters,
        answer=dict[str, float],
        example="a great movie",
        preprocess=preprocess,
        one_output_per_text=True,
    )
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(tasks.TASKS, "loudness", replace(tasks.TEXT_CLASSIFICATION, name="loudness"))
    return resealed(task="loudness")


def test_every_task_has_its_module():
    for name in tasks.TASKS:
        assert isinstance(served_task(name), ServedTask)


def test_a_task_that_is_added_answers_from_python(loud_dir, encoder):
    added = Encoder(loud_dir, threads=1)
    expected = [float(row.max()) for row in encoder.logits(["a good film", "bad"])]
    assert [one["loudness"] for one in added.predict(["a good film", "bad"])] == pytest.approx(expected, abs=1e-6)
    assert added.predict("bad", parameters={"times": 2})["loudness"] == pytest.approx(2 * expected[1], abs=1e-6)


def test_a_task_that_is_added_is_served_and_documented(loud_dir):
    added = Encoder(loud_dir, threads=1)

    async def made():
        engine = Engine({"loud": added}, settings=EngineSettings(runners=1))
        engine.warm_up()
        return engine

    engine = asyncio.run(made())
    app = create_app(engine, limits=Limits())

    async def started(scope, receive, send):
        if not engine.is_ready() and engine.is_alive():
            engine.start(asyncio.get_running_loop())
        await app(scope, receive, send)

    with TestClient(started) as client:
        found = client.post("/predict", json={"inputs": ["bad", "good"], "parameters": {"times": 2}})
        assert found.status_code == 200, found.text
        assert [one["loudness"] for one in found.json()] == pytest.approx(
            [2 * one["loudness"] for one in added.predict(["bad", "good"])], abs=1e-6
        )
        wrong = client.post("/predict", json={"inputs": "bad", "parameters": {"top_k": 2}})
        assert wrong.status_code == 422
        assert "loudness" in str(client.get("/openapi.json").json())
        assert client.get("/v2/models/loud").status_code == 200
        client.portal.call(engine.close)
