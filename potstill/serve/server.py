"""One process that serves: starting, ready, draining, stopped.

starting   the port is open and /health/live says yes; everything else gets 503 until the models are loaded
ready      requests are answered
draining   after SIGTERM: /health/ready says no at once; for `drain_seconds` everything else goes on, but every
           answer ends its connection; then nobody is let in any more, and what was begun is finished
stopped    exit code 0. Ctrl-C is SIGTERM without `drain_seconds`; a second signal ends the process at once
"""

import asyncio
import gc
import resource
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, TypeAlias

import uvicorn

from potstill.serve.http_errors import RequestError, unavailable
from potstill.serve.limits import Limits
from potstill.serve.logging import log_failure
from potstill.serve.wire import Connection, guarded
from potstill.serve.wire.listening import Acceptor, bind, listen

__all__ = ["Server", "bind", "serve"]

App: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]

_DEFAULTS = Limits()
_SWITCH_SECONDS = 0.0005
"""A thread that comes back from the model asks the event loop's for the interpreter, and gets it after this time;
Python's own 5 ms would be added to every answer while the loop is busy."""
_SPARE_FILES = 128
"""File descriptors that are not of the cap: of connections that are ending or only now let in, logs, models."""
_FRESH_SECONDS = 1.0
"""How long a connection that was in line when the server ended may take to send its first byte."""
_LOOK_SECONDS = 0.02
# How long the engine's threads may take to end once nobody waits; one that hangs does not keep the process.
_CLOSE_SECONDS = 0.5
_FLUSH_SECONDS = 0.5
"""How long the very last answers may take to leave."""


