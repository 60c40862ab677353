"""Clients that are slow, rude or gone."""

import json
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack

from tests.faults.bed import (
    CANARY,
    PREDICTED,
    QUICK_LIMITS,
    Bed,
    Fault,
    Good,
    answer_of,
    clean_end,
    good_clients,
    is_error,
    wait_for,
    well,
)
from tests.faults.rawhttp import Connection, NoAnswer, ask, message, parse_head, predict_message
from tests.faults.served import Server, own_many_files

SUCCESS = 0.999
"""Share of good requests that must be answered while an attack goes on."""
HALF = len(PREDICTED) - 20


def trickle(server: Server, *, start: bytes, then: bytes, count: int, allowed: float) -> Counter[str]:
    """Open `count` connections that send `start` and then a byte every 0.2 s; return how the server ended them.

    Raises:
        AssertionError: if one is still open `allowed` seconds after it began.
    """
    own_many_files()
    poll, open_, ends = select.epoll(), {}, Counter[str]()
    for _ in range(count):
        client = socket.create_connection(("127.0.0.1", server.port), timeout=20)
        client.sendall(start)
        client.setblocking(False)
        open_[client.fileno()] = client
        poll.register(client.fileno(), select.EPOLLIN)
    began, position = time.monotonic(), 0
    while open_ and time.monotonic() - began < allowed:
        place = position % max(len(then), 1)
        for number, client in list(open_.items()):
            try:
                client.send(then[place : place + 1])
            except OSError:
                ends["reset"] += 1
                _forget(poll, open_, number)
        position += 1
        pause_until = time.monotonic() + 0.2
        while (left := pause_until - time.monotonic()) > 0:
            for number, _ in poll.poll(left):
                if (how := _how_it_ended(open_[number])) != "100":  # 100 Continue is no end
                    ends[how] += 1
                    _forget(poll, open_, number)
    left_open = len(open_)
    for number in list(open_):
        _forget(poll, open_, number)
    poll.close()
    assert not left_open, f"{left_open} of {count} slow connections were still open after {allowed} s"
    return ends


def _how_it_ended(client: socket.socket) -> str:
    try:
        data = client.recv(65536)
    except OSError:
        return "reset"
    return str(parse_head(data.split(b"\r\n\r\n")[0])[0]) if data else "closed"


def _forget(poll: select.epoll, open_: dict[int, socket.socket], number: int) -> None:
    poll.unregister(number)
    open_.pop(number).close()


def _only(ends: Counter[str], *allowed: str) -> None:
    assert set(ends) <= {*allowed, "closed", "reset"}, f"ended with {dict(ends)}"


def slow_headers(bed: Bed) -> str:
    count = bed.times(quick=150, long=500)
    with bed.server() as (server, _):
        with good_clients(server) as good:
            start = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nX-Slow: "
            allowed = QUICK_LIMITS["header_seconds"] + 5
            ends = trickle(server, start=start, then=b"z", count=count, allowed=allowed)
        _only(ends, "408")
        assert good.share >= SUCCESS, f"{good}: {good.failures[:3]}"
        return f"{good}; {count} ended by {dict(ends)}; {well(server)}"


def slow_bodies(bed: Bed) -> str:
    count = bed.times(quick=150, long=500)
    with bed.server() as (server, _):
        with good_clients(server) as good:
            start = message("POST", "/predict", headers={"Content-Type": "application/json", "Content-Length": "900"})
            allowed = QUICK_LIMITS["body_seconds"] + 5
            ends = trickle(server, start=start + b'{"inputs": "', then=b"z", count=count, allowed=allowed)
        _only(ends, "408")
        assert good.share >= SUCCESS, f"{good}: {good.failures[:3]}"
        return f"{good}; {count} ended by {dict(ends)}; {well(server)}"


