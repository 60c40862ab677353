import asyncio
import random
import threading
import time
from contextlib import asynccontextmanager

import numpy as np
import pytest

from potstill.errors import UsageError
from potstill.serve.answering.prepared import Prepared
from potstill.serve.engine import Engine, EngineSettings
from potstill.serve.limits import Limits
from potstill.serve.refusals import RequestError, invalid
from tests.serve.engine.scripted import scripted

TEXTS = ["a good film", "the book was not very good", "bad", "it is a very very warm film, is it", "was it the film ?"]


@pytest.fixture
def slow(encoder):
    return scripted(encoder)


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
    characters = sum(map(len, texts))
    return engine.answer(model, lambda: encoder.prepare(texts), characters=characters, **about)


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


@pytest.mark.parametrize(("runners", "text_threads"), [(1, 1), (1, 0), (2, 1), (3, 2)])
def test_answers_are_those_of_the_encoder_in_any_company(encoder, runners, text_threads):
    draw = random.Random(runners)
    requests = [[draw.choice(TEXTS) for _ in range(draw.choice([1, 1, 1, 7, 30]))] for _ in range(60)]

    async def main():
        async with running(encoder, runners=runners, text_threads=text_threads) as engine:
            found = await asyncio.gather(*[ask(engine, encoder, texts) for texts in requests])
            assert engine.is_idle()
            stats = engine.stats("m")
            assert (stats.queued_rows, stats.queued_tokens, stats.running_rows) == (0, 0, 0)
            assert stats.wait_s == pytest.approx(0, abs=1e-9)
            return found

    for texts, answered in zip(requests, asyncio.run(main()), strict=True):
        expected = encoder.predict(texts)
        for mine, other in zip(answered.answers, expected, strict=True):
            assert [score["label"] for score in mine] == [score["label"] for score in other]
            assert [score["score"] for score in mine] == pytest.approx(
                [score["score"] for score in other], abs=1e-6
            )  # fmt: skip
        assert answered.timings.tokens == int(encoder.tokenizer.lengths(texts).sum())


def test_timings_add_up(slow):
    slow.session.seconds = 0.05

    async def main():
        async with running(slow) as engine:
            first = asyncio.ensure_future(ask(engine, slow, TEXTS[:1]))
            await asyncio.sleep(0.01)
            began = time.monotonic()
            second = await ask(engine, slow, TEXTS[1:2])
            return await first, second, time.monotonic() - began

    first, second, whole = asyncio.run(main())
    assert first.timings.infer_s == pytest.approx(0.05, abs=0.04)
    assert second.timings.queue_s > 0.02
    spent = second.timings
    assert 0 <= whole - (spent.tokenise_s + spent.queue_s + spent.infer_s) < 0.05


def test_texts_wait_for_the_model_and_then_run_together(slow):
    counts = Counts()

    async def main():
        async with running(slow, observer=counts) as engine:
            engine._queue._policies["m"].budget = 1000  # as if batches had been measured to pay
            waiting = [await occupy(engine, slow), *start(engine, slow, [["good film"]] * 8)]
            await until(lambda: engine.stats("m").queued_rows == 8)
            assert engine.stats("m").running_rows == 1
            slow.session.gate.set()
            await asyncio.gather(*waiting)

    asyncio.run(main())
    assert counts.batches[0] == 1
    assert sum(counts.batches) == 9
    assert len(counts.batches) < 9
    assert counts.outcomes == ["answered"] * 9
    assert {name: counts.stages.count(name) for name in set(counts.stages)} == dict.fromkeys(
        ("tokenise", "queue", "infer", "read"), 9
    )


def test_what_depends_on_its_company_runs_alone_unless_drift_is_allowed(int8_encoder):
    texts = TEXTS * 4

    async def shapes(**settings):
        own = scripted(int8_encoder)
        async with running(own, **settings) as engine:
            if settings.get("allow_drift"):
                engine._queue._policies["m"].budget = 1000
            own.session.runs.clear()
            found = (await ask(engine, own, texts)).answers
            return {shape[0] for shape in own.session.runs}, found, engine.plan

    rows, found, plan = asyncio.run(shapes())
    assert rows == {1}
    assert found == int8_encoder.predict(texts)
    assert plan.models["m"].batch_tokens == 1
    assert "alone" in plan.models["m"].why
    rows, _, plan = asyncio.run(shapes(allow_drift=True))
    assert max(rows) > 1


