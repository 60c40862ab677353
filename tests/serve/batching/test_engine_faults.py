"""Overload, deadlines, clients that go, failures, hangs, and the end."""

import asyncio
import random
import threading
import time

import pytest

from potstill.serve import Encoder
from potstill.serve.http_errors import RequestError
from potstill.serve.limits import Limits
from potstill.serve.tasks.features import Features
from tests.serve.batching.engines import TEXTS, Counts, ask, occupy, refused, running, scripted, start, until


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
            engine.queue.policies["m"].budget = 1000
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


def test_a_deadline_far_away_holds_without_a_timer_of_its_own(slow, monkeypatch):
    monkeypatch.setattr("potstill.serve.batching.engine._TIMED_S", 0.0)
    counts = Counts()

    async def main():
        async with running(slow, observer=counts) as engine:
            slow.session.hold()
            began = time.monotonic()
            await refused(504, ask(engine, slow, ["good"], timeout_s=0.2))
            return time.monotonic() - began

    assert 0.2 <= asyncio.run(main()) < 2.0  # at the next look, each half second
    assert counts.outcomes == ["expired"]


def test_a_deadline_that_is_near_does_not_wait_for_the_next_look(slow, monkeypatch):
    monkeypatch.setattr("potstill.serve.batching.engine._WATCH_S", 60.0)

    async def main():
        async with running(slow) as engine:
            slow.session.hold()
            await asyncio.wait_for(refused(504, ask(engine, slow, ["good"], timeout_s=0.1)), timeout=10)

    asyncio.run(main())


def test_a_run_that_nobody_waited_for_is_counted_when_the_engine_ends(slow, monkeypatch):
    monkeypatch.setattr("potstill.serve.batching.engine._WATCH_S", 60.0)
    counts, run = Counts(), slow.session.run
    slow.session.deaf = True
    monkeypatch.setattr(slow.session, "run", lambda feeds, stop: run(feeds))  # it was over when it was told to stop

    async def main():
        async with running(slow, observer=counts) as engine:
            gone = await occupy(engine, slow)
            gone.cancel()
            slow.session.gate.set()
            await until(lambda: engine.stats("m").running_rows == 0)
            assert counts.batches == []

    asyncio.run(main())
    assert counts.batches == [1]


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
                waiting.append(asyncio.ensure_future(ask(engine, slow, ["good"])))
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
            slow.session.hold()
            first = asyncio.ensure_future(ask(engine, slow, ["good"]))
            await until(lambda: engine.stats("m").running_rows == 1)
            await refused(429, ask(engine, slow, ["good"], timeout_s=0.01))
            assert not first.done()
            slow.session.gate.set()
            await first

    asyncio.run(main())


def test_a_failing_request_does_not_take_its_company_along(slow, caplog):
    poison = slow.tokenizer.rows(["bad"])[0]["input_ids"][1]

    def breaks(feeds):
        return MemoryError("private text") if (feeds["input_ids"] == poison).any() else None

    counts = Counts()

    async def main():
        async with running(slow, observer=counts) as engine:
            engine.queue.policies["m"].budget = 1000
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
        return Features(rows=encoder.prepare(["good"]).rows, decode=broken)

    async def main():
        async with running(encoder) as engine:
            await refused(500, engine.answer("m", prepare, characters=[4]))
            assert (await ask(engine, encoder, ["good"])).answers

    asyncio.run(main())
    assert "KeyError" in caplog.text
    assert "private" not in caplog.text


def test_a_tokenizer_that_panics_costs_one_request_at_once(panicking_dir, caplog):
    """Row C7 of the faults found: pyo3's PanicException is no Exception, and the request hung to its deadline."""
    slow = scripted(Encoder(panicking_dir, threads=1))
    panics = "a" * 40 + "!"

    async def main():
        async with running(slow, runners=1, text_threads=1) as engine:
            engine.queue.policies["m"].budget = 1000
            first = await occupy(engine, slow)
            good = start(engine, slow, [["a good film"], ["bad"]])
            began = time.monotonic()
            error = await refused(500, ask(engine, slow, ["good", panics]))
            assert time.monotonic() - began < 10  # the pattern's own limit of steps takes half a second
            assert error.error_type == "backend"
            slow.session.gate.set()
            assert [(await one).answers for one in good] == [slow.predict(["a good film"]), slow.predict(["bad"])]
            await first
            # Both threads live, also after a panic outside of `prepare`, as in POST /tokenize.
            for _ in range(3):
                await refused(500, engine.answer("m", lambda: slow.tokenizer.rows([panics]), characters=[41]))
            assert (await ask(engine, slow, ["good"])).answers == slow.predict(["good"])
            assert engine.is_alive()
            assert engine.is_idle()

    asyncio.run(main())
    assert "had died" not in caplog.text
    assert "aaaa" not in caplog.text


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
    monkeypatch.setattr("potstill.serve.batching.engine._WATCH_S", 0.02)
    monkeypatch.setattr("potstill.serve.batching.engine._HANGS", 1.0)

    async def main():
        async with running(slow, hang_s=0.05, grace_s=5.0) as engine:
            slow.session.hold()
            await refused(503, ask(engine, slow, ["good"]))
            slow.session.gate.set()
            assert engine.is_alive()
            assert (await ask(engine, slow, ["good"])).answers

    asyncio.run(main())


def test_a_run_that_cannot_be_stopped_makes_the_engine_dead(slow, monkeypatch, caplog):
    monkeypatch.setattr("potstill.serve.batching.engine._WATCH_S", 0.02)
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


def test_a_thread_that_hangs_outside_of_the_model_makes_the_engine_dead(encoder, monkeypatch, caplog):
    monkeypatch.setattr("potstill.serve.batching.engine._WATCH_S", 0.02)
    gate = threading.Event()

    def prepare():
        gate.wait(10)
        return encoder.prepare(["good"])

    async def main():
        async with running(encoder, grace_s=0.1, limits=Limits(request_seconds=0.1)) as engine:
            try:
                await refused(504, engine.answer("m", prepare, characters=[4]))
                await until(lambda: not engine.is_alive())
            finally:
                gate.set()

    asyncio.run(main())
    assert "a thread has been at one thing" in caplog.text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_is_started_again(encoder, monkeypatch, caplog):
    """Even the line in the log fails, which is the only way to end a thread."""
    monkeypatch.setattr("potstill.serve.batching.engine._WATCH_S", 0.02)

    def broken():
        raise ValueError

    def end_the_thread(*_):
        raise SystemExit

    async def main():
        async with running(encoder) as engine:
            with monkeypatch.context() as patched:
                patched.setattr("potstill.serve.batching.workers.log_failure", end_the_thread)
                await refused(504, engine.answer("m", broken, characters=[4], timeout_s=0.1))
            await until(lambda: "had died" in caplog.text)
            assert engine.is_alive()
            assert (await ask(engine, encoder, ["good"])).answers

    asyncio.run(main())


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
            engine.queue.policies["m"].budget = 200
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
