"""Who waits for whom: short work beside long work, floods, and clients that are told apart."""

import asyncio
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.serve import Encoder
from potstill.serve.http_errors import RequestError
from potstill.serve.limits import Limits
from tests.serve.batching.engines import ask, occupy, running, scripted, until
from tests.serve.batching.simulation import DISTILBERT, STUDENT, Client, Machine, long, short, sst2

# As its bundle is exported: padding is left out, so batches are of 128 tokens.
LEAN = {
    "cost": replace(DISTILBERT, unpadded=True),
    "budget": 128,
    "padded": 384,
    "runners": 2,
    "batch_s": DISTILBERT.seconds(4, 32),
}
LONG_RUN = DISTILBERT.seconds(1, 512)


def beside(*others, slower=1.0, seconds=30.0, every=0.05):
    """Return what the short client got beside others; the simulation checks that no idle runner refuses."""
    client = short(every)
    Machine(**LEAN, slower=slower).serve([client, *others], duration=seconds)
    return client.outcome


@pytest.mark.parametrize("slower", [1.0, 1.5])
@pytest.mark.parametrize(
    "others",
    [
        pytest.param(lambda: [long()], id="64 long texts"),
        pytest.param(lambda: [long(1)], id="one long text at a time"),
        pytest.param(lambda: [long(1) for _ in range(16)], id="sixteen clients with one long text at a time"),
        pytest.param(lambda: [long(64, 40)], id="64 short texts"),
        pytest.param(lambda: [long(3, 200), long(1, 128), long(8), long(1), long()], id="every size"),
    ],
)
def test_short_texts_beside_long_work_are_answered_within_three_runs_of_a_long_text(others, slower):
    found = beside(*others(), slower=slower)
    assert found.refused == found.expired == 0
    assert found.p(95) <= 3 * LONG_RUN * slower


def test_four_clients_of_64_long_texts_leave_room_for_short_ones():
    crowd = [long() for _ in range(4)]
    found = beside(*crowd, seconds=60)
    assert found.within(1.0) >= 0.95
    assert all(client.outcome.seconds for client in crowd)


def test_long_work_loses_little_beside_a_client_with_short_texts():
    alone, together = long(), long()
    Machine(**LEAN).serve([alone], duration=60)
    beside(together, seconds=60)
    assert len(together.outcome.seconds) >= len(alone.outcome.seconds) - 1
    assert np.median(together.outcome.seconds) <= 1.15 * np.median(alone.outcome.seconds)


def test_long_work_goes_on_in_a_flood_of_short_texts():
    flood, many, single = Client(sst2(), rate=1700), long(), long(1)
    Machine(**LEAN).serve([flood, many, single], duration=32)
    assert flood.outcome.refused > 0.9 * flood.outcome.offered
    assert many.outcome.seconds
    # Three sizes have work, so each has a third of two runners.
    assert len(single.outcome.seconds) >= 0.8 * 32 * 2 / 3 / LONG_RUN
    assert flood.outcome.goodput >= 0.8 / 3 * Machine(**LEAN).load(1700, duration=10).goodput


def test_a_flood_of_one_client_does_not_lock_out_another():
    flood, others = Client(sst2(), rate=1700, name="a"), [short(name="b"), long(1, name="b")]
    Machine(**LEAN).serve([flood, *others], duration=10)
    assert flood.outcome.refused > 0.9 * flood.outcome.offered
    for client in others:
        assert client.outcome.refused <= 0.05 * client.outcome.offered
    assert others[0].outcome.p(95) <= LONG_RUN
    assert others[1].outcome.p(95) <= 2 * LONG_RUN


def test_overload_keeps_its_goodput_beside_a_polite_client():
    alone = Machine(**LEAN).load(170, duration=20).goodput
    flood = Machine(**LEAN)
    clients = [Client(sst2(), rate=1700), short()]
    flood.serve(clients, duration=10)
    assert sum(client.outcome.goodput for client in clients) >= 0.9 * alone


def test_in_a_flood_from_many_clients_longer_texts_are_answered_as_often_as_shorter_ones():
    flood = [
        Client(lambda _, tokens=tokens: [tokens], rate=17.0, name=f"{tokens} {number}")
        for tokens in (10, 60)
        for number in range(50)
    ]
    Machine(**LEAN).serve(flood, duration=10)
    short_ones, longer_ones = (sum(len(client.outcome.seconds) for client in half) for half in (flood[:50], flood[50:]))
    assert 0.6 <= longer_ones / short_ones <= 1.5


