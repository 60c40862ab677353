"""The server process: its sockets, uvicorn, and its life from start to stop.

starting   the port is open and /health/live says yes; everything else gets 503 until the models are loaded
ready      requests are answered
draining   after SIGTERM: /health/ready says no at once; for `drain_seconds` everything else goes on, but every
           answer closes its connection; then no connection is accepted any more, and accepted requests are finished
stopped    exit code 0. Ctrl-C is SIGTERM without `drain_seconds`; a second signal ends the process at once
"""

import asyncio
import contextlib
import errno
import gc
import resource
import signal
import socket
import stat
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, TypeAlias

import uvicorn
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from potstill.errors import MissingError, UsageError
from potstill.serve.http.protocol import HttpProtocol
from potstill.serve.http_errors import error_response, unavailable
from potstill.serve.limits import Limits
from potstill.serve.logging import log_failure

__all__ = ["Server", "bind", "bind_unix", "serve"]

_DEFAULTS = Limits()
# A thread that returns from the model waits this long before it demands the GIL (sys.setswitchinterval). Python's own
# 5 ms would be added to every answer while the event loop is busy.
_SWITCH_SECONDS = 0.0005
# File descriptors left for other things than connections: those being accepted, logs, models.
_SPARE_FILES = 128
_SWEEP_SECONDS = 0.1
# How long the last bytes may take to leave, and how long the engine's threads may take to end once nobody waits: a hung
# thread does not keep the process.
_FLUSH_SECONDS = 0.5
_CLOSE_SECONDS = 0.5


class Engine(Protocol):
    """The part of `potstill.serve.batching.Engine` that the process needs."""

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start its threads; answers are delivered on this loop."""

    def drain(self) -> None:
        """Refuse new requests."""

    async def close(self, *, timeout_s: float) -> object:
        """End its threads, waiting at most this long."""


Loaded: TypeAlias = tuple[Engine, ASGIApp]


def bind(host: str = "127.0.0.1", port: int = 8000) -> socket.socket:
    """Return a socket that listens on an address; port 0 takes a free one.

    Called before models are loaded, so that a port in use is an error at once.

    Raises:
        UsageError: if `host` is not an address of this machine.
        MissingError: if the port is in use or not allowed.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise UsageError(f"host {host!r} is not known; use 127.0.0.1, or 0.0.0.0 for every network") from error
    # The protocol must be named: asyncio sets TCP_NODELAY only then, and with Nagle's algorithm a small answer waits
    # 40 ms for an ACK (docs/log.md).
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen()
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            message = f"port {port} of {host} is in use; end the process that has it, or pass another --port"
            raise MissingError(message) from error
        if error.errno in {errno.EACCES, errno.EPERM}:
            message = f"port {port} of {host} is not allowed to this user; pass a --port above 1023"
            raise MissingError(message) from error
        raise UsageError(
            f"{host} is not an address of this machine: {error.strerror}; use 127.0.0.1 or 0.0.0.0"
        ) from error
    return listener


