import asyncio
import random
import threading
import time

import numpy as np
import pytest

from potstill.bundle import MODEL_FILES, ModelRecord
from potstill.errors import UsageError
from potstill.machine import available_cores
from potstill.serve import Encoder
from potstill.serve.batching import Engine, EngineSettings
from potstill.serve.http_errors import invalid
from potstill.serve.limits import Limits
from potstill.serve.tasks.features import Features
from tests.serve.batching.engines import TEXTS, Counts, ask, occupy, refused, running, scripted, start, until


@pytest.mark.parametrize(("runners", "text_threads"), [(1, 1), (1, 2), (2, 1), (3, 2)])
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
            assert [score["score"] for score in mine] == pytest.approx([score["score"] for score in other], abs=1e-6)
        assert answered.timings.tokens == int(encoder.tokenizer.lengths(texts).sum())


def test_timings_add_up(slow):
    slow.session.seconds = 0.3

    async def main():
        async with running(slow) as engine:
            first = asyncio.ensure_future(ask(engine, slow, TEXTS[:1]))
            await until(lambda: engine.stats("m").running_rows == 1)
            began = time.monotonic()
            second = await ask(engine, slow, TEXTS[1:2])
            return await first, second, time.monotonic() - began

    first, second, whole = asyncio.run(main())
    assert first.timings.infer_s >= 0.3
    spent = second.timings
    assert spent.queue_s > 0.1
    assert 0.6 * whole < spent.tokenise_s + spent.queue_s + spent.infer_s <= whole


def test_texts_wait_for_the_model_and_then_run_together(slow):
    counts = Counts()

    async def main():
        async with running(slow, observer=counts) as engine:
            engine.queue.policies["m"].budget = 1000  # as if batches had been measured to pay
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
                engine.queue.policies["m"].budget = 1000
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


def test_refusals_of_prepare_pass(encoder):
    def prepare():
        raise invalid("no such word")

    def unusable():
        raise UsageError("no such thing")

    async def main():
        async with running(encoder) as engine:
            assert str(await refused(422, engine.answer("m", prepare, characters=[4]))) == "no such word"
            assert str(await refused(422, engine.answer("m", unusable, characters=[4]))) == "no such thing"

    asyncio.run(main())


def test_a_request_without_rows_is_answered(encoder):
    async def main():
        async with running(encoder) as engine:
            prepared = Features(rows=[], decode=lambda _: ["tokens"])
            return await engine.answer("m", lambda: prepared, characters=[])

    answered = asyncio.run(main())
    assert answered.answers == ["tokens"]
    assert answered.timings.tokens == 0


def test_a_long_text_in_tokenising_does_not_hold_up_short_ones(encoder):
    release = threading.Event()

    def long():
        assert release.wait(10)
        return encoder.prepare(["good"])

    async def main():
        async with running(encoder) as engine:
            waiting = asyncio.ensure_future(engine.answer("m", long, characters=[100_000]))
            for _ in range(5):
                assert (await asyncio.wait_for(ask(engine, encoder, ["good"]), 5)).answers
            release.set()
            assert (await waiting).answers

    asyncio.run(main())


def test_answers_that_take_long_to_decode_do_not_wait_for_a_long_text_in_tokenising(int8_encoder):
    release = threading.Event()

    def long():
        assert release.wait(30)
        return int8_encoder.prepare(["good"])

    def slowly_decoded():
        features = int8_encoder.prepare(["good"])

        def decode(outputs):
            time.sleep(0.02)
            return features.decode(outputs)

        return features._replace(decode=decode)

    async def main():
        async with running(int8_encoder, text_threads=1) as engine:
            waiting = asyncio.ensure_future(engine.answer("m", long, characters=[100_000]))
            # Each runs alone, so others wait while one is decoded; the first tells that decoding is slow.
            for _ in range(2):
                short = [engine.answer("m", slowly_decoded, characters=[4]) for _ in range(8)]
                assert all(answered.answers for answered in await asyncio.wait_for(asyncio.gather(*short), 10))
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
    for name in ("runners", "threads", "text_threads"):
        with pytest.raises(UsageError, match=f"{name} is 0; an engine needs at least 1"):
            EngineSettings(**{name: 0})
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
    assert Engine({"m": encoder}, settings=EngineSettings()).warm_up().runners == available_cores()
    assert plan["wait_ms"]["burst"] >= plan["wait_ms"]["standing"] > 0
    assert plan["memory_bytes"] > 1_000_000
    model = plan["models"]["m"]
    assert model["milliseconds"][0]["rows"] == 1
    assert model["largest_run"][0] * model["largest_run"][1] <= 1024
    lengths = {found["tokens"] for found in model["milliseconds"]}
    assert lengths == {8, 32}  # the model reads no more


def test_the_bundle_says_whether_padding_counts(encoder, resealed):
    record = ModelRecord(file=MODEL_FILES["fp32"], unpadded=True)
    lean = Encoder(resealed(models={"fp32": record}))
    for model, unpadded in ((encoder, False), (lean, True)):
        engine = Engine({"m": model}, settings=EngineSettings(runners=1))
        plan = engine.warm_up().models["m"]
        policy = engine.queue.policies["m"]
        assert plan.cost.unpadded is policy.cost.unpadded is unpadded
        assert policy.padded == plan.padded_tokens >= plan.batch_tokens


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

        return Features(rows=prepared.rows, decode=read, keep=keep)

    async def main():
        async with running(encoder) as engine:
            return (await engine.answer("m", prepare, characters=[12])).answers

    assert asyncio.run(main()) == [(0, (3,)), (1, (3,))]
    assert sorted(kept) == [0, 1]


def test_what_a_request_costs_is_guessed_from_each_of_its_texts(encoder, task_bundle):
    """Texts are cut at what the model reads, and contexts of questions are read in as many windows as there may be."""
    qa = Encoder(task_bundle("qa"))
    engine = Engine({"m": encoder, "qa": qa}, settings=EngineSettings(limits=Limits(windows=20)))
    engine.warm_up()
    short, full = (engine.queue.expected_s("m", tokens) for tokens in (2 + 40 // 4, encoder.manifest.max_length))
    assert engine.expected_cost("m", [40]) == (1, pytest.approx(short))
    assert engine.expected_cost("m", [40, 30_000, 30_000]) == (3, pytest.approx(short + 2 * full))
    full = engine.queue.expected_s("qa", qa.manifest.max_length)
    assert engine.expected_cost("qa", [30_000]) == (20, pytest.approx(20 * full))
    assert engine.expected_cost("qa", [4 * qa.manifest.max_length]) == (2, pytest.approx(2 * full))
