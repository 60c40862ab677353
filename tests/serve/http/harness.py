"""A real server in a thread, raw clients, and a probe that asks all the while whether it lives."""

import asyncio
import json
import re
import socket
import threading
from contextlib import contextmanager, suppress
from time import monotonic, sleep

from potstill.serve.limits import Limits
from potstill.serve.server import Server, bind

QUICK = Limits(
    header_seconds=0.4, body_seconds=0.4, idle_seconds=0.6, write_seconds=0.4, shutdown_seconds=3.0, drain_seconds=0.1
)

PROBE_SECONDS = 3.0
"""A probe that takes longer has failed; machines that are full have held one up for over a second."""


class NoEngine:
    """An engine that has nothing to do."""

    def start(self, loop):
        self.started = True

    def drain(self):
        self.drained = True

    async def close(self, *, timeout_s):
        self.closed = True


class Echo:
    """An application that tells what it was asked, waits where told, and counts who was cancelled."""

    def __init__(self):
        self.seen = []
        self.cancelled = 0
        self.running = 0
        self.hold = None

    async def __call__(self, scope, receive, send):
        self.running += 1
        try:
            await getattr(self, scope["path"].strip("/").replace("/", "_") or "echo", self.echo)(scope, receive, send)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    async def answer(self, send, body, status=200, headers=()):
        fields = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *headers]
        await send({"type": "http.response.start", "status": status, "headers": fields})
        await send({"type": "http.response.body", "body": body})

    async def health_live(self, scope, receive, send):
        await self.answer(send, b"alive")

    async def health_ready(self, scope, receive, send):
        draining = scope["state"].get("draining")
        error = b'{"error": "ending", "error_type": "unavailable"}'
        await self.answer(send, error if draining else b"ready", 503 if draining else 200)

    async def echo(self, scope, receive, send):
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message["body"], message["more_body"]
        self.seen.append({**scope, "headers": list(scope["headers"]), "body": body})
        await self.answer(send, body or b"nothing")

    async def unread(self, scope, receive, send):
        await self.answer(send, b"refused", 429)

    async def slow(self, scope, receive, send):
        await receive()
        await asyncio.sleep(0.3)
        await self.answer(send, b"slow")

    async def stall(self, scope, receive, send):
        sleep(0.6)
        await self.answer(send, b"stalled")

    async def held(self, scope, receive, send):
        await receive()
        await asyncio.sleep(30)

    async def big(self, scope, receive, send):
        await self.answer(send, b"x" * 20_000_000)

    async def stream(self, scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for part in (b"one", b"", b"two"):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def plain(self, scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"plain"})

    async def none(self, scope, receive, send):
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    async def broken(self, scope, receive, send):
        raise ValueError("the private text of a client")

    async def half(self, scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"10")]})
        await send({"type": "http.response.body", "body": b"12345", "more_body": True})
        raise ValueError("the private text of a client")

    async def endless(self, scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(64):
            await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})

    async def loop(self, scope, receive, send):
        def fail():
            raise ValueError("the private text of a client")

        asyncio.get_running_loop().call_soon(fail)
        await self.plain(scope, receive, send)

    async def silent(self, scope, receive, send):
        return

    async def long(self, scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"12345"})

    async def split(self, scope, receive, send):
        await self.answer(send, b"x", headers=[(b"x-evil", b"1\r\nset-cookie: 2")])

    async def leave(self, scope, receive, send):
        await self.answer(send, b"bye", headers=[(b"Connection", b"close")])

    async def watch(self, scope, receive, send):
        await receive()
        self.seen.append(await receive())