def test_a_client_that_has_gone_costs_nothing(slow):
    counts = Counts()

    async def main():
        async with running(slow, observer=counts) as engine:
            slow.session.runs.clear()
            running_one = await occupy(engine, slow)
            waiting = asyncio.ensure_future(ask(engine, slow, ["bad film"] * 5))
            await until(lambda: engine.stats("m").queued_rows == 5)
            waiting.cancel()
            running_one.cancel()
            await asyncio.gather(waiting, running_one, return_exceptions=True)
            # The run ends by itself: the gate is still shut.
            await until(lambda: engine.stats("m").running_rows == 0)
            assert engine.is_idle()
            slow.session.gate.set()
            assert (await ask(engine, slow, ["good"])).answers
            return list(slow.session.runs)

    shapes = asyncio.run(main())
    assert len(shapes) == 2
    assert counts.outcomes == ["gone", "gone", "answered"]


def test_a_run_goes_on_while_one_request_of_it_is_wanted(slow):
    async def main():
        async with running(slow) as engine:
            engine._queue._policies["m"].budget = 1000
            first = await occupy(engine, slow)
            gone = asyncio.ensure_future(ask(engine, slow, ["good film"]))
            kept = asyncio.ensure_future(ask(engine, slow, ["good film"]))
            await until(lambda: engine.stats("m").queued_rows == 2)
            slow.session.entered.acquire()
            slow.session.gate.set()
            await first
            gone.cancel()
            return await kept

    assert asyncio.run(main()).answers == slow.predict(["good film"])


def test_a_deadline_holds_in_the_queue_and_in_the_run(slow):
    counts = Counts()

    async def main():
        async with running(slow, observer=counts) as engine:
            slow.session.runs.clear()
            slow.session.hold()
            began = time.monotonic()
            in_run = asyncio.ensure_future(ask(engine, slow, ["good"], timeout_s=0.3))
            await until(lambda: engine.stats("m").running_rows == 1)
            # Nothing of the plan's prediction stands against it: that is another refusal.
            in_queue = asyncio.ensure_future(ask(engine, slow, ["bad"], timeout_s=0.1))
            await refused(504, in_queue)
            await refused(504, in_run)
            assert time.monotonic() - began < 2
            await until(lambda: engine.stats("m").running_rows == 0)
            slow.session.gate.set()
            await asyncio.sleep(0.05)
            assert len(slow.session.runs) == 1
            error = await refused(504, ask(engine, slow, ["bad"], timeout_s=1.0, received_at=time.monotonic() - 2))
            assert "1000 ms" in str(error)
            assert engine.is_alive()
            assert (await ask(engine, slow, ["bad"])).answers

    asyncio.run(main())
    assert counts.outcomes == ["expired", "expired", "expired", "answered"]


def test_too_much_is_refused_at_once_with_a_time_to_come_back(slow):
    counts = Counts()

    async def main():
        async with running(slow, observer=counts, limits=Limits()) as engine:
            waiting, error = [await occupy(engine, slow)], None
            for _ in range(5000):
                try:
                    engine.refuse_if_full("m")
                except RequestError as refusal:
                    error = refusal
                    break
                waiting.append(asyncio.ensure_future(ask(engine, slow, TEXTS)))
                await asyncio.sleep(0)
            assert error is not None
            assert error.status == 429
            assert int(error.headers["Retry-After"]) >= 1
            assert int(error.headers["Retry-After-Ms"]) >= 1
            await refused(429, ask(engine, slow, ["good"]))
            slow.session.gate.set()
            # Who was let in to send a body may still be refused once it is known what it costs.
            for found in await asyncio.gather(*waiting, return_exceptions=True):
                assert found.status == 429 if isinstance(found, RequestError) else found.answers
            engine.refuse_if_full("m")

    asyncio.run(main())
    assert counts.outcomes.count("overloaded") >= 2


