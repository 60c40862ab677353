"""The machine gives out: file descriptors, disk, memory, time."""

import os
import resource
import socket
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import psutil

from tests.faults.bed import CANARY, PREDICTED, Bed, Fault, Switches, clean_end, good_clients, is_error, wait_for, well
from tests.faults.ends import ENDS_WITHIN
from tests.faults.rawhttp import Connection, NoAnswer, ask, get, predict_message
from tests.faults.served import Server, free_port, limit_files

FILES = 80
"""File descriptors that a starved server may have; loading a bundle takes about 25."""


def no_descriptors(bed: Bed) -> str:
    """Every descriptor is taken by silent connections: who asks is answered, the log stays short, and it recovers."""
    with bed.server(prepare=limit_files(FILES), limits={"connections": 4096.0}) as (server, _):
        with ExitStack() as stack:
            for _ in range(FILES * 2):
                stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=5))
            time.sleep(0.5)
            used, began, replaced = server.cpu_seconds(), time.monotonic(), 0
            kept = stack.enter_context(Connection(server.port, seconds=5))
            for _ in range(20):
                try:
                    assert kept.ask(PREDICTED).status == 200
                except NoAnswer as error:
                    # Idle for a moment, it may have been the one that had to go; a new one must be answered.
                    clean_end(error)
                    replaced += 1
                    kept = stack.enter_context(Connection(server.port, seconds=5))
                    assert kept.ask(PREDICTED).status == 200
                time.sleep(0.1)
            busy = (server.cpu_seconds() - used) / (time.monotonic() - began)
            held = server.open_files()
        assert busy < 0.7, f"{busy:.0%} of a core is burnt while no connection can be taken"
        assert held <= FILES
        assert replaced <= 3, f"the connection in use was closed {replaced} times in 20 requests"
        seconds = wait_for(lambda: server.is_alive() and server.predict().status == 200, seconds=10)
        lines = server.stderr.count("\n")
        assert lines < 50, f"{lines} lines in the log: {server.stderr[-300:]}"
        return f"{held} open, {busy:.0%} of a core, recovered after {seconds:.1f} s, {lines} lines; {well(server)}"


def no_descriptors_at_start(bed: Bed) -> str:
    """Too few descriptors to load: it says so in one line, without a traceback."""
    server = bed.start(prepare=limit_files(6))
    try:
        code = server.process.wait(30)
        server.kill()
    finally:
        server.kill()
    assert code != 0, "a server with 6 descriptors says that all is well"
    return f"exit {code}"


def _errors_without_a_log(server: Server, switches: Switches) -> str:
    """Let the model fail where its failures cannot be written; the server answers, and ends as it should."""
    switches.on("raise", CANARY)
    for _ in range(20):
        is_error(server.predict(CANARY), 500)
    switches.off("raise")
    said = well(server)
    code = server.terminate(seconds=ENDS_WITHIN)
    assert code == 0, f"exit code {code}"
    return f"{said}, exit 0"


def full_disk(bed: Bed) -> str:
    """Nothing can be written: not the log, not a temporary file, not the current folder."""
    port, full = free_port(), os.open("/dev/full", os.O_WRONLY)
    try:
        with bed.server(
            "--port", str(port), stderr=full, environment={"TMPDIR": "/dev/full", "HOME": "/nonexistent"}
        ) as (server, switches):
            assert ask(port, b"GET /\x00 HTTP/1.1\r\n\r\n").status == 400
            return _errors_without_a_log(server, switches)
    finally:
        os.close(full)


def no_files_grow(bed: Bed) -> str:
    """No file may grow (RLIMIT_FSIZE 0, a quota that is used up): answering needs no disk."""
    with bed.server() as (server, switches):
        switches.off("runs")
        psutil.Process(server.process.pid).rlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
        with good_clients(server) as good:
            time.sleep(1)
        assert good.answered == good.sent, good.failures[:3]
        return f"{good}; {well(server)}"


def closed_log(bed: Bed) -> str:
    """Whoever read the log has gone: a line that cannot be written ends nothing."""
    port = free_port()
    reading, writing = os.pipe()
    try:
        with bed.server("--port", str(port), stderr=writing) as (server, switches):
            os.close(reading)
            return _errors_without_a_log(server, switches)
    finally:
        os.close(writing)


