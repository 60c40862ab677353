"""What a fault is tried on: a bundle, servers started for it, good clients beside it, and the state after it."""

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from tests.faults.rawhttp import Connection, Hang, NoAnswer, Response, predict_message
from tests.faults.served import Ended, Server

CANARY = "kestrelcanary"
"""A word of every text that is sent; it must never come out again but in the answer to whoever sent it."""
QUICK_LIMITS: dict[str, float] = {
    "header_seconds": 2.0,
    "body_seconds": 3.0,
    "idle_seconds": 5.0,
    "write_seconds": 3.0,
    "request_seconds": 6.0,
    "drain_seconds": 0.5,
    "shutdown_seconds": 6.0,
}
"""Shorter than the defaults, so that what a deadline ends is seen in seconds."""
PREDICTED = predict_message(f"a good {CANARY} film")


@dataclass(frozen=True, slots=True)
class Fault:
    """One named fault: what is done to the server, and what must be seen."""

    name: str
    expect: str
    do: Callable[["Bed"], str]
    """Does it, says what was seen, and raises AssertionError where that is not what is expected."""
    quick: bool = True
    """Whether it is among those of every test run, in small numbers."""


@dataclass(slots=True)
class Bed:
    """The place where faults are tried; `long` asks for the full numbers, else a few of each."""

    bundle: Path
    scratch: Path
    long: bool = False
    options: tuple[str, ...] = ("--threads", "1")
    _shared: Server | None = field(default=None, init=False)
    _folders: int = field(default=0, init=False)

    def times(self, *, quick: int, long: int) -> int:
        return long if self.long else quick

    def folder(self) -> Path:
        """Return a new, empty folder."""
        self._folders += 1
        made = self.scratch / f"{self._folders:03d}"
        made.mkdir(parents=True)
        return made

    def copy_of_bundle(self) -> Path:
        return Path(shutil.copytree(self.bundle, self.folder() / "bundle"))

    def start(self, *options: str, limits: dict[str, float] | None = None, **more: Any) -> Server:
        """Return a server of its own, not yet ready; its faults are switched by `Switches(server)`."""
        bundle = more.pop("bundle", self.bundle)
        faults = self.folder()
        return Server(
            [bundle],
            options=[*self.options, *options],
            faults=faults,
            limits=json.dumps(QUICK_LIMITS | (limits or {})),
            **more,
        )

    @contextmanager
    def server(self, *options: str, **more: Any) -> Iterator[tuple[Server, "Switches"]]:
        """Give a ready server of its own and its switches."""
        server = self.start(*options, **more)
        with server:
            yield server, Switches(server)

    def shared(self) -> Server:
        """Return the server that harmless faults share; a new one, if the last of them has ended."""
        if self._shared is None or self._shared.process.poll() is not None:
            self._shared = self.start()
            self._shared.wait_until_ready()
        return self._shared

    def close(self) -> None:
        if self._shared is not None:
            self._shared.kill()


class Switches:
    """The faults of one server's engine, on and off; `launcher.py` says which there are."""

    def __init__(self, server: Server) -> None:
        environ = Path(f"/proc/{server.process.pid}/environ").read_bytes().split(b"\0")
        found = [entry.partition(b"=")[2] for entry in environ if entry.startswith(b"POTSTILL_TEST_FAULTS=")]
        self._folder = Path(os.fsdecode(found[0]))

    def on(self, name: str, value: object = "") -> None:
        building = self._folder / f".{name}"
        building.write_text(str(value))
        building.replace(self._folder / name)

    def off(self, name: str) -> None:
        (self._folder / name).unlink(missing_ok=True)

    def runs(self) -> int:
        """Return how many runs of the model have begun."""
        file = self._folder / "runs"
        return file.stat().st_size if file.exists() else 0


@dataclass(slots=True)
class Good:
    """What well-behaved clients saw."""

    sent: int = 0
    answered: int = 0
    refused: int = 0
    failures: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def share(self) -> float:
        return self.answered / max(self.sent, 1)

    def __str__(self) -> str:
        p99 = np.percentile(self.seconds, 99) * 1e3 if self.seconds else float("nan")
        return f"good clients {self.answered}/{self.sent}, p99 {p99:.0f} ms"