def test_what_cannot_be_in_time_is_refused_before_it_waits(slow):
    slow.session.seconds = 0.1

    async def main():
        async with running(slow) as engine:
            first = asyncio.ensure_future(ask(engine, slow, ["good"]))
            await until(lambda: engine.stats("m").running_rows == 1)
            began = time.monotonic()
            await refused(429, ask(engine, slow, ["good"], timeout_s=0.01))
            assert time.monotonic() - began < 0.01
            await first

    asyncio.run(main())


def test_a_failing_request_does_not_take_its_company_along(slow, caplog):
    poison = slow.tokenizer.rows(["bad"])[0]["input_ids"][1]

    def breaks(feeds):
        return MemoryError("private text") if (feeds["input_ids"] == poison).any() else None

    counts = Counts()

    async def main():
        async with running(slow, observer=counts) as engine:
            engine._queue._policies["m"].budget = 1000
            slow.session.breaks = breaks
            first = await occupy(engine, slow)
            good = [asyncio.ensure_future(ask(engine, slow, ["a film"])) for _ in range(3)]
            guilty = asyncio.ensure_future(ask(engine, slow, ["bad film"]))
            await until(lambda: engine.stats("m").queued_rows == 4)
            slow.session.gate.set()
            error = await refused(500, guilty)
            assert error.error_type == "backend"
            assert [(await one).answers for one in good] == [slow.predict(["a film"])] * 3
            await first
            assert engine.is_alive()
            assert engine.is_idle()
            assert engine.stats("m").wait_s == pytest.approx(0, abs=1e-9)

    asyncio.run(main())
    assert sorted(counts.outcomes) == ["answered"] * 4 + ["failed"]
    assert "MemoryError" in caplog.text
    assert "private" not in caplog.text


@pytest.mark.parametrize("where", ["prepare", "read"])
def test_an_error_outside_of_the_model_costs_one_request(encoder, caplog, where):
    def broken(*_):
        raise KeyError("private text")

    def prepare():
        if where == "prepare":
            broken()
        return Prepared(rows=encoder.prepare(["good"]).rows, read=broken)

    async def main():
        async with running(encoder) as engine:
            await refused(500, engine.answer("m", prepare, characters=4))
            assert (await ask(engine, encoder, ["good"])).answers

    asyncio.run(main())
    assert "KeyError" in caplog.text
    assert "private" not in caplog.text


def test_refusals_of_prepare_pass(encoder):
    def prepare():
        raise invalid("no such word")

    def unusable():
        raise UsageError("no such thing")

    async def main():
        async with running(encoder) as engine:
            assert str(await refused(422, engine.answer("m", prepare, characters=4))) == "no such word"
            assert str(await refused(422, engine.answer("m", unusable, characters=4))) == "no such thing"

    asyncio.run(main())


def test_a_request_without_rows_is_answered(encoder):
    async def main():
        async with running(encoder) as engine:
            prepared = Prepared(rows=[], read=lambda _: ["tokens"])
            return await engine.answer("m", lambda: prepared, characters=0)

    answered = asyncio.run(main())
    assert answered.answers == ["tokens"]
    assert answered.timings.tokens == 0


def test_draining_finishes_what_was_accepted_and_refuses_the_rest(slow):
    async def main():
        async with running(slow) as engine:
            assert engine.is_ready()
            accepted = [await occupy(engine, slow), *start(engine, slow, [["good"]] * 2)]
            await until(lambda: engine.stats("m").queued_rows == 2)
            engine.drain()
            assert not engine.is_ready()
            assert engine.is_alive()
            error = await refused(503, ask(engine, slow, ["good"]))
            assert error.headers["Retry-After"] == "1"
            with pytest.raises(RequestError):
                engine.refuse_if_full("m")
            assert not engine.is_idle()
            slow.session.gate.set()
            assert len(await asyncio.gather(*accepted)) == 3
            assert engine.is_idle()

    asyncio.run(main())


def test_closing_answers_who_still_waits(slow):
    async def main():
        async with running(slow) as engine:
            waiting = [await occupy(engine, slow), *start(engine, slow, [["good"]] * 2)]
            await until(lambda: engine.stats("m").queued_rows == 2)
            assert await engine.close(timeout_s=5)
            for one in waiting:
                await refused(503, one)
            assert not engine.is_alive()

    asyncio.run(main())


