"""Signals: how a server ends, and what becomes of the requests it has."""

import signal
import subprocess
import threading
import time
from collections import Counter

from tests.faults.bed import (
    CANARY,
    PREDICTED,
    QUICK_LIMITS,
    Bed,
    Fault,
    is_error,
    quiet,
    refused_to_start,
    wait_for,
    well,
)
from tests.faults.flood import Flood, flooded, is_listening, join
from tests.faults.rawhttp import Connection, NoAnswer, ask, get
from tests.faults.served import Ended, Server, free_port

ENDS_WITHIN = QUICK_LIMITS["drain_seconds"] + QUICK_LIMITS["shutdown_seconds"] + 3


def sigterm_in_a_flood(bed: Bed) -> str:
    runs = bed.times(quick=2, long=100)
    total, lost, not_taken, slowest, statuses = 0, [], 0, 0.0, Counter[int]()
    for number in range(runs):
        with bed.server() as (server, _):
            flood = Flood()
            threads = flooded(server, flood)
            time.sleep(0.3 + 0.05 * (number % 7))
            started = time.monotonic()
            code = server.terminate(seconds=ENDS_WITHIN)
            slowest = max(slowest, time.monotonic() - started)
            join(threads, flood)
            assert code == 0, f"exit code {code}: {server.stderr[-300:]}"
            quiet(server)
            total += flood.answered
            statuses += flood.statuses
            lost += flood.lost
            not_taken += flood.not_taken
    seen = f"{runs} runs, {total} answered {dict(statuses)}, {len(lost)} lost, {not_taken} closed while idle, "
    assert not lost, seen + str(Counter(lost).most_common(3))
    assert not_taken <= total / 1000 + 2 * runs, seen
    assert set(statuses) <= {200, 429, 503}, seen
    return seen + f"exit 0 within {slowest:.1f} s"


def ready_first(bed: Bed) -> str:
    """After SIGTERM /health/ready says 503 while new requests are still answered, and told that this is the last."""
    with bed.server(limits={"drain_seconds": 1.5}) as (server, _), Connection(server.port) as connection:
        assert connection.ask(PREDICTED).status == 200
        server.signal(signal.SIGTERM)
        seconds = wait_for(lambda: get(server.port, "/health/ready").status == 503, seconds=1)
        is_error(get(server.port, "/health/ready"), 503)
        assert get(server.port, "/health/live").status == 200, "live says no while it drains"
        answer = connection.ask(PREDICTED)
        assert (answer.status, answer.closes) == (200, True), f"{answer.status}, Connection: close {answer.closes}"
        assert ask(server.port, PREDICTED).status == 200, "a new connection is not answered while it drains"
        assert server.wait(seconds=ENDS_WITHIN) == 0
        quiet(server)
        return f"ready false after {seconds * 1e3:.0f} ms, requests answered until the end, exit 0"


def request_in_flight(bed: Bed) -> str:
    """What is in a run, and what waits behind it, is answered before the end."""
    with bed.server() as (server, switches):
        switches.on("slow", 1.0)
        got: list[int] = []
        threads = [threading.Thread(target=lambda: got.append(server.predict(CANARY).status)) for _ in range(3)]
        runs = switches.runs()
        for thread in threads:
            thread.start()
        wait_for(lambda: switches.runs() > runs, seconds=5)
        time.sleep(0.2)
        code = server.terminate(seconds=ENDS_WITHIN)
        for thread in threads:
            thread.join(20)
        assert code == 0
        assert len(got) == 3, f"answered {got}"
        assert set(got) <= {200, 429}, got
        assert 200 in got, got
        return f"answered {got}, exit 0"


def half_request(bed: Bed) -> str:
    """A request whose body is on its way is answered; one that never goes on does not hold the end up."""
    with bed.server() as (server, _), Connection(server.port) as finishing, Connection(server.port) as stuck:
        finishing.send(PREDICTED[:-7])
        stuck.send(PREDICTED[:30])
        time.sleep(0.2)
        server.signal(signal.SIGTERM)
        time.sleep(0.2)
        response = finishing.ask(PREDICTED[-7:])
        assert response.status == 200, response
        assert server.wait(seconds=ENDS_WITHIN) == 0
        return "the one was answered, the other dropped, exit 0"


def hung_at_the_end(bed: Bed) -> str:
    """SIGTERM ends a server within its grace time even if the engine never comes back."""
    with bed.server() as (server, switches):
        switches.on("hang")
        thread = threading.Thread(target=_ask_and_forget, args=(server,), daemon=True)
        runs = switches.runs()
        thread.start()
        wait_for(lambda: switches.runs() > runs, seconds=5)
        started = time.monotonic()
        code = server.terminate(seconds=ENDS_WITHIN)
        return f"exit {code} after {time.monotonic() - started:.1f} s"


def _ask_and_forget(server: Server) -> None:
    try:
        server.predict(CANARY)
    except (NoAnswer, OSError):
        return


def second_signal(bed: Bed) -> str:
    with bed.server(limits={"drain_seconds": 5.0}) as (server, _):
        server.signal(signal.SIGTERM)
        time.sleep(0.3)
        started = time.monotonic()
        server.signal(signal.SIGTERM)
        code = server.wait(seconds=2)
        return f"exit {code} after {time.monotonic() - started:.2f} s"


