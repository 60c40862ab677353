"""uvicorn's httptools protocol, with a deadline or a cap for everything that a client can do.

uvicorn parses, pipelines, frames answers and keeps connections. Added here are

- deadlines: for a head, a body, an idle connection, and a client that does not read its answer;
- caps: on the head, its fields and its target, on the body and its parts, on pipelined bytes and on connections;
- what RFC 9112 leaves to the server: framing fields that come twice, a missing Host, an unsupported version;
- errors as JSON, in their turn behind the answers to earlier requests, and a close that the client lives to see;
- cancellation of a request whose client has gone.
"""

import asyncio
import re
from collections import OrderedDict
from functools import partial
from math import inf
from typing import Any, Literal

import httptools
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from potstill.serve.http_errors import RequestError, error_response, failed, malformed, too_large, unavailable
from potstill.serve.limits import Limits
from potstill.serve.logging import log_failure

# Bytes that the parser gets at a time. It cannot be stopped between two requests, so this bounds how many pipelined
# ones are taken on while the first is answered.
_SLICE_BYTES = 4_096
# Bytes that are read ahead of the parser. Reading goes on meanwhile, for it is how a client that hangs up is noticed.
_AHEAD_BYTES = 65_536
# Chunks and trailers of one body; Triton allows 65,536 of a body that may be 32 times as large as ours.
_BODY_PARTS = 16_384
# After the last answer a client may go on sending for so long, and so much: closing at once would reset the connection,
# and a reset can take the answer from the client before it is read (RFC 9112, section 9.6).
_LINGER_SECONDS = 2.0
_LINGER_BYTES = 16 << 20
# How long a connection without a request may take to begin one when the server ends.
_LAST_CALL_SECONDS = 0.5

_HOST = re.compile(rb"[A-Za-z0-9._~%!$&'()*+,;=:\[\]-]*")
_ONCE = frozenset({b"host", b"content-length", b"transfer-encoding", b"expect"})
"""Fields that decide how to read on: each may come once."""
_NO_TRAILERS = frozenset({b"connection", b"content-length", b"transfer-encoding"})
"""Fields that the parser believes in a trailer, too, and then ignores what follows."""


