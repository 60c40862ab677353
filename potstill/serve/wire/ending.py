"""How a connection ends: with an answer, by its client's time being over, or because others need the place."""

import asyncio
from math import inf
from typing import Any

from potstill.serve.http_errors import RequestError, unavailable
from potstill.serve.limits import Limits
from potstill.serve.wire.exchange import Exchange
from potstill.serve.wire.hub import Hub
from potstill.serve.wire.parts import LINGER_SECONDS, Phase
from potstill.serve.wire.replies import error_bytes, refuse
from potstill.serve.wire.sockets import reset, unread_bytes


class Ending:
    """The part of a connection that ends it; the rest of its state is `Connection`'s."""

    hub: Hub
    deadline: float
    held: int
    phase: int
    _ahead: bytearray
    _begun: bool
    _exchange: Exchange | None
    _limits: Limits
    _loop: asyncio.AbstractEventLoop
    _reading: bool
    _server_state: Any
    _transport: asyncio.Transport
    _unread: asyncio.Future[None] | None

    def _forget_body(self) -> None:
        if self.held:
            self.hub.buffer(-self.held)
            self.held = 0

    def write(self, data: bytes) -> None:
        """Send it, or keep it to be sent."""
        self._transport.write(data)

    def fields(self) -> bytes:
        """Return the header lines that every response has."""
        return self.hub.lines_of(self._server_state.default_headers)

    def refuse(self, error: RequestError) -> None:
        """Answer with an error and end the connection."""
        if self.phase == Phase.CLOSING:
            return
        exchange = self._exchange
        self._forget_body()
        if exchange is not None:
            exchange.cancel()
            if exchange.head_sent and not exchange.complete:
                reset(self._transport)  # half of an answer is out, and an end could be taken for its end
                return
        if exchange is None or not exchange.complete:
            self.hub.refused[error.status] += 1
            with_body = exchange is None or exchange.scope["method"] != "HEAD"
            self.write(error_bytes(error, fields=self.fields(), with_body=with_body))
        self._close_gently()

    def _answered_early(self) -> bool:
        return self._exchange is not None and self._exchange.complete

    def _close_gently(self) -> None:
        """Send what there is, say that it was the last, and wait for the client to see it."""
        self._forget_body()
        self.phase = Phase.CLOSING
        self._ahead = bytearray()
        transport = self._transport
        seconds = self._limits.write_seconds if transport.get_write_buffer_size() else LINGER_SECONDS
        self.deadline = self._loop.time() + seconds
        self.hub.ends(self)
        if transport.is_closing():
            return
        transport.write_eof()
        if not self._reading:
            self._reading = True
            transport.resume_reading()

    def expire(self) -> None:
        """End it: the client has had its time."""
        self.deadline = inf
        if self.phase == Phase.CLOSING or self._unread is not None or self._transport.get_write_buffer_size():
            reset(self._transport)  # else the kernel would go on offering what it has
        elif self.phase == Phase.HEAD and self._begun:
            self.refuse(refuse(408, "timeout", f"the headers took over {self._limits.header_seconds:g} s"))
        elif self.phase == Phase.BODY and not self._answered_early():
            self.refuse(refuse(408, "timeout", f"the body took over {self._limits.body_seconds:g} s"))
        elif not self.close_if_idle():
            self._transport.close()

    def evict(self) -> None:
        """End it: others need the place."""
        if self.phase == Phase.CLOSING or self._unread is not None:
            reset(self._transport)
        elif self.phase == Phase.IDLE:
            self._transport.close()
        else:
            self.refuse(unavailable("there are too many connections"))

    def close_if_idle(self) -> bool:
        """Close it if it is between two requests and no byte of a next one has reached this machine."""
        if self.phase != Phase.IDLE:
            return False
        if unread_bytes(self._transport):
            self.deadline = self._loop.time() + self._limits.header_seconds  # it will be read in this turn of the loop
        else:
            self._transport.close()
        return True

    def finish_fresh(self, seconds: float) -> None:
        """Give a connection without a request this much time for the first byte."""
        if self.phase == Phase.FRESH:
            self.deadline = min(self.deadline, self._loop.time() + seconds)

    def cut(self) -> None:
        """End it now; whoever still waits for an answer is told so."""
        if self.phase in {Phase.FRESH, Phase.IDLE, Phase.CLOSING}:
            self._transport.abort()
        else:
            self.refuse(unavailable("the server ended before this was answered"))
