"""uvicorn's httptools protocol, extended by a deadline or a limit for everything that a client can do.

uvicorn parses, pipelines, frames answers and keeps connections alive. Added here are

- deadlines: for a head, a body, an idle connection, and a client that does not read its answer;
- limits: on the head, its fields and its target, on the body and its parts, on pipelined bytes and on connections;
- checks that RFC 9112 asks of a server: framing fields that come twice, a missing Host, an unsupported version;
- errors as JSON, sent in their turn after the answers to earlier requests, and a close after which they can be read;
- cancellation of a request whose client has gone.

The overridden methods are called by asyncio (`connection_made` to `resume_writing`) and by the parser (`on_...`).
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
# requests are begun while the first is answered; a burst of them once became 6,000 of uvicorn's cycles (docs/log.md).
_SLICE_BYTES = 4_096
# Bytes that are read ahead of the parser. Reading goes on while a request is answered, because that is how a client
# that hangs up is noticed.
_AHEAD_BYTES = 65_536
# Chunks and trailers of one body; Triton allows 65,536 of a body that may be 32 times as large as ours.
_BODY_PARTS = 16_384
# After the last answer the client may go on sending for so long, and so much: closing at once would reset the
# connection, and a reset can discard the answer before the client reads it (RFC 9112, section 9.6).
_LINGER_SECONDS = 2.0
_LINGER_BYTES = 16 << 20
# When the server ends, how long a connection without a request may take to begin one.
_LAST_CALL_SECONDS = 0.5

# The characters of uri-host and port (RFC 9110, section 7.2; RFC 3986, section 3.2.2).
_HOST = re.compile(rb"[A-Za-z0-9._~%!$&'()*+,;=:\[\]-]*")
_ONCE = frozenset({b"host", b"content-length", b"transfer-encoding", b"expect"})
"""Fields that decide how a request is read: a proxy in front may believe another one of two than this server."""
_NO_TRAILERS = frozenset({b"connection", b"content-length", b"transfer-encoding"})
"""Fields that llhttp obeys in a trailer, too, so that it would ignore the requests that follow."""


class HttpProtocol(HttpToolsProtocol):
    """The server's side of one connection.

    `Server` looks at both deadlines ten times a second and calls `expire` after the earlier one.

    Attributes:
        deadline: until when the client must have sent what it is sending, in the loop's clock; infinity while it waits
            for the server.
        write_deadline: until when it must have read what was sent.
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
        """Set up a connection; the first four arguments are those that uvicorn passes.

        Args:
            config: uvicorn's configuration.
            server_state: uvicorn's state, with all open connections.
            app_state: copied into every request's `scope["state"]`; "draining" in it ends connections.
            _loop: the event loop.
            limits: limits of sizes, counts and times.
            most_connections: how many connections may be open.
            waiting: the connections that wait for their clients, the longest waiting first; shared by all connections.
        """
        super().__init__(config, server_state, app_state, _loop)
        self.limits = limits
        self.most_connections = most_connections
        self.waiting = waiting
        self.deadline = self.write_deadline = inf
        self.receiving: Literal["", "head", "body"] = ""
        self.error: RequestError | None = None
        """Why nothing more is read; it is the answer to `self.cycle`."""
        self.task: asyncio.Task[None] | None = None
        """The task that runs the application for the request whose turn it is."""
        self.is_evicted = self.is_lost = False
        self.unparsed = b""
        self.head_bytes = self.body_bytes = self.parts = self.discarded = 0

    # ------------------------------------------------------------ the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the first deadline; if there are too many connections, close the one that has waited longest."""
        super().connection_made(transport)
        self.transport = _LingeringTransport(transport, self)  # type: ignore[assignment]
        self.deadline = self.loop.time() + self.limits.header_seconds
        self.waiting[self] = None
        if self.app_state.get("draining"):
            self.shutdown()
        if len(self.connections) > self.most_connections and self.waiting:
            next(iter(self.waiting)).evict()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the application: nobody is left to read its answer."""
        super().connection_lost(exc)
        self.is_lost = True
        self.waiting.pop(self, None)
        self.deadline = self.write_deadline = inf
        self.unparsed = b""
        if self.task is not None:
            self.task.cancel()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Handle the end of what the client sends; returning False lets asyncio close the transport."""
        # A client that has closed and one that only shut its sending side look the same. Like Go's server, take both as
        # gone, except in the middle of a request, which gets a 400. TLS has no half-closed state.
        if not self.receiving or self.error is not None or self.scheme == "https":
            return False
        self.refuse(malformed("the request ended early"))
        return True

    def pause_writing(self) -> None:
        """Start the write deadline: asyncio's buffer is full because the client does not read."""
        super().pause_writing()
        self.write_deadline = self.loop.time() + self.limits.write_seconds

    def resume_writing(self) -> None:
        """End the write deadline: the client has read."""
        super().resume_writing()
        self.write_deadline = inf

    def closing(self) -> None:
        """Start to linger, as the transport closes its sending side; this connection is the first that others evict."""
        if not self.is_evicted:
            self.waiting[self] = None
            self.waiting.move_to_end(self, last=False)
        has_unread = self.transport.get_write_buffer_size() > 0
        self.deadline = self.loop.time() + (self.limits.write_seconds if has_unread else _LINGER_SECONDS)

    def shutdown(self) -> None:
        """Prepare for the server's end: a request that was begun is finished, an idle connection has a last moment."""
        if not self.receiving and not self.unparsed and self._is_answered():
            self.deadline = min(self.deadline, self.loop.time() + _LAST_CALL_SECONDS)

    def expire(self) -> None:
        """End the connection, or answer 408 to the request, because a deadline has passed."""
        self.deadline = inf
        if self.transport.is_closing() or self.flow.write_paused:
            self.transport.abort()
        elif self.pipeline or self.unparsed:
            return  # not the client's fault: what it has sent waits for the answer to an earlier request
        elif self.receiving == "head":
            self.refuse(_timeout(f"the headers took over {self.limits.header_seconds:g} s"))
        elif self.receiving == "body" and not self.cycle.response_complete:
            self.refuse(_timeout(f"the body took over {self.limits.body_seconds:g} s"))
        else:
            self.transport.close()

    def evict(self) -> None:
        """End the connection without lingering, because another needs its place."""
        self.waiting.pop(self, None)
        self.is_evicted = True  # before anything closes: `_LingeringTransport.close` looks at it
        if self.transport.is_closing() or self.flow.write_paused:
            self.transport.abort()
        elif self.cycle is not None and not self.receiving:
            self.transport.close()
        else:
            self.refuse(unavailable("there are too many connections"))

    # ------------------------------------------------------------ bytes in

    def data_received(self, data: bytes) -> None:
        """Parse what has come; after an error or a close, discard it."""
        self._unset_keepalive_if_required()
        # Read and discarded, so that the kernel's buffer is empty when the socket is closed: else it sends a reset.
        if self.error is not None or self.transport.is_closing():
            self.discarded += len(data)
            if self.discarded > _LINGER_BYTES:
                self.transport.abort()
            return
        self.unparsed += data
        self._parse()

    def _parse(self) -> None:
        """Feed the parser slice by slice, as long as no pipelined request waits for its turn."""
        data, at = self.unparsed, 0
        try:
            while at < len(data) and not self.pipeline and not self.transport.is_closing():
                part = data[at : at + _SLICE_BYTES]
                at += len(part)
                try:
                    self.parser.feed_data(part)
                except httptools.HttpParserUpgrade as stop:
                    # Its argument is where in the slice the head ends. A new parser reads the head without the upgrade.
                    data, at = self._head_without_upgrade() + part[stop.args[0] :] + data[at:], 0
                    self.parser = httptools.HttpRequestParser(self)
                if self.receiving != "body":
                    self.head_bytes += len(part)
                    if self.head_bytes > self.limits.header_bytes:
                        raise _refuse(431, f"line and headers are over {self.limits.header_bytes} bytes")
        except httptools.HttpParserError as failure:
            error = failure.__context__  # httptools wraps what a callback below raised
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
        """Return the request's head without the fields that ask for another protocol.

        A server may ignore Upgrade (RFC 9110, section 7.8). llhttp does not: it stops after the head and takes the body
        for the other protocol's. Java's client asks for h2c in its first request, body and all.
        """
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        options = b",".join(value.lower() for name, value in self.headers if name == b"connection").split(b",")
        kept = [name + b": " + value for name, value in self.headers if name not in {b"upgrade", b"connection"}]
        if b"close" in [option.strip() for option in options]:
            kept.append(b"connection: close")
        return b"\r\n".join([b"%b %b HTTP/%b" % (method, self.url, version), *kept, b"", b""])

    def on_message_begin(self) -> None:
        """Start the deadline of a head."""
        super().on_message_begin()
        self.receiving = "head"
        self.deadline = self.loop.time() + self.limits.header_seconds

    def on_url(self, url: bytes) -> None:
        """Add a part of the target, which may come in several."""
        super().on_url(url)
        if len(self.url) > self.limits.url_bytes:
            raise _refuse(414, f"the target is over {self.limits.url_bytes} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header field; check a trailer and discard it."""
        if self.receiving == "body":
            # A recipient may discard trailers, and must not merge them into the headers (RFC 9110, section 6.5.1).
            self._count_part()
            if name.lower() in _NO_TRAILERS:
                raise malformed("a trailer must not say how the connection goes on")
            return
        super().on_header(name, value.strip(b" \t"))  # RFC 9110, section 5.5: a value excludes white space around it
        if len(self.headers) > self.limits.headers:
            raise _refuse(431, f"there are over {self.limits.headers} header fields")

    def on_headers_complete(self) -> None:
        """Check the head and start the application, which may answer before it has the body."""
        method, version = self.parser.get_method(), self.parser.get_http_version()
        if self.parser.should_upgrade() and method != b"CONNECT":
            return  # the parser stops here, and gets the head again
        self._check_head(method, version)
        now = self.loop.time()
        self.scope["state"]["received_at"] = now
        self.app = self.config.loaded_app  # `Server` replaces it when the models are loaded
        super().on_headers_complete()
        self.receiving, self.deadline = "body", now + self.limits.body_seconds
        self.head_bytes = self.body_bytes = self.parts = 0
        self.flow.resume_reading()  # uvicorn pauses for pipelined requests; `_AHEAD_BYTES` bounds them instead

    def _check_head(self, method: bytes, version: str) -> None:
        """Refuse a head that RFC 9110 and 9112 forbid and llhttp lets pass, or that this server does not support.

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
        # A server must accept a target in absolute form, too (RFC 9112, section 3.2.2).
        is_path = self.url.startswith(b"/") or self.url.lower().startswith((b"http://", b"https://"))
        for is_wrong, message in (
            (version not in {"1.1", "1.0"}, "this server speaks HTTP/1.1 and HTTP/1.0"),
            (method == b"CONNECT", "this server is not a proxy; CONNECT is for proxies"),
            # RFC 9112, section 3.2: a server must answer 400 to a missing, doubled or invalid Host.
            (version == "1.1" and b"host" not in fields, "the header host is missing"),
            (not _HOST.fullmatch(fields.get(b"host", b"")), "the header host is not a name or an address"),
            # RFC 9112, section 6.1: Transfer-Encoding in HTTP/1.0 is faulty framing.
            (
                coding is not None and (version == "1.0" or coding.lower() != b"chunked"),
                "the only Transfer-Encoding is chunked, and only in HTTP/1.1",
            ),
            (not self.url.isascii() or b"#" in self.url, "the target has a character that must be percent-encoded"),
            # The asterisk form is for OPTIONS only (RFC 9112, section 3.2.4).
            (not is_path and (self.url, method) != (b"*", b"OPTIONS"), "the target must be a path"),
        ):
            if is_wrong:
                raise malformed(message)
        if int(fields.get(b"content-length", b"0")) > self.limits.body_bytes:
            raise too_large(f"the body is over {self.limits.body_bytes} bytes; send fewer texts")
        if version == "1.0":  # RFC 9110, section 10.1.1: ignore it there; 417 is for other expectations
            self.expect_100_continue = False
        elif fields.get(b"expect", b"100-continue").lower() != b"100-continue":
            raise _refuse(417, "the only thing that can be expected is 100-continue", error_type="validation")

    def on_body(self, body: bytes) -> None:
        """Add a part of the body."""
        self._count_part()
        self.body_bytes += len(body)
        if self.body_bytes > self.limits.body_bytes:
            raise too_large(f"the body is over {self.limits.body_bytes} bytes; send fewer texts")
        # The client has not waited for 100 (Continue), so it need not be sent (RFC 9110, section 10.1.1).
        self.cycle.waiting_for_100_continue = False
        super().on_body(body)

    def _count_part(self) -> None:
        self.parts += 1
        if self.parts > _BODY_PARTS:
            raise too_large(f"the body comes in over {_BODY_PARTS} parts; send larger chunks")

    def on_message_complete(self) -> None:
        """Hand the whole body to the application."""
        if self.receiving != "body":
            return  # the end of a head with an upgrade, which is parsed again
        self.receiving, self.deadline = "", inf
        self.waiting.pop(self, None)
        super().on_message_complete()
        if self._is_answered():  # the application has not waited for the body
            self._wait_for_request()

    # ------------------------------------------------------------ answers

    def _is_answered(self) -> bool:
        """Return whether the latest request is answered, or there was none."""
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
        """Run the application, or answer with `self.error`.

        No exception escapes: uvicorn would log it with its message, which may quote a client's text.
        """
        self.task = asyncio.current_task()
        transport: _LingeringTransport = self.transport  # type: ignore[assignment]

        async def send_and_close(message: Message) -> None:
            if message["type"] == "http.response.start":
                is_last = self.app_state.get("draining") and not self.pipeline and not self.unparsed
                # A client that still waits for 100 (Continue) may send the body after this answer or not, so nobody
                # could tell a body from the next request.
                if is_last or cycle.waiting_for_100_continue:
                    cycle.keep_alive = False
                transport.hold_next()
                await send(message)
            else:
                await send(message)
                transport.flush()  # a HEAD request's answer has no body

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
        """Stop reading; answer with an error, after the answers to earlier requests, and close the connection."""
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
        # The head is not complete, so uvicorn has made no cycle to answer: make one of a request without a path.
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
        """Start the next request, and parse what was read ahead."""
        super().on_response_complete()
        if self.transport.is_closing() or self.error is not None:
            return
        if self.unparsed:
            if self.receiving:  # its deadline did not run while the server did not read it
                self.deadline = self.loop.time() + self.limits.header_seconds
            self._parse()
        if not self.receiving and self._is_answered():
            self._wait_for_request()


class _LingeringTransport:
    """A transport whose `close` ends the sending side only, and that sends a head together with its body.

    After `close` the client has its time to end its own side: RFC 9112, section 9.6. `HttpProtocol.closing` sets the
    deadline of that wait.

    uvicorn writes the head and the body of an answer one by one. Each write is a system call that wakes the client, and
    under overload, where most answers are refusals, they took half of the event loop's time (docs/log.md).
    """

    def __init__(self, transport: asyncio.Transport, protocol: HttpProtocol) -> None:
        self._transport = transport
        self._protocol = protocol
        self._closed = False
        self._holds_next = False
        self._held = b""

    def hold_next(self) -> None:
        """Keep what is written next until something else is, or until `flush` or `close`."""
        self._holds_next = True

    def write(self, data: bytes) -> None:
        if self._holds_next:
            self._holds_next = False
            self._held += data
        else:
            data, self._held = self._held + data, b""
            self._transport.write(data)

    def flush(self) -> None:
        self._holds_next = False
        if self._held:
            self.write(b"")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self._closed or self._transport.is_closing()

    def close(self) -> None:
        if self.is_closing():
            return
        self.flush()
        self._closed = True
        self._protocol.closing()
        if self._protocol.is_evicted or not self._transport.can_write_eof():  # TLS has no half-closed state
            self._transport.close()
        else:
            self._transport.write_eof()
            self._protocol.flow.resume_reading()  # uvicorn may have paused it, and then no end would be seen


def _refuse(
    status: int, message: str, *, error_type: Literal["too_large", "validation", "timeout"] = "too_large"
) -> RequestError:
    return RequestError(message, status=status, error_type=error_type)


def _timeout(message: str) -> RequestError:
    return _refuse(408, message, error_type="timeout")