class Running:
    """A server in a thread of this process."""

    limits = Limits()

    def __init__(self, app, limits, load=None, tls=None):
        self.app, self.limits = app, limits
        self.listener = bind("127.0.0.1", 0)
        self.port = self.listener.getsockname()[1]
        self.engine = NoEngine()
        self.ready = threading.Event()
        self.server = Server(
            self.listener, load or (lambda: (self.engine, app)), limits=limits, on_ready=self.ready.set, tls=tls
        )
        self.thread = threading.Thread(target=self.server.run_to_the_end)
        self.thread.start()

    @property
    def connections(self):
        return self.server.server_state.connections

    def stop(self, drain_seconds=0.0):
        self.server.stop(drain_seconds=drain_seconds)
        self.thread.join(10)
        assert not self.thread.is_alive()

    def connect(self, timeout=5.0):
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout)

    def ask(self, raw, *, methods=("GET",), timeout=5.0):
        """Send bytes, and read as many answers as methods."""
        answers, late = [], True
        while late and not answers:  # on a full machine this thread may be late itself, and is hung up on then
            started = monotonic()
            with self.connect(timeout) as client:
                client.sendall(raw)
                late = monotonic() - started >= self.limits.header_seconds
                answers = read_answers(client, methods)
        return answers[0] if len(answers) == 1 else answers


@contextmanager
def serving(app=None, limits=QUICK, load=None, tls=None):
    """Run a server while the block runs; its end is part of the test."""
    running = Running(app or Echo(), limits, load, tls)
    try:
        assert load is not None or running.ready.wait(5)
        yield running
    finally:
        running.stop()
        assert running.connections == set()


class Answer:
    """One response."""

    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    @property
    def error_type(self):
        """Return the kind of an error, after checking that it has the one shape."""
        content = json.loads(self.body)
        assert set(content) == {"error", "error_type"}, content
        assert self.headers["content-type"] == "application/json"
        return content["error_type"]

    @property
    def closes(self):
        return self.headers.get("connection") == "close"


class Reader:
    """Reads whole answers from a socket."""

    def __init__(self, client):
        self.client, self.buffer = client, b""

    def more(self):
        data = self.client.recv(65536)
        if not data:
            raise EOFError
        self.buffer += data

    def take(self, length):
        while len(self.buffer) < length:
            self.more()
        taken, self.buffer = self.buffer[:length], self.buffer[length:]
        return taken

    def take_until(self, end):
        while end not in self.buffer:
            self.more()
        return self.take(self.buffer.index(end) + len(end))

    def take_all(self):
        try:
            while True:
                self.more()
        except EOFError:
            return self.take(len(self.buffer))

    def answer(self, method):
        lines = self.take_until(b"\r\n\r\n").decode("latin-1").rstrip().split("\r\n")
        status = int(re.fullmatch(r"HTTP/1\.1 (\d{3}) .*", lines[0])[1])
        headers = dict(line.lower().split(": ", 1) for line in lines[1:])
        if method == "HEAD" or status in (100, 204, 304):
            body = b""
        elif headers.get("transfer-encoding") == "chunked":
            body = self.take_until(b"0\r\n\r\n")
        elif "content-length" in headers:
            body = self.take(int(headers["content-length"]))
        else:
            body = self.take_all()
        return Answer(status, headers, body)


def read_answers(client, methods=("GET",)):
    """Read whole answers, one per method; fewer if the server closes before."""
    answers, reader = [], Reader(client)
    with suppress(EOFError, ConnectionError):
        for method in methods:
            answers.append(reader.answer(method))
    assert reader.buffer == b"" or len(answers) < len(methods), reader.buffer
    return answers


def is_closed(client, within=3.0):
    """Return whether the server ends the connection in time, and sends nothing more."""
    client.settimeout(within)
    try:
        return client.recv(65536) == b""
    except ConnectionError:
        return True
    except TimeoutError:
        return False


@contextmanager
def probing(running):
    """Ask /health/live all the while; every answer must be there in time. Gives the list of how long each took."""
    stop, took, failures = threading.Event(), [], []

    def probe():
        while not stop.is_set():
            started = monotonic()
            try:
                answer = running.ask(
                    b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", timeout=PROBE_SECONDS
                )
                assert answer.status == 200
            except Exception as error:
                failures.append(repr(error))
            took.append(monotonic() - started)
            sleep(0.02)

    thread = threading.Thread(target=probe)
    thread.start()
    try:
        yield took
    finally:
        stop.set()
        thread.join()
    assert not failures, failures[:3]
    assert max(took) < PROBE_SECONDS


def post(path=b"/echo", body=b"hello", extra=b""):
    return b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n%b\r\n%b" % (path, len(body), extra, body)


def get(path=b"/echo", extra=b""):
    return b"GET %b HTTP/1.1\r\nHost: localhost\r\n%b\r\n" % (path, extra)