@contextmanager
def good_clients(server: Server, *, clients: int = 2, pause: float = 0.01) -> Iterator[Good]:
    """Have clients ask good questions until the block ends; a refusal with 429 is tried again, as the header says."""
    seen, stop, lock = Good(), threading.Event(), threading.Lock()

    def run() -> None:
        connection: Connection | None = None
        while not stop.is_set():
            started = time.monotonic()
            try:
                connection = connection or Connection(server.port)
                response = connection.ask(PREDICTED)
                if response.closes:
                    connection.socket.close()
                    connection = None
            except (OSError, NoAnswer) as error:
                connection = None
                with lock:
                    seen.sent += 1
                    seen.failures.append(f"{type(error).__name__}: {error}")
                continue
            with lock:
                if response.status == 429:
                    seen.refused += 1
                else:
                    seen.sent += 1
                    seen.seconds.append(time.monotonic() - started)
                    seen.answered += response.status == 200
                    if response.status != 200:
                        seen.failures.append(str(response.status))
            stop.wait(float(response.headers.get("retry-after", 1)) if response.status == 429 else pause)
        if connection is not None:
            connection.socket.close()

    threads = [threading.Thread(target=run, daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)


def well(server: Server, *, rss_growth: int | None = None, rss_before: int = 0) -> str:
    """Assert that a server is as one that nothing has happened to; say so."""
    assert server.process.poll() is None, f"the server ended with {server.process.returncode}: {server.stderr[-400:]}"
    assert server.is_alive(), "/health/live does not say 200"
    assert server.is_ready(), "/health/ready does not say 200"
    response = server.predict(f"a good {CANARY} film")
    assert response.status == 200, f"a good request got {response.status}"
    quiet(server)
    if rss_growth is not None:
        grown = server.rss() - rss_before
        assert grown <= rss_growth, f"the resident set grew by {grown / 2**20:.0f} MiB"
    return "well afterwards"


def quiet(server: Server) -> None:
    """Assert that a server wrote no text of a client and no traceback."""
    assert CANARY not in server.stderr, "a client's text is in the log"
    assert "Traceback" not in server.stderr, f"a traceback is in the log: {server.stderr[-800:]}"
    lines = server.stderr.count("\n")
    assert lines < 500, f"{lines} lines in the log"


def is_error(response: Response, *statuses: int) -> None:
    """Assert that a response is one of these errors, in the one shape, without a client's text."""
    assert response.status in statuses, f"{response.status} instead of {statuses}: {response.body[:120]!r}"
    content = response.json()
    assert sorted(content) == ["error", "error_type"], f"keys {sorted(content)}"
    assert all(isinstance(value, str) and value for value in content.values()), content
    assert CANARY.encode() not in response.body, "a client's text is in an error"
    assert response.headers.get("content-type", "").startswith("application/json"), response.headers


def clean_end(error: NoAnswer) -> None:
    """Assert that a connection ended between two responses, and did not hang."""
    assert not isinstance(error, Hang), f"hang: {error}"
    assert not error.partial, f"half a response: {error}"


def refused_to_start(error: Ended, *codes: int) -> None:
    """Assert that a server that did not start ended with one of these codes and no traceback."""
    assert error.code in codes, f"exit {error.code}: {error.stderr[-300:]}"
    assert "Traceback" not in error.stderr, error.stderr[-600:]


def answer_of(data: bytes, server: Server, *, seconds: float = 20.0) -> Response | None:
    """Return the response to raw bytes after which the client is silent; None if the server closed without one.

    Raises:
        AssertionError: if neither comes, or half a response.
    """
    with Connection(server.port, seconds=seconds) as connection:
        connection.send(data)
        try:
            return connection.read()
        except NoAnswer as error:
            clean_end(error)
            return None


def wait_for(what: Callable[[], bool], *, seconds: float) -> float:
    """Return after how many seconds `what` was true.

    Raises:
        AssertionError: if it never was.
    """
    started = time.monotonic()
    while not what():
        assert time.monotonic() - started < seconds, f"not within {seconds} s"
        time.sleep(0.02)
    return time.monotonic() - started


@contextmanager
def tiny_bundle() -> Iterator[Path]:
    """Give a bundle small enough for every test: a classifier of three labels, in fp32 and dynamic int8."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    from potstill.bundle import MODEL_FILES
    from tests.serve import conftest

    with TemporaryDirectory() as scratch:
        folder = Path(scratch) / "tiny-onnx"
        (folder / "onnx").mkdir(parents=True)
        conftest.write_tokenizer(folder / "tokenizer.json")
        (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": conftest.MAX_LENGTH}))
        conftest.write_graph(folder / MODEL_FILES["fp32"])
        quantize_dynamic(folder / MODEL_FILES["fp32"], folder / MODEL_FILES["int8"], weight_type=QuantType.QInt8)
        conftest.seal(folder)
        yield folder
