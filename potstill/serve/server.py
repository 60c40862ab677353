"""One process that serves: its port, its signals, its end."""

import errno
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from potstill.errors import MissingError, UsageError
from potstill.serve.encoder import Encoder
from potstill.serve.http import create_app
from potstill.serve.limits import Limits

_DEFAULTS = Limits()


def bind(host: str = "127.0.0.1", port: int = 8000) -> socket.socket:
    """Reserve an address, before anything slow is loaded; port 0 takes a free one.

    Raises:
        UsageError: if `host` is not an address of this machine.
        MissingError: if the port is in use or not allowed.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise UsageError(f"host {host!r} is not known; use 127.0.0.1, or 0.0.0.0 for every network") from error
    # asyncio sends without delay only where the protocol is named: without it a small answer waits 40 ms for an ACK.
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _not_bound(error, host, port) from error
    return listener


def serve(encoder: Encoder, listener: socket.socket, *, limits: Limits = _DEFAULTS) -> None:
    """Answer on `listener` until SIGTERM or Ctrl-C, then finish what was accepted and return.

    Raises:
        CheckError: if the model does not answer when it is tried before the port opens.
        MissingError: if somebody else took the port after `bind`.
    """
    config = uvicorn.Config(
        create_app(encoder, limits=limits),
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,  # a client's text may be in a URL
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=limits.shutdown_seconds,
    )
    server = uvicorn.Server(config)
    host, port = listener.getsockname()[:2]
    with _ends_in_peace(server):
        try:
            server.run(sockets=[listener])
        except OSError as error:
            raise _not_bound(error, host, port) from error
        finally:
            listener.close()


@contextmanager
def _ends_in_peace(server: uvicorn.Server) -> Iterator[None]:
    """Let a signal stop the server and nothing more.

    uvicorn raises the signal again after its graceful end, which would kill this process with a signal's status
    instead of exit code 0.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, server.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _not_bound(error: OSError, host: str, port: int) -> MissingError | UsageError:
    if error.errno == errno.EADDRINUSE:
        return MissingError(f"port {port} of {host} is in use; end the process that has it, or pass another --port")
    if error.errno in {errno.EACCES, errno.EPERM}:
        return MissingError(f"port {port} of {host} is not allowed to this user; pass a --port above 1023")
    return UsageError(f"{host} is not an address of this machine: {error.strerror}; use 127.0.0.1 or 0.0.0.0")