def ctrl_c(bed: Bed) -> str:
    with bed.server(limits={"drain_seconds": 5.0}) as (server, _):
        started = time.monotonic()
        server.signal(signal.SIGINT)
        code = server.wait(seconds=3)
        assert code == 0, f"exit {code}: {server.stderr[-300:]}"
        quiet(server)
        return f"exit 0 after {time.monotonic() - started:.2f} s"


def signal_while_loading(bed: Bed) -> str:
    """A signal at any moment of the start ends the process at once and without a traceback."""
    codes = Counter[int]()
    for step in range(bed.times(quick=4, long=40)):
        server = bed.start()
        time.sleep(0.05 + step * bed.times(quick=150, long=15) / 1e3)
        try:
            codes[server.terminate(seconds=ENDS_WITHIN)] += 1
        except subprocess.TimeoutExpired as error:
            raise AssertionError("SIGTERM during the start has no effect") from error
        finally:
            server.kill()
        quiet(server)
    assert set(codes) <= {0, -signal.SIGTERM, 128 + signal.SIGTERM}, codes
    return f"exit codes {dict(codes)}"


def sigkill_in_a_flood(bed: Bed) -> str:
    """Clients see the connection break, at once; a new process on the same port is ready soon."""
    port = free_port()
    with bed.server("--port", str(port)) as (server, _):
        flood = Flood()
        threads = flooded(server, flood)
        time.sleep(0.5)
        started = time.monotonic()
        server.signal(signal.SIGKILL)
        join(threads, flood, seconds=5)
        assert "a client still waits" not in flood.lost, "a client hangs after the kill"
        noticed = time.monotonic() - started
    again = bed.start("--port", str(port))
    with again:
        seconds = again.wait_until_ready(seconds=15)
        return (
            f"{flood.answered} answered, clients knew in {noticed:.2f} s, ready again in {seconds:.1f} s; {well(again)}"
        )


def stopped_and_continued(bed: Bed) -> str:
    """A process that stood still (a suspended laptop, a frozen container) goes on as if nothing had been."""
    with bed.server() as (server, _):
        flood = Flood()
        threads = flooded(server, flood, clients=4)
        time.sleep(0.3)
        server.signal(signal.SIGSTOP)
        time.sleep(bed.times(quick=2, long=10))
        server.signal(signal.SIGCONT)
        time.sleep(1)
        flood.stop.set()
        join(threads, flood)
        assert not flood.lost, flood.lost[:3]
        assert set(flood.statuses) <= {200, 408, 429, 503, 504}, flood.statuses
        return f"{dict(flood.statuses)}; {well(server)}"


def port_in_use(bed: Bed) -> str:
    server = bed.shared()
    other = bed.start("--port", str(server.port))
    code = other.wait(seconds=20)
    assert code == 3, f"exit {code}: {other.stderr[-300:]}"
    quiet(other)
    return f"exit 3, one line; the other: {well(server)}"


def restart_at_once(bed: Bed) -> str:
    """The port is free for a successor although connections of the predecessor linger."""
    port = free_port()
    for _ in range(3):
        with bed.server("--port", str(port)) as (server, _):
            for _ in range(50):
                assert server.predict().status == 200
            assert server.terminate(seconds=ENDS_WITHIN) == 0
            assert not is_listening(port)
    return "3 restarts on one port"


def bad_starts(bed: Bed) -> str:
    """What cannot be served ends with its exit code and one line."""
    seen = []
    for options, bundle, code in (
        ((), bed.scratch / "nowhere", 2),
        (("--precision", "fp16"), bed.bundle, 2),
        (("--port", "0", "--host", "192.0.2.1"), bed.bundle, 2),
        (("--threads", "0"), bed.bundle, 2),
        (("--nonsense",), bed.bundle, 2),
    ):
        server = bed.start(*options, bundle=bundle)
        try:
            server.wait_until_ready(seconds=20)
            raise AssertionError(f"{options} is served")
        except Ended as error:
            refused_to_start(error, code)
            seen.append(error.code)
        finally:
            server.kill()
    return f"exit codes {seen}"


FAULTS = [
    Fault("sigterm-in-a-flood", "0 accepted requests lost, exit 0 within the grace time", sigterm_in_a_flood),
    Fault("sigterm-ready-first", "ready false first, requests answered meanwhile, exit 0", ready_first),
    Fault("sigterm-request-in-flight", "what was accepted is answered, exit 0", request_in_flight),
    Fault("sigterm-half-request", "answered if it goes on, dropped if not, exit 0", half_request, quick=False),
    Fault("sigterm-hung-engine", "ends within the grace time", hung_at_the_end, quick=False),
    Fault("sigterm-twice", "the second ends it at once", second_signal, quick=False),
    Fault("sigint", "exit 0 at once, without a traceback", ctrl_c),
    Fault("sigterm-while-loading", "ends, without a traceback", signal_while_loading, quick=False),
    Fault("sigkill-in-a-flood", "clients notice at once, a restart is ready within 15 s", sigkill_in_a_flood),
    Fault("sigstop", "goes on, every client is answered", stopped_and_continued, quick=False),
    Fault("port-in-use", "exit 3; the server that has it is not disturbed", port_in_use),
    Fault("restart-at-once", "the same port can be taken at once", restart_at_once, quick=False),
    Fault("bad-starts", "exit 2 and one line", bad_starts, quick=False),
]
