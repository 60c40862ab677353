"""The listening socket: bound before anything slow, accepted from in turns, closed without losing who is in line."""

import asyncio
import ctypes
import errno
import logging
import socket
import struct
import sys
from collections.abc import Callable

from potstill.errors import MissingError, UsageError

_LOG = logging.getLogger("potstill.serve")
_BACKLOG = 2048
"""Connections that the kernel keeps in line for us; uvicorn has the same."""
_AT_ONCE = 16
"""Connections taken in one turn of the event loop, so that those that are open have theirs too."""
_REST_SECONDS = 0.05
"""How long to leave the line alone when the machine has no more file descriptors."""
_HANDSHAKE_SECONDS = 0.1
"""How long a handshake that has begun may take to its end, when the line is closed."""
_FULL = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


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


def listen(listener: socket.socket) -> None:
    """Let clients stand in line.

    Raises:
        MissingError: if somebody else took the port after `bind`.
    """
    try:
        listener.listen(_BACKLOG)
    except OSError as error:
        host, port = listener.getsockname()[:2]
        raise _not_bound(error, host, port) from error
    listener.setblocking(False)


class Acceptor:
    """Takes connections from the line, a few in each turn of the loop.

    asyncio's and uvloop's own servers are not used: they take the whole line at once, when file descriptors run out
    the one logs every try and the other stops for good, and neither can be asked to empty the line before it closes.
    """

    def __init__(
        self,
        listener: socket.socket,
        factory: Callable[[], asyncio.Protocol],
        *,
        make_place: Callable[[], None],
    ) -> None:
        self._listener = listener
        self._factory = factory
        self._make_place = make_place
        self._loop = asyncio.get_running_loop()
        self._opening: set[asyncio.Task[None]] = set()
        self._rest: asyncio.TimerHandle | None = None
        self._complained = False
        self._loop.add_reader(listener, self._take)

    def _take(self) -> bool:
        """Take connections, and return whether there may be more in line."""
        for _ in range(_AT_ONCE):
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno in _FULL:
                    self._take_a_rest(error)
                    return False
                continue  # that client is gone already
            task = self._loop.create_task(self._open(connection))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)
        return True

    async def _open(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        try:
            await self._loop.connect_accepted_socket(self._factory, connection)
        except OSError:
            connection.close()

    def _take_a_rest(self, error: OSError) -> None:
        if not self._complained:
            self._complained = True
            _LOG.warning("no more connections can be opened: %s; idle ones are closed", error.strerror)
        self._make_place()
        self._loop.remove_reader(self._listener)
        self._rest = self._loop.call_later(_REST_SECONDS, self._go_on)

    def _go_on(self) -> None:
        self._rest = None
        self._loop.add_reader(self._listener, self._take)

    async def close(self) -> None:
        """Let nobody stand in line any more, take all who stand there, and close.

        Closing a listening socket resets every connection in its line, though their clients may have sent requests.
        """
        if self._rest is not None:
            self._rest.cancel()
        self._loop.remove_reader(self._listener)
        if _refuse_handshakes(self._listener):
            await asyncio.sleep(_HANDSHAKE_SECONDS)
        while self._take():
            pass
        if self._rest is not None:
            self._rest.cancel()
        self._loop.remove_reader(self._listener)
        self._listener.close()
        if self._opening:
            await asyncio.wait(self._opening)


def _refuse_handshakes(listener: socket.socket) -> bool:
    """Have the kernel drop every packet that asks for a new connection, and return whether it does.

    Those that ask will ask again, a second later, and be refused as at any closed port. It is a classic BPF program on
    the listening socket, whose packets begin with the TCP header; Linux needs no privilege for it.
    """
    if not sys.platform.startswith("linux"):
        return False
    program = b"".join(
        struct.pack("HBBI", *instruction)
        for instruction in (
            (0x30, 0, 0, 13),  # A = the byte of the flags
            (0x45, 0, 1, 0x02),  # if A & SYN
            (0x06, 0, 0, 0),  # drop it
            (0x06, 0, 0, 0xFFFFFFFF),  # else keep all of it
        )
    )
    code = ctypes.create_string_buffer(program)
    try:
        listener.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HP", 4, ctypes.addressof(code)))  # SO_ATTACH_FILTER
    except OSError:
        return False
    return True


def _not_bound(error: OSError, host: str, port: int) -> MissingError | UsageError:
    if error.errno == errno.EADDRINUSE:
        return MissingError(f"port {port} of {host} is in use; end the process that has it, or pass another --port")
    if error.errno in {errno.EACCES, errno.EPERM}:
        return MissingError(f"port {port} of {host} is not allowed to this user; pass a --port above 1023")
    return UsageError(f"{host} is not an address of this machine: {error.strerror}; use 127.0.0.1 or 0.0.0.0")