def no_memory(bed: Bed) -> str:
    """The address space ends amid large requests: those are told or cut off, the process lives and recovers."""
    with bed.server() as (server, _):
        process = psutil.Process(server.process.pid)
        large = predict_message([f"{CANARY} " * 500] * 64)
        assert ask(server.port, large).status == 200
        statuses: Counter[object] = Counter()
        for room in (4 << 20, 2 << 20, 1 << 20, 1 << 19, 1 << 18):
            process.rlimit(resource.RLIMIT_AS, (process.memory_info().vms + room, resource.RLIM_INFINITY))
            for _ in range(bed.times(quick=1, long=10)):
                try:
                    response = ask(server.port, large)
                    if response.status != 200:
                        is_error(response, 413, 422, 429, 500, 503)
                    statuses[response.status] += 1
                except (NoAnswer, OSError):
                    statuses["end"] += 1
            assert server.process.poll() is None, f"ended with {server.process.returncode}: {server.stderr[-300:]}"
        process.rlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        wait_for(lambda: server.predict().status == 200, seconds=10)
        return f"large requests {dict(statuses)}; {well(server)}"


def clock_jumps(bed: Bed) -> str:
    """The wall clock jumps by hours: nobody's deadline or queue notices."""
    with bed.server() as (server, switches):
        with good_clients(server) as good:
            for shift in (7200, -7200, 86_400 * 400, -86_400 * 400, 0):
                switches.on("clock", shift)
                time.sleep(0.3)
                response = ask(server.port, predict_message(CANARY, headers={"X-Request-Timeout-Ms": "5000"}))
                assert response.status == 200, f"{shift} s: {response.status}"
        switches.off("clock")
        assert good.answered == good.sent, good.failures[:3]
        return f"{good}; {well(server)}"


def no_threads(bed: Bed) -> str:
    """No thread can be started any more: what runs goes on."""
    with bed.server() as (server, _):
        process = psutil.Process(server.process.pid)
        process.rlimit(resource.RLIMIT_NPROC, (1, 1))
        with good_clients(server) as good:
            time.sleep(1)
        assert good.answered == good.sent, good.failures[:3]
        return f"{good}; {well(server)}"


def busy_machine(bed: Bed) -> str:
    """Other processes take all the cores: slower, but probes and answers come."""
    burners = [psutil.Popen(["sh", "-c", "while :; do :; done"]) for _ in range(2 * (os.cpu_count() or 2))]
    try:
        with bed.server() as (server, _):
            with good_clients(server) as good:
                slowest = 0.0
                for _ in range(20):
                    started = time.monotonic()
                    assert get(server.port, "/health/live").status == 200
                    slowest = max(slowest, time.monotonic() - started)
                    time.sleep(0.1)
            assert not good.failures, good.failures[:3]
            assert slowest < 1, f"a probe took {slowest:.2f} s"
            return f"{good}, probes within {slowest * 1e3:.0f} ms; {well(server)}"
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def slow_start_of_many(bed: Bed) -> str:
    """Clients that come before the model is loaded are answered 503, refused, or wait; none hangs."""
    port = free_port()
    server = bed.start("--port", str(port))
    statuses: Counter[object] = Counter()
    stop = threading.Event()

    def client() -> None:
        while not stop.is_set():
            try:
                statuses[ask(port, PREDICTED, seconds=10).status] += 1
            except ConnectionRefusedError:
                statuses["refused"] += 1
            except (NoAnswer, OSError) as error:
                statuses[type(error).__name__] += 1
            time.sleep(0.01)

    threads = [threading.Thread(target=client) for _ in range(8)]
    for thread in threads:
        thread.start()
    with server:
        time.sleep(0.5)
        stop.set()
        for thread in threads:
            thread.join(15)
        assert set(statuses) <= {200, 429, 503, "refused", "NoAnswer", "ConnectionResetError"}, statuses
        assert statuses[200], statuses
        return f"{dict(statuses)}; {well(server)}"


def unwritable_folder(bed: Bed) -> str:
    """The bundle lies where nothing can be written, the current folder is gone."""
    gone = bed.folder()
    with bed.server(cwd=Path("/proc"), environment={"HOME": "/nonexistent", "TMPDIR": "/nonexistent"}) as (server, _):
        gone.rmdir()
        return well(server)


FAULTS = [
    Fault(
        "no-file-descriptors", "who asks is answered, no busy loop, short log, recovers", no_descriptors, quick=False
    ),
    Fault("no-file-descriptors-at-start", "an exit code", no_descriptors_at_start, quick=False),
    Fault("disk-full", "answers, refuses and ends as ever, with no place to write", full_disk),
    Fault("file-size-limit", "answers as ever", no_files_grow, quick=False),
    Fault("log-reader-gone", "answers and ends as ever", closed_log),
    Fault("no-memory", "large requests told or cut off, the process lives and recovers", no_memory, quick=False),
    Fault("clock-jump", "hours and years, both ways: all answered", clock_jumps),
    Fault("no-threads", "answers as ever", no_threads, quick=False),
    Fault("busy-machine", "probes within 1 s, all answered", busy_machine, quick=False),
    Fault("clients-before-ready", "503 or refused, then 200; no hang", slow_start_of_many),
    Fault("nowhere-to-write", "answers as ever", unwritable_folder, quick=False),
]
