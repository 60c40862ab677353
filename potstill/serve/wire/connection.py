"""One connection: bytes in, requests one after the other, bytes out, and a deadline for whatever its client owes.

It is an asyncio protocol that uvicorn takes as `http=`. It replaces uvicorn's own instead of inheriting from it: that
one has no deadline or cap for receiving, reads the next request before the last is answered, and answers errors in
plain text, so that little more than its constructor would be left. What it needs of uvicorn is that constructor,
`config.loaded_app`, and of `server_state` `connections`, `default_headers` and `total_requests`.
"""

import asyncio
from math import inf
from typing import Any

import httptools

from potstill.serve.http_errors import RequestError, malformed, too_large, unavailable
from potstill.serve.wire.again import Known, known
from potstill.serve.wire.ending import Ending
from potstill.serve.wire.exchange import Exchange
from potstill.serve.wire.head import RULED, Head
from potstill.serve.wire.parts import AHEAD_BYTES, BODY_PARTS, LINGER_BYTES, EmptyLines, Phase
from potstill.serve.wire.replies import refuse
from potstill.serve.wire.sockets import address_of


class Connection(Ending, asyncio.Protocol):
    """The server's side of one connection."""

    def __init__(
        self, config: Any, server_state: Any, app_state: dict[str, Any], _loop: asyncio.AbstractEventLoop | None = None
    ) -> None:
        self.deadline = inf
        self.held = 0
        self.phase = Phase.FRESH
        self._app = config.loaded_app
        self._server_state = server_state
        self._app_state = app_state
        self._loop = _loop or asyncio.get_event_loop()
        self._limits = self.hub.limits
        self._transport: asyncio.Transport = None  # type: ignore[assignment]  # until connection_made
        self._parser: Any = None
        self._head: Head = None  # type: ignore[assignment]  # until the first request
        self._head_bytes = 0
        self._head_data = b""
        """The head as it came, if that was in one piece."""
        self._known: Known | None = None
        self._begun = False
        self._parser_is_done = False
        self._upgrade = False
        self._exchange: Exchange | None = None
        self._left = 0
        self._parts = self._taken = 0
        self._lines = EmptyLines()
        self._ahead = bytearray()
        self._discarded = 0
        self._reading = True
        self._unread: asyncio.Future[None] | None = None
        """Set while the client leaves too much unread."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin."""
        self._transport = transport
        self._parser = httptools.HttpRequestParser(self)
        self._client = address_of(transport.get_extra_info("peername"))
        self._server = address_of(transport.get_extra_info("sockname"))
        self._server_state.connections.add(self)
        self.deadline = self._loop.time() + self._limits.header_seconds
        self.hub.join(self, self._loop)

    def data_received(self, data: bytes) -> None:
        """Take what has come."""
        if self.phase == Phase.CLOSING:
            self._discarded += len(data)
            if self._discarded > LINGER_BYTES:
                self._transport.abort()
        elif self.phase == Phase.ANSWERING:
            self._ahead += data
            if len(self._ahead) > AHEAD_BYTES:
                self._pause_reading()
        elif not self._is_known(data):
            self._feed(data)

    def eof_received(self) -> None:
        """Hear that the client sends no more; asyncio closes when this returns."""
        # A client that closed and one that only will not send more look the same; like Go's server, take it as gone.
        if self.phase == Phase.HEAD or (self.phase == Phase.BODY and not self._answered_early()):
            self.refuse(malformed("the request ended early"))
        elif self._exchange is not None:
            self._exchange.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        """End: whatever was begun for this client stops."""
        self._forget_body()
        self.phase = Phase.CLOSING
        self.deadline = inf
        self.hub.leave(self)
        self._server_state.connections.discard(self)
        if self._exchange is not None:
            self._exchange.cancel()
            self._exchange = None
        if self._unread is not None and not self._unread.done():
            self._unread.set_result(None)
        self._parser = None

    def pause_writing(self) -> None:
        """Hear that the client does not read."""
        self._unread = self._loop.create_future()
        self.deadline = min(self.deadline, self._loop.time() + self._limits.write_seconds)

    def resume_writing(self) -> None:
        """Hear that it has read."""
        unread, self._unread = self._unread, None
        if unread is not None and not unread.done():
            unread.set_result(None)
        if self.phase == Phase.ANSWERING:
            self.deadline = inf
            if self._exchange is not None and self._exchange.complete:
                self._next()

    def shutdown(self) -> None:
        """Begin to end, when uvicorn asks: finish what was begun, close what waits."""
        self.hub.draining = True
        self.close_if_idle()

    def _is_known(self, data: bytes) -> bool:
        """Take a whole request whose head is the last one's again; tell whether it was one."""
        known = self._known
        if known is None or self.phase != Phase.IDLE:
            return False
        found = known.body_of(data)
        if found is None or len(found[1]) > self._limits.body_bytes:
            return False
        digits, body = found
        self._ask(known.scope_of(digits), keep_alive=known.keep_alive, body=body)
        return True

    def _feed(self, data: bytes) -> None:
        """Give the parser the bytes of one request; the rest waits until that is answered."""
        at, size = 0, len(data)
        view = data if size < AHEAD_BYTES else memoryview(data)
        try:
            while at < size and self.phase != Phase.CLOSING:
                if self.phase == Phase.ANSWERING:
                    self._ahead += data[at:]
                    break
                if self.phase != Phase.BODY and self.phase != Phase.HEAD:
                    self._begin()
                end = self._end_of_part(data, at)
                if self.phase == Phase.HEAD:
                    self._head_data = data[at:end] if self._head_bytes == 0 else b""
                    self._head_bytes += end - at
                    if self._head_bytes > self._limits.header_bytes:
                        self._refuse_head(data[at:end])
                try:
                    self._parser.feed_data(view if end - at == size else view[at:end])
                except httptools.HttpParserUpgrade:
                    self._feed_without_upgrade()
                at = end
        except httptools.HttpParserError as error:
            cause = error.__context__
            if isinstance(cause, MemoryError):
                cause = unavailable("there is no memory for this request")
            self.refuse(cause if isinstance(cause, RequestError) else malformed("this is not HTTP/1.1 as it should be"))
        except RequestError as error:
            self.refuse(error)

    def _end_of_part(self, data: bytes, at: int) -> int:
        """Return up to where the bytes from `at` on surely belong to this request.

        A head and a chunked body end with an empty line, a plain body after its length. So the parser never sees the
        next request before this one is answered.

        Raises:
            RequestError: 400 if it is not clear where that is.
        """
        if self.phase == Phase.BODY and not self._head.chunked:
            if not self._left:
                # The parser waits for more of a body that has ended by our count. Whatever the reason of such a
                # difference, bytes that neither of the two takes must never be looked at again.
                raise malformed("it does not say clearly where its body ends")
            end = min(len(data), at + self._left)
            self._left -= end - at
            return end
        return self._lines.end(data, at)

    def _refuse_head(self, data: bytes) -> None:
        over = self._head_bytes - self._limits.header_bytes
        self._parser.feed_data(data[: len(data) - over])  # there may be more to say of what is still allowed
        raise refuse(431, "too_large", f"line and headers are over {self._limits.header_bytes} bytes")

    def _begin(self) -> None:
        if self._parser_is_done:
            self._parser, self._parser_is_done = httptools.HttpRequestParser(self), False
        self.phase = Phase.HEAD
        self._head = Head(self._limits)
        self._head_bytes = 0
        self._begun = False
        self._upgrade = False
        self.deadline = self._loop.time() + self._limits.header_seconds

    def _feed_without_upgrade(self) -> None:
        """Read the head again in a new parser: this one has taken all that follows for another protocol."""
        head, self._head = self._head, Head(self._limits)
        version = self._parser.get_http_version()
        self._parser = httptools.HttpRequestParser(self)
        self._upgrade, self._head_data = False, b""
        self._parser.feed_data(head.without_upgrade(self._method, version))

    def on_message_begin(self) -> None:
        """Note that it is more than empty lines."""
        self._begun = True

    def on_url(self, url: bytes) -> None:
        """Take a part of the target."""
        self._head.add_target(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header field."""
        if self.phase != Phase.HEAD:
            self._count_part()  # a trailer: nobody needs one, and it must not pass for a header
            return
        name = name.lower()
        if name in RULED:
            value = self._head.rule(name, value)
        fields = self._head.fields
        fields.append((name, value))
        if len(fields) > self._limits.headers:
            raise refuse(431, "too_large", f"there are over {self._limits.headers} header fields")

    def on_headers_complete(self) -> None:
        """Start the application; it may answer before it has the body."""
        parser = self._parser
        self._method = method = parser.get_method()
        if parser.should_upgrade() and method != b"CONNECT":
            self._upgrade = True
            return
        head = self._head
        scope = head.finish(method, parser.get_http_version())
        scope["client"] = self._client
        scope["server"] = self._server
        self._left = head.length
        self._parts = self._taken = 0
        keep_alive = parser.should_keep_alive()
        self._known = known(self._head_data, head, scope, keep_alive=keep_alive)
        self._ask(scope, keep_alive=keep_alive)

    def _ask(self, scope: dict[str, Any], *, keep_alive: bool, body: bytes | None = None) -> None:
        """Start the application; `body` is None where it is still to come."""
        now = self._loop.time()
        scope["state"] = {**self._app_state, "received_at": now, "wire": self.hub}
        expects_continue = body is None and self._head.expects_continue
        exchange = Exchange(self, scope, keep_alive=keep_alive, expects_continue=expects_continue, body=body)
        self._exchange = exchange
        if body is None:
            self.phase = Phase.BODY
            self.deadline = now + self._limits.body_seconds
        else:
            self._is_answering()
        self._server_state.total_requests += 1
        exchange.task = self._loop.create_task(exchange.run(self._app))

    def _is_answering(self) -> None:
        self.phase = Phase.ANSWERING
        self.deadline = inf
        self.hub.works(self)

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        exchange = self._exchange
        if exchange is None or self.phase == Phase.CLOSING:
            return
        self._count_part()
        self._taken += len(body)
        if self._taken > self._limits.body_bytes:
            raise too_large(f"the body is over {self._limits.body_bytes} bytes; send fewer texts")
        if exchange.complete or exchange.body is None:
            return
        exchange.body += body
        if self._left or self._head.chunked:  # else it is whole
            self.held += len(body)
            self.hub.buffer(len(body))

    def on_message_complete(self) -> None:
        """Give the application the body."""
        exchange = self._exchange
        if self._upgrade or exchange is None or self.phase != Phase.BODY:
            return
        self._forget_body()
        self._is_answering()
        # A trailer that says `Connection: close` ends the parser, though no trailer may decide that.
        self._parser_is_done = not self._parser.should_keep_alive()
        exchange.received = True
        if exchange.complete:
            self._next()
        else:
            exchange.wake()

    def _count_part(self) -> None:
        self._parts += 1
        if self._parts > BODY_PARTS:
            raise too_large(f"the body comes in over {BODY_PARTS} parts; send larger chunks")

    async def writable(self) -> None:
        """Wait until the client has read most of what was sent."""
        if self._unread is not None:
            await self._unread

    def ends_after(self, exchange: Exchange) -> bool:
        """Return whether the connection ends with this answer.

        While the server drains, what has been read of further requests is still answered. A body of which the client
        may send any amount, or none, cannot be waited for.
        """
        unsure = not exchange.received and (
            self._head.chunked or exchange.expects_continue or self._head.length > self._limits.body_bytes
        )
        return not exchange.keep_alive or unsure or (self.hub.draining and not self._ahead)

    def answered(self) -> None:
        """Go on: to the next request, or to the end."""
        exchange = self._exchange
        if exchange is None:
            return
        if exchange.closes:
            self._close_gently()
        elif self.phase == Phase.ANSWERING:
            if self._unread is None:
                self._next()
            else:  # the next answer would only lie on top of this one
                self._pause_reading()
                self.deadline = self._loop.time() + self._limits.write_seconds

    def _next(self) -> None:
        """Turn to the next request."""
        self._exchange = None
        self.phase = Phase.IDLE
        self.deadline = self._loop.time() + self._limits.idle_seconds
        self.hub.waits(self)
        if self._ahead:
            ahead, self._ahead = bytes(self._ahead), bytearray()
            self._feed(ahead)
        if not self._reading and not self._ahead and not self._transport.is_closing():
            self._reading = True
            self._transport.resume_reading()

    def _pause_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._transport.pause_reading()