CLIENTS = st.lists(
    st.builds(
        lambda texts, tokens, rate, name: Client(lambda _: [tokens] * texts, rate=rate, name=name),
        st.sampled_from([1, 2, 7, 64]),
        st.sampled_from([4, 30, 100, 512]),
        st.sampled_from([None, None, 1.0, 30.0, 300.0]),
        st.sampled_from(["", "one", "two"]),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=15, deadline=None)
@given(CLIENTS, st.integers(1, 3), st.sampled_from([0.7, 1.0, 1.3]))
def test_whoever_else_sends_what_an_idle_runner_refuses_nothing_and_a_polite_client_is_answered(
    others, runners, slower
):
    cost = replace(STUDENT, unpadded=True)
    polite = Client(lambda _: [5], rate=5.0, evenly=True, name="polite")
    machine = Machine(cost=cost, budget=256, padded=700, runners=runners, batch_s=cost.seconds(8, 32), slower=slower)
    machine.serve([polite, *others], duration=3.0)  # which checks the idle runners
    # In a flood of others from everywhere a few may be refused: of 15 requests up to four in rare examples.
    assert len(polite.outcome.seconds) >= 0.7 * polite.outcome.offered
    # The longest run, then a share of three clients with texts of its size and of as many sizes as there are clients.
    assert polite.outcome.p(100) <= slower * 1.6 * (cost.seconds(1, 512) + 30 * cost.seconds(1, 64))
    for client in others:
        assert client.outcome.seconds or client.outcome.refused


@pytest.fixture
def by_length(resealed):
    """A model whose runs take 0.4 ms a token, up to 512 of them."""
    encoder = scripted(Encoder(resealed(max_length=512)))
    encoder.session.breaks = lambda feeds: time.sleep(0.0004 * feeds["input_ids"].size)
    return encoder


def test_a_client_with_short_texts_is_answered_beside_a_request_of_many_long_ones(by_length):
    long_run = 0.0004 * 512
    seconds, statuses = [], []

    async def one(engine):
        began = time.monotonic()
        try:
            await ask(engine, by_length, ["a good film"])
            statuses.append(200)
        except RequestError as error:
            statuses.append(error.status)
        seconds.append(time.monotonic() - began)

    async def main():
        async with running(by_length, runners=2, limits=Limits()) as engine:
            many = asyncio.ensure_future(ask(engine, by_length, ["good film " * 1500] * 12))
            asking = []
            while not many.done():
                engine.refuse_if_full("m")
                asking.append(asyncio.ensure_future(one(engine)))
                await asyncio.sleep(0.05)
            await asyncio.gather(*asking)
            assert len((await many).answers) == 12

    asyncio.run(main())
    assert len(statuses) > 10
    assert set(statuses) == {200}
    assert np.percentile(seconds, 95) <= 3 * long_run


def test_short_texts_are_tokenised_in_the_middle_of_long_ones(slow):
    passed = threading.Event()

    def long_texts():
        for _ in range(300):
            slow.tokenizer.rows(["good " * 14_000] * 2)  # more than one chunk
            if passed.is_set():
                return slow.prepare(["good"])
        raise AssertionError("nothing passed")

    def short_text():
        passed.set()
        return slow.prepare(["bad"])

    async def main():
        async with running(slow) as engine:
            held = await occupy(engine, slow)  # the only runner
            many = asyncio.ensure_future(engine.answer("m", long_texts, characters=[70_000] * 64))
            await asyncio.sleep(0.05)
            one = asyncio.ensure_future(engine.answer("m", short_text, characters=[3]))
            await until(passed.is_set, seconds=20)
            slow.session.gate.set()
            assert (await many).answers == slow.predict(["good"])
            assert (await one).answers == slow.predict(["bad"])
            await held

    asyncio.run(main())


def test_long_texts_that_nobody_waits_for_are_not_tokenised_to_their_end(slow):
    begun, ended = threading.Event(), threading.Event()

    def prepare():
        begun.set()
        try:
            while True:
                slow.tokenizer.rows(["good " * 14_000] * 2)
        finally:
            ended.set()

    async def main():
        async with running(slow) as engine:
            many = asyncio.ensure_future(engine.answer("m", prepare, characters=[70_000] * 64))
            await until(begun.is_set)
            many.cancel()
            await until(ended.is_set, seconds=20)
            assert (await ask(engine, slow, ["good"])).answers == slow.predict(["good"])
            assert engine.stats("m").wait_s == 0.0

    asyncio.run(main())
