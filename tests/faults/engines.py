"""A model that hangs, fails, lies or is slow; and clients that do not wait for it."""

import json
import signal
import threading
import time
from collections import Counter

from tests.faults.bed import CANARY, PREDICTED, QUICK_LIMITS, Bed, Fault, good_clients, is_error, wait_for, well
from tests.faults.flood import Flood, flooded, join
from tests.faults.rawhttp import Connection, Hang, NoAnswer, Response, ask, get, predict_message
from tests.faults.served import Server

LATE = 1.0
"""Seconds beyond a deadline in which its answer must be there."""


def hang(bed: Bed) -> str:
    """A run that never ends: nobody waits for ever, and the live probe hears of it."""
    limits = {"request_seconds": 2.0}
    with bed.server(limits=limits) as (server, switches):
        switches.on("hang")
        statuses: Counter[object] = Counter()
        threads = [threading.Thread(target=_count, args=(server, statuses)) for _ in range(8)]
        started = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(25)
        waited = time.monotonic() - started
        assert not any(thread.is_alive() for thread in threads), "a client still waits"
        assert set(statuses) <= {429, 503, 504}, statuses
        assert waited < limits["request_seconds"] + 2, f"clients waited {waited:.1f} s; the deadline is 2 s"
        noticed = wait_for(lambda: _gone_or_not_live(server), seconds=25)
        if server.process.poll() is None:
            assert not server.is_ready(), "ready, although nothing can be answered"
            is_error(ask(server.port, PREDICTED), 429, 503, 504)
        return f"{dict(statuses)} within {waited:.1f} s, live says no {noticed:.1f} s later"


def _gone_or_not_live(server: Server) -> bool:
    return server.process.poll() is not None or not server.is_alive()


def _count(server: Server, statuses: Counter[object]) -> None:
    try:
        response = server.predict(CANARY)
        is_error(response, 429, 503, 504)
        statuses[response.status] += 1
    except Hang:
        statuses["hang"] += 1
    except (NoAnswer, OSError, AssertionError) as error:
        statuses[str(error)] += 1


def hang_and_recover(bed: Bed) -> str:
    """A run that ends late: the requests it had are told so, later ones are answered."""
    with bed.server(limits={"request_seconds": 1.5}) as (server, switches):
        switches.on("hang")
        is_error(server.predict(CANARY), 504)
        switches.off("hang")
        seconds = wait_for(lambda: server.process.poll() is not None or server.predict().status == 200, seconds=20)
        wait_for(server.is_alive, seconds=20)
        return f"504, then answered again after {seconds:.1f} s; {well(server)}"


def failing_run(bed: Bed) -> str:
    with bed.server() as (server, switches):
        switches.on("raise", CANARY)
        for _ in range(20):
            is_error(server.predict(f"a {CANARY}"), 500)
        switches.off("raise")
        return f"20 times 500; {well(server)}"


def guilty_request(bed: Bed) -> str:
    """One request that breaks the model: those that shared its batch are answered."""
    with bed.server() as (server, switches):
        switches.on("guilty", 12)
        statuses: dict[str, Counter[int]] = {"short": Counter(), "long": Counter()}

        def client(kind: str, text: str) -> None:
            for _ in range(20):
                statuses[kind][server.predict(text).status] += 1

        work = [("short", "a good film"), ("long", "a good film " * 9), ("short", "bad")] * 2
        threads = [threading.Thread(target=client, args=item) for item in work]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert set(statuses["short"]) <= {200, 429}, statuses
        assert set(statuses["long"]) <= {500, 429}, statuses
        switches.off("guilty")
        return f"the others {dict(statuses['short'])}, the guilty {dict(statuses['long'])}; {well(server)}"


def dying_thread(bed: Bed) -> str:
    """An exception that ends a thread: the server goes on, or the probes say that it does not."""
    with bed.server() as (server, switches):
        switches.on("die")
        first = _status_or_end(server)
        assert first in {500, 503, 504}, f"the request that died got {first}"
        switches.off("die")
        time.sleep(0.5)
        if server.process.poll() is None and server.is_alive():
            return f"{first}; {well(server)}"
        return f"{first}; the live probe says no"


def _status_or_end(server: Server) -> int | str:
    try:
        return server.predict(CANARY).status
    except (NoAnswer, OSError) as error:
        return str(error)


def not_a_number(bed: Bed) -> str:
    with bed.server() as (server, switches):
        switches.on("nan")
        is_error(server.predict(CANARY), 500)
        switches.off("nan")
        return f"500; {well(server)}"


def out_of_memory(bed: Bed) -> str:
    """MemoryError in one run costs that request."""
    with bed.server() as (server, switches):
        switches.on("memory")
        is_error(server.predict(CANARY), 500, 503)
        switches.off("memory")
        return f"told so; {well(server)}"