def test_a_run_that_hangs_is_stopped_and_the_engine_goes_on(slow, monkeypatch):
    monkeypatch.setattr("potstill.serve.engine.engine._WATCH_S", 0.02)
    monkeypatch.setattr("potstill.serve.engine.engine._HANGS", 1.0)

    async def main():
        async with running(slow, hang_s=0.05, grace_s=5.0) as engine:
            slow.session.hold()
            await refused(503, ask(engine, slow, ["good"]))
            slow.session.gate.set()
            assert engine.is_alive()
            assert (await ask(engine, slow, ["good"])).answers

    asyncio.run(main())


def test_a_run_that_cannot_be_stopped_makes_the_engine_dead(slow, monkeypatch, caplog):
    monkeypatch.setattr("potstill.serve.engine.engine._WATCH_S", 0.02)
    slow.session.deaf = True

    async def main():
        async with running(slow, grace_s=0.1) as engine:
            slow.session.hold()
            await refused(504, ask(engine, slow, ["good"], timeout_s=0.05))
            waiting = asyncio.ensure_future(ask(engine, slow, ["good"]))
            await until(lambda: not engine.is_alive())
            assert not engine.is_ready()
            await refused(503, waiting)
            await refused(503, ask(engine, slow, ["good"]))
            with pytest.raises(RequestError):
                engine.refuse_if_full("m")

    asyncio.run(main())
    assert "the engine is dead" in caplog.text


def test_a_thread_that_dies_is_started_again(encoder, monkeypatch, caplog):
    monkeypatch.setattr("potstill.serve.engine.engine._WATCH_S", 0.02)

    async def main():
        async with running(encoder) as engine:
            worker = engine._crew._workers[0]
            dead = threading.Thread(target=lambda: None)
            dead.start()
            dead.join()
            alive, worker.thread = worker.thread, dead
            await until(lambda: worker.thread is not dead)
            assert engine.is_alive()
            assert (await ask(engine, encoder, ["good"])).answers
            assert alive.is_alive()

    asyncio.run(main())
    assert "had died" in caplog.text


def test_a_long_text_in_tokenising_does_not_hold_up_short_ones(encoder):
    release = threading.Event()

    def long():
        assert release.wait(10)
        return encoder.prepare(["good"])

    async def main():
        async with running(encoder) as engine:
            waiting = asyncio.ensure_future(engine.answer("m", long, characters=100_000))
            for _ in range(5):
                assert (await asyncio.wait_for(ask(engine, encoder, ["good"]), 5)).answers
            release.set()
            assert (await waiting).answers

    asyncio.run(main())


def test_the_shadow_answers_when_nothing_else_is_to_do(encoder, int8_encoder):
    counts = Counts()

    async def main():
        models = {"m": encoder, "twin": int8_encoder}
        async with running(models, observer=counts, shadow=("m", "twin")) as engine:
            for text in TEXTS:
                await ask(engine, encoder, [text, "bad"])
            await ask(engine, int8_encoder, ["good"], model="twin")
            await until(lambda: len(counts.shadows) == 10)

    asyncio.run(main())
    agreed = [
        mine[0]["label"] == other[0]["label"]
        for text in TEXTS
        for mine, other in zip(encoder.predict([text, "bad"]), int8_encoder.predict([text, "bad"]), strict=True)
    ]
    assert counts.shadows == [("m", "twin", one) for one in agreed]


def test_the_shadow_gives_way(encoder):
    twin = scripted(encoder)
    counts = Counts()

    async def main():
        async with running({"m": encoder, "twin": twin}, observer=counts, shadow=("m", "twin")) as engine:
            twin.session.hold()
            twin.session.runs.clear()
            await ask(engine, encoder, ["good"])
            await until(lambda: twin.session.runs)
            # The only runner is in the shadow's run, whose gate is shut.
            assert (await asyncio.wait_for(ask(engine, encoder, ["bad"]), 5)).answers
            twin.session.gate.set()
            await until(lambda: len(counts.shadows) == 2)

    asyncio.run(main())
    assert all(agreed for _, _, agreed in counts.shadows)