def slow_chunks(bed: Bed) -> str:
    count = bed.times(quick=50, long=500)
    with bed.server() as (server, _):
        with good_clients(server) as good:
            start = message("POST", "/predict", headers=_CHUNKED)
            allowed = QUICK_LIMITS["body_seconds"] + 5
            ends = trickle(server, start=start, then=b"1\r\n \r\n", count=count, allowed=allowed)
        _only(ends, "408")
        assert good.share >= SUCCESS, f"{good}: {good.failures[:3]}"
        return f"{good}; {count} ended by {dict(ends)}; {well(server)}"


_CHUNKED = {"Content-Type": "application/json", "Transfer-Encoding": "chunked"}


def slow_readers(bed: Bed) -> str:
    """Pipelined requests whose answers are never read: the answers must not pile up in the server."""
    count = bed.times(quick=20, long=100)
    # Answers much longer than requests, so that they fill what the kernel holds.
    wide = predict_message(["a"] * 64)
    with bed.server() as (server, _):
        before = server.rss()
        with good_clients(server) as good, ExitStack() as stack:
            for _ in range(count):
                connection = stack.enter_context(Connection(server.port))
                connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
                connection.socket.setblocking(False)
                _send_what_fits(connection.socket, wide * 400)
            time.sleep(QUICK_LIMITS["write_seconds"] + 2)
            peak = server.rss()
        assert good.share >= SUCCESS, f"{good}: {good.failures[:3]}"
        grown = (peak - before) / 2**20
        assert grown < 200, f"the resident set grew by {grown:.0f} MiB under {count} slow readers"
        wait_for(lambda: server.open_files() < count, seconds=30)
        return f"{good}; {count} slow readers dropped, {grown:.0f} MiB more at the peak; {well(server)}"


def _send_what_fits(client: socket.socket, data: bytes) -> None:
    sent, until = 0, time.monotonic() + 0.2
    while sent < len(data) and time.monotonic() < until:
        try:
            sent += client.send(data[sent : sent + 65536])
        except BlockingIOError:
            time.sleep(0.005)
        except OSError:
            return


def idle_connections(bed: Bed) -> str:
    """More silent connections than the server keeps: it closes the longest waiting ones and answers the others."""
    own_many_files()
    count = bed.times(quick=600, long=3000)
    limits = {"connections": 300.0 if not bed.long else 2048.0, "idle_seconds": 60.0, "header_seconds": 60.0}
    with bed.server(limits=limits) as (server, _):
        with good_clients(server) as good, ExitStack() as stack:
            for _ in range(count):
                stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=20))
            time.sleep(1)
            held = server.open_files()
        assert good.share >= SUCCESS, f"{good}: {good.failures[:3]}"
        assert held < limits["connections"] + 100, f"{held} files are open; the cap is {limits['connections']:.0f}"
        return f"{good}; {held} files open beside {count} idle connections; {well(server)}"


def idle_connections_end(bed: Bed) -> str:
    """A connection that says nothing is closed after the idle time, also between two requests."""
    with bed.server(limits={"idle_seconds": 1.0, "header_seconds": 1.0}) as (server, _):
        with Connection(server.port) as silent, Connection(server.port) as used:
            assert used.ask(PREDICTED).status == 200
            assert silent.ended(seconds=5), "a silent connection stays open"
            assert used.ended(seconds=5), "an idle keep-alive connection stays open"
        return f"both were closed; {well(server)}"


def _resets(bed: Bed, ask: Callable[[Connection, int], None]) -> str:
    """Clients that ask and reset cost the others nothing, and leave no connection behind."""
    count = bed.times(quick=200, long=5000)
    server = bed.shared()
    files = server.open_files()
    with good_clients(server) as good:
        for number in range(count):
            connection = Connection(server.port)
            ask(connection, number)
            connection.reset()
    assert good.share >= SUCCESS, f"{good}: {good.failures[:3]}"
    wait_for(lambda: server.open_files() <= files + 5, seconds=10)
    return f"{good}; {count} resets; {well(server)}"


def reset_mid_body(bed: Bed) -> str:
    return _resets(bed, lambda connection, _: connection.send(PREDICTED[:HALF]))


def reset_before_answer(bed: Bed) -> str:
    def ask(connection: Connection, number: int) -> None:
        connection.send(PREDICTED)
        if number % 2:
            time.sleep(0.002)

    return _resets(bed, ask)