def deadline(bed: Bed) -> str:
    """A client's deadline ends its waiting, and work that nobody waits for is not done."""
    with bed.server() as (server, switches):
        switches.on("slow", 0.5)
        before = switches.runs()
        got: list[tuple[int, float]] = []

        def client() -> None:
            started = time.monotonic()
            response = ask(server.port, predict_message(CANARY, headers={"X-Request-Timeout-Ms": "200"}))
            is_error(response, 429, 504)
            got.append((response.status, time.monotonic() - started))

        threads = [threading.Thread(target=client) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(got) == 12, f"{len(got)} of 12 were told"
        slowest = max(seconds for _, seconds in got)
        assert slowest < 0.2 + LATE, f"told after {slowest:.2f} s"
        time.sleep(1.5)
        runs = switches.runs() - before
        assert runs <= 2, f"{runs} runs for 12 requests that had expired"
        switches.off("slow")
        return f"{dict(Counter(status for status, _ in got))} within {slowest:.2f} s, {runs} runs; {well(server)}"


def client_gone(bed: Bed) -> str:
    """What clients that have hung up had asked is not run."""
    with bed.server() as (server, switches):
        switches.on("slow", 0.4)
        before = switches.runs()
        connections = [Connection(server.port) for _ in range(12)]
        for connection in connections:
            connection.send(PREDICTED)
        time.sleep(0.15)
        for connection in connections:
            connection.reset()
        time.sleep(1.5)
        runs = switches.runs() - before
        assert runs <= 2, f"{runs} runs for 12 clients that had gone"
        switches.off("slow")
        return f"{runs} runs for 12 clients that had gone; {well(server)}"


def slow_model(bed: Bed) -> str:
    """The model is suddenly far slower than at the start: waiting stays bounded, probes are answered."""
    with bed.server() as (server, switches):
        switches.on("slow", 0.2)
        flood = Flood()
        threads = flooded(server, flood, clients=30)
        probes = []
        for _ in range(bed.times(quick=20, long=100)):
            started = time.monotonic()
            assert get(server.port, "/health/live").status == 200
            probes.append(time.monotonic() - started)
            time.sleep(0.1)
        flood.stop.set()
        join(threads, flood)
        assert not flood.lost, flood.lost[:3]
        assert set(flood.statuses) <= {200, 429, 504}, flood.statuses
        assert max(probes) < 1, f"a probe took {max(probes):.2f} s"
        switches.off("slow")
        wait_for(lambda: server.predict().status == 200, seconds=10)
        return f"{dict(flood.statuses)}, probes within {max(probes) * 1e3:.0f} ms; {well(server)}"


def flood_of_refusals(bed: Bed) -> str:
    """Far more than can be answered: refusals name a time, probes are answered, the memory stays."""
    with bed.server() as (server, _):
        before, flood, bad = server.rss(), Flood(), []
        threads = flooded(server, flood, clients=bed.times(quick=60, long=200))
        until = time.monotonic() + bed.times(quick=2, long=15)
        while time.monotonic() < until:
            for path in ("/health/live", "/health/ready"):
                started = time.monotonic()
                if get(server.port, path).status != 200 or time.monotonic() - started > 1:
                    bad.append(path)
            time.sleep(0.05)
            response = server.predict(CANARY)
            if response.status == 429:
                is_error(response, 429)
                assert int(response.headers.get("retry-after", 0)) >= 1, response.headers
        flood.stop.set()
        join(threads, flood)
        assert not bad, f"{len(bad)} probes failed or took over 1 s: {Counter(bad)}"
        assert not flood.lost, flood.lost[:3]
        assert set(flood.statuses) <= {200, 429}, flood.statuses
        wait_for(lambda: server.predict().status == 200, seconds=3)
        return f"{dict(flood.statuses)}; {well(server, rss_growth=100 << 20, rss_before=before)}"


def large_beside_small(bed: Bed) -> str:
    """Requests of as many long texts as allowed do not keep short ones waiting for their whole length."""
    server = bed.shared()
    large = predict_message([f"{CANARY} good film " * 40] * 64)
    answers: list[Response] = []
    stop = threading.Event()

    def heavy() -> None:
        while not stop.is_set():
            answers.append(ask(server.port, large))

    threads = [threading.Thread(target=heavy) for _ in range(2)]
    for thread in threads:
        thread.start()
    with good_clients(server) as good:
        time.sleep(bed.times(quick=2, long=20))
    stop.set()
    for thread in threads:
        thread.join(60)
    statuses = Counter(response.status for response in answers)
    assert set(statuses) <= {200, 429}, statuses
    assert not good.failures, good.failures[:3]
    assert good.answered >= 10, f"{good}"
    return f"{good}; large {dict(statuses)}; {well(server)}"


def hostile_texts(bed: Bed) -> str:
    """Texts that cost more than they seem to: none takes over 5 s or harms the others."""
    server = bed.shared()
    most = int(get(server.port, "/info").json().get("max_length", 32)) * 250 - 10
    texts: dict[str, object] = {
        "one-word": "x" * most,
        "combining-marks": ("e" + "\u0301" * 20) * (most // 21),
        "expanders": "\ufdfa" * most,
        "pair": {"text": "good film " * (most // 20), "text_pair": "bad book " * (most // 20)},
        "spaces": " " * most,
        "cjk": "\u4e2d" * most,
        "special": "[MASK]" * (most // 6),
        "emoji": "\U0001f9d1\u200d\U0001f4bb" * (most // 3),
        "punctuation": "!?" * (most // 2),
        "nul": "\0" * (most // 2),
    }
    slowest = ("", 0.0)
    with good_clients(server) as good:
        for name, text in texts.items():
            started = time.monotonic()
            response = ask(server.port, predict_message(text))
            seconds = time.monotonic() - started
            assert response.status in {200, 413, 422, 429}, f"{name}: {response.status} {response.body[:100]!r}"
            assert seconds < 5, f"{name} took {seconds:.1f} s"
            slowest = max(slowest, (name, seconds), key=lambda item: item[1])
    assert not good.failures, good.failures[:3]
    return f"{good}; slowest {slowest[0]}, {slowest[1] * 1e3:.0f} ms; {well(server)}"


def hostile_json(bed: Bed) -> str:
    server = bed.shared()
    before = server.rss()
    bodies: dict[str, bytes] = {
        "nested-100000": b"[" * 100_000 + b"]" * 100_000,
        "nested-objects": b'{"inputs":' * 50_000 + b"1" + b"}" * 50_000,
        "keys-100000": b"{" + b",".join(b'"%d":0' % number for number in range(100_000)) + b"}",
        "digits": b'{"inputs": ' + b"9" * 100_000 + b"}",
        "top-k-digits": b'{"inputs": "a", "parameters": {"top_k": ' + b"9" * 10_000 + b"}}",
        "float-overflow": b'{"inputs": "a", "parameters": {"top_k": 1e999}}',
        "escapes": b'{"inputs": "' + b"\\u0061" * 100_000 + b'"}',
        "empty-strings": json.dumps({"inputs": [""] * 100_000}).encode(),
    }
    with good_clients(server) as good:
        for name, body in bodies.items():
            started = time.monotonic()
            head = (
                b"POST /predict HTTP/1.1\r\nHost: [::1]\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            )
            response = ask(server.port, head % len(body) + body)
            assert response.status in {400, 413, 422, 429}, f"{name}: {response.status}"
            is_error(response, response.status)
            assert time.monotonic() - started < 3, f"{name} took {time.monotonic() - started:.1f} s"
    assert not good.failures, good.failures[:3]
    return f"{len(bodies)} bodies; {good}; {well(server, rss_growth=150 << 20, rss_before=before)}"


def wedged_then_sigterm(bed: Bed) -> str:
    """What an orchestrator does: the live probe fails, SIGTERM, a restart is ready."""
    with bed.server(limits={"request_seconds": 1.0}) as (server, switches):
        switches.on("hang")
        is_error(server.predict(CANARY), 503, 504)
        wait_for(lambda: _gone_or_not_live(server), seconds=20)
        if server.process.poll() is None:
            server.signal(signal.SIGTERM)
        started = time.monotonic()
        code = server.wait(seconds=QUICK_LIMITS["drain_seconds"] + QUICK_LIMITS["shutdown_seconds"] + 3)
        ended = time.monotonic() - started
    with bed.server() as (again, _):
        return f"exit {code} after {ended:.1f} s; the next: {well(again)}"


FAULTS = [
    Fault("engine-hang", "clients told at their deadline; live and ready say no", hang),
    Fault("engine-hang-passes", "504, then answered again", hang_and_recover, quick=False),
    Fault("engine-hang-restart", "ends within the grace time, the next is well", wedged_then_sigterm, quick=False),
    Fault("engine-raises", "500 for that request, nothing of it in the log, the next is answered", failing_run),
    Fault("engine-guilty-request", "500 only for the guilty of a batch", guilty_request),
    Fault("engine-thread-dies", "an error; then well, or the live probe says no", dying_thread, quick=False),
    Fault("engine-not-a-number", "500, no NaN in an answer", not_a_number),
    Fault("engine-out-of-memory", "500 or 503 for that request", out_of_memory, quick=False),
    Fault("deadline", "504 in time; expired work is not run", deadline),
    Fault("client-gone", "its work is not run", client_gone),
    Fault("slow-model", "waiting bounded by 429, probes within 1 s", slow_model, quick=False),
    Fault("flood", "429 with Retry-After, probes within 1 s, memory bounded", flood_of_refusals),
    Fault("large-beside-small", "short requests are answered between long ones", large_beside_small),
    Fault("hostile-texts", "none over 5 s, good clients answered", hostile_texts),
    Fault("hostile-json", "an error each, none over 3 s, memory bounded", hostile_json),
]