def bind_unix(path: Path) -> socket.socket:
    """Return a Unix socket that listens at `path`, with mode 0600; a file that no process listens on is replaced.

    Raises:
        MissingError: if a process listens there.
        UsageError: if something else is there, or no file can be made.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.exists():
            if not stat.S_ISSOCK(path.stat().st_mode):
                raise UsageError(f"{path} is there and is no socket; pass another --uds")
            # A process that was killed leaves the file behind, and bind would refuse it: only connecting tells.
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
                if other.connect_ex(str(path)) == 0:
                    raise MissingError(f"a process listens on {path}; end it, or pass another --uds")
            path.unlink()
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen()
    except OSError as error:
        listener.close()
        raise UsageError(f"no socket can be made at {path}: {error.strerror or error}") from error
    except (UsageError, MissingError):
        listener.close()
        raise
    return listener


def serve(
    listener: socket.socket,
    load: Callable[[], Loaded],
    *,
    limits: Limits = _DEFAULTS,
    on_ready: Callable[[], None] | None = None,
    tls: tuple[Path, Path] | None = None,
    root_path: str = "",
) -> None:
    """Answer on `listener` until SIGTERM or Ctrl-C, then finish accepted requests and return.

    Args:
        listener: from `bind` or `bind_unix`; it is closed at the end.
        load: returns a warm engine and its application; it runs in a thread, while the port is open already.
        limits: limits of sizes, counts and times.
        on_ready: called on the event loop once requests are answered.
        tls: the files of the certificate with its chain and of the key, for HTTPS.
        root_path: the path under which a proxy in front shows this server, and which the proxy strips.

    Raises:
        UsageError: if the files for TLS cannot be used.
        PotstillError: whatever `load` raises.
    """

    def ready() -> None:
        # What is loaded stays for good, so a full collection in the middle of a request need not walk it.
        gc.collect()
        gc.freeze()
        if on_ready is not None:
            on_ready()

    path = listener.getsockname() if listener.family == socket.AF_UNIX else None
    before = sys.getswitchinterval()
    _raise_file_limit()
    sys.setswitchinterval(_SWITCH_SECONDS)
    try:
        with listener:
            Server(listener, load, limits=limits, on_ready=ready, tls=tls, root_path=root_path).run_to_the_end()
    finally:
        sys.setswitchinterval(before)
        gc.unfreeze()
        if path is not None:
            Path(path).unlink(missing_ok=True)


class Server(uvicorn.Server):
    """uvicorn's server, which also loads behind an open port, enforces deadlines, and drains before it ends."""

    def __init__(
        self,
        listener: socket.socket,
        load: Callable[[], Loaded],
        *,
        limits: Limits = _DEFAULTS,
        on_ready: Callable[[], None] | None = None,
        tls: tuple[Path, Path] | None = None,
        root_path: str = "",
    ) -> None:
        # All connections share it: the one that has waited longest is closed when there are too many.
        waiting: OrderedDict[HttpProtocol, None] = OrderedDict()
        self._protocol = partial(
            HttpProtocol, limits=limits, most_connections=_most_connections(limits), waiting=waiting
        )
        config = uvicorn.Config(
            _answer_while_loading,
            http=self._protocol,  # type: ignore[arg-type]  # it is called as the class would be
            ws="none",
            interface="asgi3",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,  # a client's text may be in a URL
            proxy_headers=False,  # any client can write X-Forwarded-For
            server_header=False,
            root_path=root_path,
            ssl_certfile=None if tls is None else str(tls[0]),
            ssl_keyfile=None if tls is None else str(tls[1]),
            timeout_keep_alive=limits.idle_seconds,  # type: ignore[arg-type]  # seconds need not be whole
            timeout_graceful_shutdown=limits.shutdown_seconds,  # type: ignore[arg-type]
        )
        try:
            config.load()
        except OSError as error:  # ssl's errors are such
            raise UsageError(f"--tls-cert and --tls-key cannot be used: {error.strerror or error}") from error
        super().__init__(config)
        self._listener = listener
        self._load = load
        self._limits = limits
        self._on_ready = on_ready
        self._exit_at: float | None = None
        self._failure: BaseException | None = None
        self._engine: Engine | None = None
        self._loader = threading.Thread(target=self._run_load, name="potstill-load", daemon=True)

    def run_to_the_end(self) -> None:
        """Run until a signal or a failure.

        Raises:
            PotstillError: whatever `load` raised.
        """
        self.run(sockets=[self._listener])
        self._loader.join(self._limits.shutdown_seconds)
        if self._failure is not None:
            raise self._failure

    def stop(self, *, drain_seconds: float) -> None:
        """Begin to end: /health/ready says no from now on, and the server stops after `drain_seconds`."""
        self.lifespan.state["draining"] = True
        self._exit_at = self._loop.time() + (drain_seconds if self._engine is not None else 0.0)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain and stop at the first signal; let a second one kill the process."""
        if self._exit_at is not None:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        # uvicorn's own handler raises the signal again after the end, and the exit code would be the signal's, not 0.
        self.stop(drain_seconds=0.0 if sig == signal.SIGINT else self._limits.drain_seconds)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the port, then load behind it."""
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(_log_loop_failure)
        # Not uvicorn's startup, which leaves a TLS handshake asyncio's 60 s.
        self.servers = [
            await self._loop.create_server(
                self._make_protocol, sock=self._listener, backlog=self.config.backlog, **self._tls_settings()
            )
        ]
        self.started = True
        self._sweeper = self._loop.create_task(self._sweep())
        self._loader.start()

    def _run_load(self) -> None:
        try:
            loaded = self._load()
        except BaseException as error:
            self._failure = error
            self.should_exit = True
            return
        with contextlib.suppress(RuntimeError):  # a signal has ended the loop meanwhile
            self._loop.call_soon_threadsafe(self._begin, loaded)

    def _begin(self, loaded: Loaded) -> None:
        if self._exit_at is not None:
            return
        self._engine, self.config.loaded_app = loaded
        self._engine.start(self._loop)
        if self._on_ready is not None:
            self._on_ready()

    async def _sweep(self) -> None:
        """End connections and requests whose deadline has passed: one timer for all costs less than one for each."""
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            now = self._loop.time()
            for connection in list(self.server_state.connections):
                if isinstance(connection, HttpProtocol) and min(connection.deadline, connection.write_deadline) <= now:
                    try:
                        connection.expire()
                    except Exception as error:  # an error of one connection must not end the sweep of all
                        log_failure("a connection could not be ended", error)

    async def on_tick(self, counter: int) -> bool:
        """Return whether the server should exit; uvicorn calls this ten times a second."""
        is_over = self._exit_at is not None and self._loop.time() >= self._exit_at
        return await super().on_tick(counter) or is_over

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the listener, finish accepted requests within `shutdown_seconds`, and close the engine."""
        self.lifespan.state["draining"] = True
        # Closing a listening socket resets the connections in its backlog, which may have sent requests already: accept
        # them first, in the same turn of the loop (docs/log.md: 0 to 1 of 6 clients were reset then, 5 of 6 before).
        in_line = list(_accept_all(self._listener))
        entering = asyncio.gather(*(self._let_in(connection) for connection in in_line), return_exceptions=True)
        await super().shutdown(sockets)
        await entering
        end = self._loop.time() + _FLUSH_SECONDS
        while self.server_state.connections and self._loop.time() < end:
            await asyncio.sleep(_SWEEP_SECONDS / 10)
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        self._sweeper.cancel()  # not before: it enforces the deadlines that `HttpProtocol.shutdown` has set
        if self._engine is not None:
            self._engine.drain()
            await self._engine.close(timeout_s=_CLOSE_SECONDS)

    async def _let_in(self, connection: socket.socket) -> None:
        await self._loop.connect_accepted_socket(self._make_protocol, connection, **self._tls_settings())

    def _make_protocol(self) -> HttpProtocol:
        return self._protocol(
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
            _loop=self._loop,
        )

    def _tls_settings(self) -> dict[str, Any]:
        """Return the arguments of asyncio for TLS, whose handshake has the time of a head; none without TLS."""
        if self.config.ssl is None:
            return {}
        return {"ssl": self.config.ssl, "ssl_handshake_timeout": self._limits.header_seconds}


def _accept_all(listener: socket.socket) -> Iterator[socket.socket]:
    """Yield the connections that wait in the listener's backlog."""
    listener.setblocking(False)
    with contextlib.suppress(OSError):  # BlockingIOError: the backlog is empty
        while True:
            yield listener.accept()[0]


async def _answer_while_loading(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["path"].removeprefix(scope["root_path"]) in {"/health/live", "/v2/health/live"}:
        await JSONResponse({"status": "ok"})(scope, receive, send)
    else:
        error = unavailable("the models are being loaded")
        await error_response(error, path=scope["path"])(scope, receive, send)


def _log_loop_failure(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log a failure in one line; asyncio's own handler logs a traceback and the data that it failed on."""
    error = context.get("exception")
    if error is not None:
        log_failure("the event loop failed on a connection", error)
    else:
        loop.default_exception_handler(context)


def _raise_file_limit() -> None:
    """Raise the soft limit of open files to the hard one; a shell often gives 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):  # macOS reports a hard limit that setrlimit refuses
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _most_connections(limits: Limits) -> int:
    """Return how many connections may be open: `limits.connections`, or what the file descriptors allow."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return limits.connections
    # /proc/self/fd is Linux's; elsewhere 32 stands for what is open at the start.
    used = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").is_dir() else 32
    return max(8, min(limits.connections, soft - used - _SPARE_FILES))