class HttpProtocol(HttpToolsProtocol):
    """The server's side of one connection.

    Attributes:
        deadline: when the client has had its time for what it is sending, in the loop's clock; infinity while it
            waits for the server.
        write_deadline: when it has had its time for reading what was sent.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: Limits,
        most_connections: int,
        waiting: "OrderedDict[HttpProtocol, None]",
    ) -> None:
        """Begin a connection, as uvicorn does.

        Args:
            config: uvicorn's.
            server_state: uvicorn's.
            app_state: what every request's `scope["state"]` begins with; "draining" in it ends connections.
            _loop: the event loop.
            limits: deadlines and caps.
            most_connections: how many may be open.
            waiting: the connections that wait for their clients, the longest waiting first; all of one server share it.
        """
        super().__init__(config, server_state, app_state, _loop)
        self.limits = limits
        self.most_connections = most_connections
        self.waiting = waiting
        self.deadline = self.write_deadline = inf
        self.receiving: Literal["", "head", "body"] = ""
        self.error: RequestError | None = None
        """Why no more is read; the answer to `self.cycle`."""
        self.task: asyncio.Task[None] | None = None
        """What runs the application for the request whose turn it is."""
        self.is_evicted = self.is_lost = False
        self.unparsed = b""
        self.head_bytes = self.body_bytes = self.parts = self.discarded = 0

    # ------------------------------------------------------------ the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, and close the connection that waits longest for its client if there are too many."""
        super().connection_made(transport)
        self.transport = _LingeringTransport(transport, self)  # type: ignore[assignment]
        self.deadline = self.loop.time() + self.limits.header_seconds
        self.waiting[self] = None
        if self.app_state.get("draining"):
            self.shutdown()
        if len(self.connections) > self.most_connections and self.waiting:
            next(iter(self.waiting)).evict()

    def connection_lost(self, exc: Exception | None) -> None:
        """End: whatever was begun for this client stops."""
        super().connection_lost(exc)
        self.is_lost = True
        self.waiting.pop(self, None)
        self.deadline = self.write_deadline = inf
        self.unparsed = b""
        if self.task is not None:
            self.task.cancel()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Hear that the client sends no more; asyncio closes unless this says True."""
        # A client that closed and one that only will not send more look the same; like Go's server, take it as gone.
        if not self.receiving or self.error is not None or self.scheme == "https":
            return False
        self.refuse(malformed("the request ended early"))
        return True

    def pause_writing(self) -> None:
        """Hear that the client does not read."""
        super().pause_writing()
        self.write_deadline = self.loop.time() + self.limits.write_seconds

    def resume_writing(self) -> None:
        """Hear that it has read."""
        super().resume_writing()
        self.write_deadline = inf

    def closing(self) -> None:
        """Hear that the transport begins to close: it is the first to go if others need the place."""
        if not self.is_evicted:
            self.waiting[self] = None
            self.waiting.move_to_end(self, last=False)
        has_unread = self.transport.get_write_buffer_size() > 0
        self.deadline = self.loop.time() + (self.limits.write_seconds if has_unread else _LINGER_SECONDS)

    def shutdown(self) -> None:
        """Hear that the server ends: what was begun is finished, what waits may begin for a moment more."""
        if not self.receiving and not self.unparsed and self._is_answered():
            self.deadline = min(self.deadline, self.loop.time() + _LAST_CALL_SECONDS)

    def expire(self) -> None:
        """End the connection, or the request: the client has had its time. The server calls it after a deadline."""
        self.deadline = inf
        if self.transport.is_closing() or self.flow.write_paused:
            self.transport.abort()
        elif self.pipeline or self.unparsed:
            return  # not its fault: what it has sent is not looked at before the answer to an earlier request
        elif self.receiving == "head":
            self.refuse(_timeout(f"the headers took over {self.limits.header_seconds:g} s"))
        elif self.receiving == "body" and not self.cycle.response_complete:
            self.refuse(_timeout(f"the body took over {self.limits.body_seconds:g} s"))
        else:
            self.transport.close()

    def evict(self) -> None:
        """End the connection, without lingering: others need the place."""
        self.waiting.pop(self, None)
        self.is_evicted = True
        if self.transport.is_closing() or self.flow.write_paused:
            self.transport.abort()
        elif self.cycle is not None and not self.receiving:
            self.transport.close()
        else:
            self.refuse(unavailable("there are too many connections"))

    # ------------------------------------------------------------ bytes in

    def data_received(self, data: bytes) -> None:
        """Take what has come."""
        self._unset_keepalive_if_required()
        if self.error is not None or self.transport.is_closing():
            self.discarded += len(data)
            if self.discarded > _LINGER_BYTES:
                self.transport.abort()
            return
        self.unparsed += data
        self._parse()

    def _parse(self) -> None:
        """Feed the parser, as long as no pipelined request waits for its turn."""
        data, at = self.unparsed, 0
        try:
            while at < len(data) and not self.pipeline and not self.transport.is_closing():
                part = data[at : at + _SLICE_BYTES]
                at += len(part)
                try:
                    self.parser.feed_data(part)
                except httptools.HttpParserUpgrade as stop:
                    data, at = self._head_without_upgrade() + part[stop.args[0] :] + data[at:], 0
                    self.parser = httptools.HttpRequestParser(self)
                if self.receiving != "body":
                    self.head_bytes += len(part)
                    if self.head_bytes > self.limits.header_bytes:
                        raise _refuse(431, f"line and headers are over {self.limits.header_bytes} bytes")
        except httptools.HttpParserError as failure:
            error = failure.__context__  # what a callback below raised, if one did
            if isinstance(error, MemoryError):
                error = unavailable("there is no memory for this request")
            self.refuse(error if isinstance(error, RequestError) else malformed("this is not HTTP/1.1 as it should be"))
            return
        except RequestError as error:
            self.refuse(error)
            return
        self.unparsed = data[at:]
        if len(self.unparsed) > _AHEAD_BYTES:
            self.flow.pause_reading()
        if not self.receiving and self.deadline == inf and self._is_answered():
            self.deadline = self.loop.time() + self.limits.header_seconds  # empty lines, which begin no request

    def _head_without_upgrade(self) -> bytes:
        """Return the head again as if the client had not asked to change the protocol.

        RFC 9110, section 7.8: a server may ignore Upgrade. The parser does not: it stops at the head and takes the body
        for the other protocol. Java's client asks for h2c in its first request, body and all.
        """
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        options = b",".join(value.lower() for name, value in self.headers if name == b"connection").split(b",")
        kept = [name + b": " + value for name, value in self.headers if name not in {b"upgrade", b"connection"}]
        if b"close" in [option.strip() for option in options]:
            kept.append(b"connection: close")
        return b"\r\n".join([b"%b %b HTTP/%b" % (method, self.url, version), *kept, b"", b""])

    def on_message_begin(self) -> None:
        """Hear that a request begins."""
        super().on_message_begin()
        self.receiving = "head"
        self.deadline = self.loop.time() + self.limits.header_seconds

    def on_url(self, url: bytes) -> None:
        """Take a part of the target."""
        super().on_url(url)
        if len(self.url) > self.limits.url_bytes:
            raise _refuse(414, f"the target is over {self.limits.url_bytes} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header field, or a trailer."""
        if self.receiving == "body":
            # Nobody needs a trailer, and it must not pass for a header (RFC 9110, section 6.5.1).
            self._count_part()
            if name.lower() in _NO_TRAILERS:
                raise malformed("a trailer must not say how the connection goes on")
            return
        super().on_header(name, value.strip(b" \t"))
        if len(self.headers) > self.limits.headers:
            raise _refuse(431, f"there are over {self.limits.headers} header fields")

    def on_headers_complete(self) -> None:
        """Start the application; it may answer before it has the body."""
        method, version = self.parser.get_method(), self.parser.get_http_version()
        if self.parser.should_upgrade() and method != b"CONNECT":
            return  # the parser stops here, and gets the head again
        self._check_head(method, version)
        now = self.loop.time()
        self.scope["state"]["received_at"] = now
        self.app = self.config.loaded_app  # another one once the models are loaded
        super().on_headers_complete()
        self.receiving, self.deadline = "body", now + self.limits.body_seconds
        self.head_bytes = self.body_bytes = self.parts = 0
        self.flow.resume_reading()  # uvicorn pauses for pipelined requests; `_AHEAD_BYTES` bounds them instead

    def _check_head(self, method: bytes, version: str) -> None:
        """Refuse a head that RFC 9110 and 9112 do not allow, where the parser is lenient, or that this server cannot.

        Raises:
            RequestError: 400, 413 or 417.
        """
        fields: dict[bytes, bytes] = {}
        for name, value in self.headers:
            if name in _ONCE:
                if name in fields:
                    raise malformed(f"the header {name.decode()} comes twice")
                fields[name] = value
        coding = fields.get(b"transfer-encoding")
        is_path = self.url.startswith(b"/") or self.url.lower().startswith((b"http://", b"https://"))
        for is_wrong, message in (
            (version not in {"1.1", "1.0"}, "this server speaks HTTP/1.1 and HTTP/1.0"),
            (method == b"CONNECT", "this server is not a proxy; CONNECT is for proxies"),
            (version == "1.1" and b"host" not in fields, "the header host is missing"),
            (not _HOST.fullmatch(fields.get(b"host", b"")), "the header host is not a name or an address"),
            (
                coding is not None and (version == "1.0" or coding.lower() != b"chunked"),
                "the only Transfer-Encoding is chunked, and only in HTTP/1.1",
            ),
            (not self.url.isascii() or b"#" in self.url, "the target has a character that must be percent-encoded"),
            (not is_path and (self.url, method) != (b"*", b"OPTIONS"), "the target must be a path"),
        ):
            if is_wrong:
                raise malformed(message)
        if int(fields.get(b"content-length", b"0")) > self.limits.body_bytes:
            raise too_large(f"the body is over {self.limits.body_bytes} bytes; send fewer texts")
        if version == "1.0":
            self.expect_100_continue = False
        elif fields.get(b"expect", b"100-continue").lower() != b"100-continue":
            raise _refuse(417, "the only thing that can be expected is 100-continue", error_type="validation")

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._count_part()
        self.body_bytes += len(body)
        if self.body_bytes > self.limits.body_bytes:
            raise too_large(f"the body is over {self.limits.body_bytes} bytes; send fewer texts")
        self.cycle.waiting_for_100_continue = False  # the client has not waited for it
        super().on_body(body)

    def _count_part(self) -> None:
        self.parts += 1
        if self.parts > _BODY_PARTS:
            raise too_large(f"the body comes in over {_BODY_PARTS} parts; send larger chunks")

    def on_message_complete(self) -> None:
        """Give the application the whole body."""
        if self.receiving != "body":
            return  # of a head with an upgrade, which is read again
        self.receiving, self.deadline = "", inf
        self.waiting.pop(self, None)
        super().on_message_complete()
        if self._is_answered():  # before the body had come
            self._wait_for_request()

    # ------------------------------------------------------------ answers

    def _is_answered(self) -> bool:
        """Return whether nobody waits for the application."""
        return self.cycle is None or self.cycle.response_complete

    def _wait_for_request(self) -> None:
        self.waiting[self] = None
        self.deadline = self.loop.time() + self.limits.idle_seconds

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGIApp) -> None:  # type: ignore[override]
        self.task = None
        super()._start_asgi_task(cycle, partial(self._answer, cycle, app))

    async def _answer(
        self, cycle: RequestResponseCycle, app: ASGIApp, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Let the application answer; nothing that it raises gets out, for it may quote a client's text."""
        self.task = asyncio.current_task()

        async def send_and_close(message: Message) -> None:
            if message["type"] == "http.response.start":
                is_last = self.app_state.get("draining") and not self.pipeline and not self.unparsed
                # Whoever still waits for `100 Continue` may send its body now or not: nobody could tell it from a
                # request.
                if is_last or cycle.waiting_for_100_continue:
                    cycle.keep_alive = False
            await send(message)

        try:
            if self.error is None or cycle is not self.cycle:
                await app(scope, receive, send_and_close)
                return
            error = self.error
        except asyncio.CancelledError:
            error = self.error or unavailable("the server ended before this was answered")
        except Exception as exception:
            log_failure("the application failed on a request", exception)
            error = failed()
        if self.is_lost:  # nobody is there to be told
            cycle.disconnected = True
        elif not cycle.response_started:
            cycle.keep_alive = False
            await error_response(error, path=scope["path"])(scope, receive, send)

    def refuse(self, error: RequestError) -> None:
        """Answer with an error instead of reading on, in its turn, and end the connection."""
        if self.error is not None or self.transport.is_closing():
            return
        was_answered = self._is_answered()
        self.error, self.unparsed = error, b""
        self.deadline = inf
        self.waiting.pop(self, None)
        if self.receiving == "body":
            if was_answered:
                self.transport.close()
            elif not self.pipeline and self.task is not None:
                self.task.cancel()
            return  # else `_answer` finds the error when it comes to this request
        if self.receiving != "head":
            super().on_message_begin()
        self.receiving = ""
        self.scope.update({"method": "GET", "path": "", "raw_path": b"", "query_string": b""})
        self.cycle = RequestResponseCycle(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=False,
            on_response=self.on_response_complete,
        )
        if was_answered:
            self._start_asgi_task(self.cycle, self.app)
        else:
            self.pipeline.appendleft((self.cycle, self.app))

    def on_response_complete(self) -> None:
        """Turn to the next request."""
        super().on_response_complete()
        if self.transport.is_closing() or self.error is not None:
            return
        if self.unparsed:
            if self.receiving:  # its time did not run while it was not read
                self.deadline = self.loop.time() + self.limits.header_seconds
            self._parse()
        if not self.receiving and self._is_answered():
            self._wait_for_request()


class _LingeringTransport:
    """A connection's transport whose `close` sends an end, and then waits for the client's."""

    def __init__(self, transport: asyncio.Transport, protocol: HttpProtocol) -> None:
        self._transport = transport
        self._protocol = protocol
        self._closed = False
        self.write = transport.write

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self._closed or self._transport.is_closing()

    def close(self) -> None:
        if self.is_closing():
            return
        self._closed = True
        self._protocol.closing()
        if self._protocol.is_evicted or not self._transport.can_write_eof():  # TLS has no half of an end
            self._transport.close()
        else:
            self._transport.write_eof()
            self._protocol.flow.resume_reading()


def _refuse(
    status: int, message: str, *, error_type: Literal["too_large", "validation", "timeout"] = "too_large"
) -> RequestError:
    return RequestError(message, status=status, error_type=error_type)


def _timeout(message: str) -> RequestError:
    return _refuse(408, message, error_type="timeout")