class Engine(Protocol):
    """The part of `potstill.serve.batching.Engine` that the process needs."""

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to work."""

    def drain(self) -> None:
        """Take no more."""

    async def close(self, *, timeout_s: float) -> Any:
        """End, within about this time."""


Loaded: TypeAlias = tuple[Engine, App]


def serve(
    listener: socket.socket,
    load: Callable[[], Loaded],
    *,
    limits: Limits = _DEFAULTS,
    on_ready: Callable[[], None] | None = None,
) -> None:
    """Answer on `listener` until SIGTERM or Ctrl-C, then finish what was accepted and return.

    Args:
        listener: from `bind`.
        load: returns a warm engine and the application in front of it; it runs in a thread, while the port is open.
        limits: the caps.
        on_ready: called when requests are answered.

    Raises:
        MissingError: if somebody else took the port after `bind`.
        PotstillError: whatever `load` raises.
    """

    def ready() -> None:
        # What is loaded stays; the garbage collector need not look at it in the middle of a request.
        gc.collect()
        gc.freeze()
        if on_ready is not None:
            on_ready()

    before = sys.getswitchinterval()
    _raise_file_limit()
    sys.setswitchinterval(_SWITCH_SECONDS)
    try:
        with listener:
            listen(listener)
            Server(listener, load, limits=limits, on_ready=ready).run_to_the_end()
    finally:
        sys.setswitchinterval(before)
        gc.unfreeze()


class Server(uvicorn.Server):
    """uvicorn's server, with our own way to accept connections and to end."""

    def __init__(
        self,
        listener: socket.socket,
        load: Callable[[], Loaded],
        *,
        limits: Limits = _DEFAULTS,
        on_ready: Callable[[], None] | None = None,
    ) -> None:
        protocol = guarded(limits)
        self.hub = protocol.hub
        self.hub.most = _connections(limits)
        self._gate = _Gate(self.hub)
        config = uvicorn.Config(
            self._gate,
            http=protocol,
            ws="none",
            interface="asgi3",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,  # a client's text may be in a URL
            proxy_headers=False,
            server_header=False,
        )
        super().__init__(config)
        self._protocol = protocol
        self._listener = listener
        self._load = load
        self._limits = limits
        self._on_ready = on_ready
        self._drain_seconds = 0.0
        self._signalled = False
        self._failure: BaseException | None = None
        self._engine: Engine | None = None
        self._acceptor: Acceptor | None = None
        self._loader = threading.Thread(target=self._run_load, name="potstill-load", daemon=True)

    def run_to_the_end(self) -> None:
        """Run until a signal or a failure.

        Raises:
            PotstillError: whatever `load` raised.
        """
        self.run(sockets=[])
        self._loader.join(self._limits.shutdown_seconds)
        if self._failure is not None:
            raise self._failure

    def stop(self, *, drain_seconds: float) -> None:
        """Begin to end; ready says no from now on."""
        self.hub.draining = True
        self._drain_seconds = drain_seconds
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal: the first asks, the second tells."""
        if self._signalled:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        self._signalled = True
        # uvicorn's own would raise the signal again after the end, and the exit code would be the signal's.
        self.stop(drain_seconds=0.0 if sig == signal.SIGINT else self._limits.drain_seconds)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the door, then load behind it."""
        await super().startup(sockets=[])
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(_log_loop_failure)
        connection = partial(
            self._protocol, config=self.config, server_state=self.server_state, app_state={}, _loop=self._loop
        )
        self._acceptor = Acceptor(self._listener, connection, make_place=self.hub.make_place)
        self._loader.start()

    def _run_load(self) -> None:
        try:
            loaded = self._load()
        except BaseException as error:
            self._failure = error
            self.should_exit = True
            return
        # The loop may have ended meanwhile, by a signal.
        with _unless_closed():
            self._loop.call_soon_threadsafe(self._begin, loaded)

    def _begin(self, loaded: Loaded) -> None:
        if self.should_exit:
            return
        self._engine, app = loaded
        self._engine.start(self._loop)
        self._gate.app = app
        if self._on_ready is not None:
            self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain and stop instead of uvicorn, within `drain_seconds` and `shutdown_seconds`."""
        self.hub.draining = True
        if self._engine is not None:
            await asyncio.sleep(self._drain_seconds)
        if self._acceptor is not None:
            await self._acceptor.close()
        await self._finish(self._limits.shutdown_seconds)
        if self._engine is not None:
            self._engine.drain()
        for connection in self._connections():
            connection.cut()
        await self._finish(_FLUSH_SECONDS)
        for connection in self._connections():
            connection.cut()
        if self._engine is not None:
            await self._engine.close(timeout_s=_CLOSE_SECONDS)

    async def _finish(self, seconds: float) -> None:
        """Wait for what was begun; close what waits for a client that has sent nothing."""
        end = self._loop.time() + seconds
        while self.server_state.connections and self._loop.time() < end:
            for connection in self._connections():
                connection.finish_fresh(_FRESH_SECONDS)
                connection.close_if_idle()
            await asyncio.sleep(_LOOK_SECONDS)

    def _connections(self) -> list[Connection]:
        return [connection for connection in self.server_state.connections if isinstance(connection, Connection)]


class _Gate:
    """The application until there is one, and what every application must say of a server that ends."""

    def __init__(self, hub: Any) -> None:
        self.app: App | None = None
        self._hub = hub

    def __call__(self, scope: Any, receive: Any, send: Any) -> Awaitable[None]:
        """Let the application answer, or answer."""
        if self.app is not None and not (self._hub.draining and _asks_if_ready(scope["path"])):
            return self.app(scope, receive, send)
        return self._answer(scope, send)

    async def _answer(self, scope: Any, send: Any) -> None:
        if self.app is None and scope["path"] in {"/health/live", "/v2/health/live"}:
            await _answer(send, 200, b'{"status":"ok"}', {})
        else:
            error = unavailable("the server is ending" if self.app else "the models are being loaded")
            await _answer_error(send, error)


def _asks_if_ready(path: str) -> bool:
    return path in {"/health", "/health/ready"} or (path.startswith("/v2/") and path.endswith("/ready"))


async def _answer_error(send: Any, error: RequestError) -> None:
    import json

    await _answer(send, error.status, json.dumps(error.content()).encode(), error.headers)


async def _answer(send: Any, status: int, body: bytes, headers: dict[str, str]) -> None:
    fields = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    fields += [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})


def _log_loop_failure(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log in one line what asyncio would log with a traceback and the data that it failed on."""
    error = context.get("exception")
    if error is not None:
        log_failure("the event loop failed on a connection", error)
    else:
        loop.default_exception_handler(context)


@contextmanager
def _unless_closed() -> Iterator[None]:
    try:
        yield
    except RuntimeError:
        return


def _raise_file_limit() -> None:
    """Allow as many open files as this process may allow itself; a shell often gives 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            return  # macOS names no number that it would take


def _connections(limits: Limits) -> int:
    """Return how many connections may be open: the limit, or what the file descriptors leave."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return limits.connections
    used = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").is_dir() else 32
    return max(8, min(limits.connections, soft - used - _SPARE_FILES))