def test_settings_and_models_are_checked(encoder):
    with pytest.raises(UsageError, match="at least one model"):
        Engine({}, settings=EngineSettings())
    with pytest.raises(UsageError, match="names twin; there are m"):
        Engine({"m": encoder}, settings=EngineSettings(shadow=("m", "twin")))
    for wrong in ({"runners": 0}, {"threads": 0}, {"text_threads": -1}):
        with pytest.raises(UsageError, match="needs a runner"):
            EngineSettings(**wrong)
    with pytest.raises(UsageError, match="warmed up"):
        Engine({"m": encoder}, settings=EngineSettings()).start(None)


def test_nothing_is_taken_before_the_start(encoder):
    async def main():
        engine = Engine({"m": encoder}, settings=EngineSettings())
        engine.warm_up()
        assert not engine.is_ready()
        assert engine.is_alive()
        await refused(503, ask(engine, encoder, ["good"]))
        assert engine.stats("m").queued_rows == 0
        assert await engine.close()

    asyncio.run(main())


def test_the_plan_says_what_was_measured(encoder):
    engine = Engine({"m": encoder}, settings=EngineSettings(runners=2))
    plan = engine.warm_up().describe()
    assert engine.plan is not None
    assert plan["runners"] == 2
    assert plan["wait_ms"]["burst"] >= plan["wait_ms"]["standing"] > 0
    assert plan["memory_bytes"] > 1_000_000
    model = plan["models"]["m"]
    assert model["milliseconds"][0]["rows"] == 1
    assert model["largest_run"][0] * model["largest_run"][1] <= 1024
    lengths = {found["tokens"] for found in model["milliseconds"]}
    assert lengths == {8, 32}  # the model reads no more


def test_many_clients_that_come_and_go_leave_nothing_behind(slow):
    """Random requests, cancellations, deadlines and failures at once, with all kinds of threads."""
    draw = random.Random(5)
    poison = slow.tokenizer.rows(["?"])[0]["input_ids"][1]
    slow.session.breaks = lambda feeds: RuntimeError("x") if (feeds["input_ids"] == poison).any() else None
    seen = []

    async def client(engine):
        for _ in range(12):
            texts = [draw.choice(TEXTS) for _ in range(draw.choice([1, 1, 2, 20]))]
            task = asyncio.ensure_future(ask(engine, slow, texts, timeout_s=draw.choice([None, None, 0.02])))
            if draw.random() < 0.2:
                await asyncio.sleep(draw.random() * 0.01)
                task.cancel()
            try:
                answers = (await task).answers
                assert not any("?" in text for text in texts)
                assert [answer[0]["label"] for answer in answers] == [
                    answer[0]["label"] for answer in slow.predict(texts)
                ]
                seen.append(200)
            except asyncio.CancelledError:
                seen.append(0)
            except RequestError as error:
                seen.append(error.status if error.status != 500 or any("?" in text for text in texts) else -500)

    async def main():
        async with running(slow, runners=2, text_threads=1) as engine:
            engine._queue._policies["m"].budget = 200
            await asyncio.gather(*[client(engine) for _ in range(25)])
            await until(lambda: engine.stats("m").running_rows == 0)
            assert engine.is_idle()
            stats = engine.stats("m")
            assert stats.wait_s == pytest.approx(0, abs=1e-9)
            assert (await ask(engine, slow, ["good"])).answers
            assert engine.stats("m").queued_rows == 0

    asyncio.run(main())
    assert len(seen) == 300
    assert seen.count(200) > 50
    assert {200, 0, 500} <= set(seen) <= {200, 0, 429, 500, 504}


def test_outputs_are_cut_and_kept_as_asked(encoder):
    """What `read` gets is what `keep` returned for the row's own number."""
    kept = []

    def prepare():
        prepared = encoder.prepare(["good film", "bad"])

        def keep(index, outputs):
            kept.append(index)
            return {"logits": outputs["logits"].copy(), "index": np.float32(index)}

        def read(found):
            return [(int(one["index"]), one["logits"].shape) for one in found]

        return Prepared(rows=prepared.rows, read=read, keep=keep)

    async def main():
        async with running(encoder) as engine:
            return (await engine.answer("m", prepare, characters=12)).answers

    assert asyncio.run(main()) == [(0, (3,)), (1, (3,))]
    assert sorted(kept) == [0, 1]