def half_close(bed: Bed) -> str:
    """A client that has finished sending looks like one that has gone: it is answered or its connection ends."""
    server, answered = bed.shared(), 0
    for _ in range(20):
        with Connection(server.port) as connection:
            connection.send(PREDICTED)
            connection.half_close()
            try:
                answered += connection.read().status == 200
            except NoAnswer as error:
                clean_end(error)
    return f"{answered} of 20 answered; {well(server)}"


def half_close_mid_body(bed: Bed) -> str:
    server = bed.shared()
    for cut in (10, 40, HALF, len(PREDICTED) - 1):
        with Connection(server.port, seconds=8) as connection:
            connection.send(PREDICTED[:cut])
            connection.half_close()
            try:
                is_error(connection.read(), 400, 408)
            except NoAnswer as error:
                clean_end(error)
    return f"ended or refused with 400; {well(server)}"


def churn(bed: Bed) -> str:
    count = bed.times(quick=1000, long=20_000)
    server = bed.shared()
    files, memory = server.open_files(), server.rss()
    for number in range(count):
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
            if number % 3 == 1:
                client.sendall(b"G")
            if number % 3 == 2:
                client.sendall(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
    wait_for(lambda: server.open_files() <= files + 5, seconds=20)
    return f"{count} short connections; {well(server, rss_growth=64 << 20, rss_before=memory)}"


def garbage_between_requests(bed: Bed) -> str:
    server = bed.shared()
    with Connection(server.port) as connection:
        assert connection.ask(PREDICTED).status == 200
        connection.send(b"\x00\xffgarbage\r\n\r\n")
        try:
            is_error(connection.read(), 400)
        except NoAnswer as error:
            clean_end(error)
        assert connection.ended(seconds=5), "the connection stays open after garbage"
    return f"refused and closed; {well(server)}"


def pipelined(bed: Bed) -> str:
    """Requests sent at once on one connection are answered in their order."""
    server = bed.shared()
    texts = ["good", "bad", "a very warm film", "it was not very good"] * 25
    wanted = {text: server.predict(text).json() for text in set(texts)}
    with Connection(server.port) as connection:
        connection.send(b"".join(predict_message(text) for text in texts))
        got = [connection.read() for _ in texts]
    assert all(response.status == 200 for response in got), Counter(response.status for response in got)
    assert [_rounded(response.json()) for response in got] == [_rounded(wanted[text]) for text in texts], (
        "answers came in another order"
    )
    return f"{len(texts)} in order; {well(server)}"


def _rounded(answer: list[dict]) -> list[tuple]:
    return [(entry["label"], round(entry["score"], 5)) for entry in answer]


def pipelined_without_end(bed: Bed) -> str:
    """100 connections that send without reading: what waits in the server stays bounded."""
    server = bed.shared()
    before = server.rss()
    with good_clients(server) as good, ExitStack() as stack:
        for _ in range(bed.times(quick=20, long=100)):
            connection = stack.enter_context(Connection(server.port))
            connection.socket.setblocking(False)
            _send_what_fits(connection.socket, message("GET", "/health/live") * 20_000)
        grown = (server.rss() - before) / 2**20
    assert good.share >= SUCCESS, f"{good}: {good.failures[:3]}"
    assert grown < 100, f"the resident set grew by {grown:.0f} MiB"
    return f"{good}; {grown:.0f} MiB more; {well(server)}"


def expect_continue(bed: Bed) -> str:
    server = bed.shared()
    body = json.dumps({"inputs": CANARY}).encode()
    head = message(
        "POST",
        "/predict",
        headers={
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Expect": "100-continue",
        },
    )
    with Connection(server.port) as connection:
        connection.send(head)
        connection.socket.settimeout(5)
        assert connection.socket.recv(65536).startswith(b"HTTP/1.1 100"), "no 100 Continue"
        assert connection.ask(body).status == 200
    ends = trickle(server, start=head, then=b"", count=20, allowed=QUICK_LIMITS["body_seconds"] + 4)
    _only(ends, "408")
    return f"100, then 200; without a body {dict(ends)}; {well(server)}"


def chunk_flood(bed: Bed) -> str:
    """A body of one-byte chunks costs neither memory nor the others' time."""
    count = bed.times(quick=200_000, long=1_000_000)
    server = bed.shared()
    before = server.rss()
    with good_clients(server) as good:
        for _ in range(bed.times(quick=2, long=100)):
            data = message("POST", "/predict", headers=_CHUNKED) + b"1\r\n \r\n" * count + b"0\r\n\r\n"
            response = answer_of(data, server, seconds=30)
            assert response is None or response.status in {400, 408, 413, 422}, response
    grown = (server.rss() - before) / 2**20
    assert grown < 50, f"the resident set grew by {grown:.0f} MiB"
    assert good.share >= SUCCESS, f"{good}: {good.failures[:3]}"
    assert max(good.seconds) < 2, f"a good client waited {max(good.seconds):.1f} s"
    return f"{good}; {grown:.0f} MiB more; {well(server)}"


def many_at_once(bed: Bed) -> str:
    """More clients at one moment than the server takes: each is answered or told when to come again, and all get in."""
    clients, each = bed.times(quick=60, long=300), bed.times(quick=5, long=20)
    with bed.server() as (server, _):
        seen = Good()
        threads = [threading.Thread(target=_insist, args=(server, each, seen)) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert not seen.failures, seen.failures[:3]
        assert seen.answered == clients * each, f"{seen.answered} of {clients * each}"
        return f"{seen.answered} answered after {seen.refused} refusals; {well(server)}"


def _insist(server: Server, times: int, seen: Good) -> None:
    """Send as many requests, each again after the seconds that a refusal names, until it is answered."""
    for _ in range(times):
        for _ in range(30):
            try:
                response = ask(server.port, PREDICTED)
            except (OSError, NoAnswer) as error:
                seen.failures.append(f"{type(error).__name__}: {error}")
                return
            if response.status == 200:
                seen.answered += 1
                break
            seen.refused += 1
            if response.status != 429 or int(response.headers.get("retry-after", 0)) < 1:
                seen.failures.append(f"{response.status} with Retry-After {response.headers.get('retry-after')}")
                return
            time.sleep(int(response.headers["retry-after"]))


_BESIDE = "good clients beside: 99.9 % answered; "
FAULTS = [
    Fault("slow-headers", _BESIDE + "each slow one gets 408 or its end within the deadline", slow_headers),
    Fault("slow-bodies", _BESIDE + "each slow one gets 408 or its end within the deadline", slow_bodies, quick=False),
    Fault("slow-chunks", _BESIDE + "a chunked body has the same deadline", slow_chunks, quick=False),
    Fault("slow-readers", _BESIDE + "memory bounded, dropped after the deadline", slow_readers, quick=False),
    Fault("idle-connections", _BESIDE + "no more connections than the cap", idle_connections, quick=False),
    Fault("idle-connections-end", "closed after the idle time", idle_connections_end),
    Fault("reset-mid-body", _BESIDE + "no file descriptor is lost", reset_mid_body),
    Fault("reset-before-answer", _BESIDE + "no file descriptor is lost", reset_before_answer),
    Fault("half-close", "answered or the end; no hang, no half response", half_close),
    Fault("half-close-mid-body", "400, 408 or the end; no hang", half_close_mid_body),
    Fault("churn", "no file descriptor and no memory is lost", churn, quick=False),
    Fault("garbage-between-requests", "400 or the end, then closed", garbage_between_requests),
    Fault("pipelined", "answered in order", pipelined),
    Fault("pipelined-without-end", _BESIDE + "memory bounded", pipelined_without_end),
    Fault("expect-100-continue", "100 comes; without a body 408 or the end", expect_continue, quick=False),
    Fault("one-byte-chunks", _BESIDE + "no wait over 2 s, memory bounded", chunk_flood),
    Fault("many-at-once", "429 with Retry-After, and who obeys it is answered", many_at_once, quick=False),
]
