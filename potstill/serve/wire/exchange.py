"""One request and its answer, as an ASGI application sees them."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeAlias

from potstill.serve.http_errors import RequestError, unavailable
from potstill.serve.logging import log_failure
from potstill.serve.wire.replies import CONTINUE, STATUS_LINES, refuse

Message: TypeAlias = Any
App: TypeAlias = Callable[
    [Any, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]

_LOG = logging.getLogger("potstill.serve")


class Line(Protocol):
    """What an exchange needs of its connection."""

    def write(self, data: bytes) -> None:
        """Send it, or keep it to be sent."""

    async def writable(self) -> None:
        """Wait until the client has read most of what was sent."""

    def fields(self) -> bytes:
        """Return the header lines that every response has."""

    def ends_after(self, exchange: "Exchange") -> bool:
        """Return whether the connection ends with this answer."""

    def answered(self) -> None:
        """Hear that the answer is whole."""

    def refuse(self, error: RequestError) -> None:
        """Answer with an error and end the connection."""


class Exchange:
    """The two ends that the application holds, and what has come of either."""

    __slots__ = (
        "_fields", "_head_sent", "_left", "_line", "_status", "_wakes", "body", "closes", "complete",
        "expects_continue", "keep_alive", "over", "received", "scope", "task",
    )  # fmt: skip

    def __init__(
        self, line: Line, scope: dict[str, Any], *, keep_alive: bool, expects_continue: bool = False,
        body: bytes | None = None,
    ) -> None:  # fmt: skip
        self.scope = scope
        self.keep_alive = keep_alive
        """Whether the client would have the connection go on."""
        self.expects_continue = expects_continue
        """Whether the client waits to hear that its body is wanted."""
        self.body: bytearray | bytes | None = bytearray() if body is None else body
        """What has come of the body; None once the application has it."""
        self.received = body is not None
        """Whether all of the body has come."""
        self.complete = False
        """Whether all of the answer was handed over."""
        self.over = False
        """Whether nobody waits for the answer any more."""
        self.closes = False
        """Whether the answer says that the connection ends."""
        self.task: asyncio.Task[None] | None = None
        self._line = line
        self._wakes: asyncio.Future[None] | None = None
        self._status = 0
        self._fields: Any = ()
        self._head_sent = False
        self._left: int | None = None
        """Bytes of the answer that its Content-Length still promises; None where it is chunked or ends by closing."""

    async def run(self, app: App) -> None:
        """Let the application answer; nothing it raises gets out, and nothing that it says is logged."""
        try:
            await app(self.scope, self.receive, self.send)
            if not self.complete and not self.over:
                _LOG.error("the application returned without a whole answer")
                self._fail()
        except asyncio.CancelledError:
            if not self.over and not self.complete:
                self._line.refuse(unavailable("the server ended before this was answered"))
        except Exception as error:
            if not self.over:
                log_failure("the application failed on a request", error)
                self._fail()

    def _fail(self) -> None:
        if not self.complete:
            self._line.refuse(refuse(500, "backend", "the server failed on this request"))

    @property
    def head_sent(self) -> bool:
        """Whether the client has seen a part of the answer."""
        return self._head_sent

    def cancel(self) -> None:
        """End it: the client will not read an answer of the application's."""
        if not self.over:
            self.over = True
            self.body = None
            self.wake()
            if self.task is not None and not self.complete:
                self.task.cancel()

    def wake(self) -> None:
        """Let `receive` look again."""
        if self._wakes is not None and not self._wakes.done():
            self._wakes.set_result(None)

    async def receive(self) -> Message:
        """Return the whole body in one message, then that the client is gone or has its answer."""
        while not (self.over or self.complete):
            if self.received and self.body is not None:
                body, self.body = bytes(self.body), None
                return {"type": "http.request", "body": body, "more_body": False}
            if self.expects_continue and not self._head_sent:
                self.expects_continue = False
                self._line.write(CONTINUE)
            self._wakes = asyncio.get_running_loop().create_future()
            await self._wakes
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Take a part of the answer; the head leaves with the first of the body, in one write."""
        if self.over:
            return
        kind = message["type"]
        if kind == "http.response.start" and not self._status:
            self._status, self._fields = message["status"], message.get("headers", ())
            return
        if kind != "http.response.body" or not self._status or self.complete:
            raise RuntimeError(f"an ASGI message that cannot come here: {kind}")
        body, more = message.get("body", b""), message.get("more_body", False)
        if self._head_sent:
            self._line.write(self._framed(body, more))
        else:
            data = self._head(body, more) + self._framed(body, more)
            self._head_sent = True
            self._line.write(data)
        if more:
            await self._line.writable()
        else:
            self.complete = True
            self._line.answered()

    @property
    def _bodyless(self) -> bool:
        return self.scope["method"] == "HEAD" or self._status in {204, 304}

    def _head(self, body: bytes, more: bool) -> bytes:
        lines = [STATUS_LINES[self._status]]
        self.closes = self._line.ends_after(self)
        length: int | None = None
        for name, value in self._fields:
            name = name.lower()
            if name == b"content-length":
                length = int(value)
            elif name == b"connection":
                self.closes = self.closes or b"close" in value.lower()
                continue
            elif name == b"transfer-encoding":
                continue  # framing is ours
            lines.append(name + b": " + value)
        if not self._bodyless:
            self._left = length
            if length is None:
                lines += self._framing(None if more else len(body))
        old = self.scope["http_version"] == "1.0"
        if self.closes or old:
            lines.append(b"connection: close" if self.closes else b"connection: keep-alive")
        head = b"\r\n".join(lines)
        if head.count(b"\n") != len(lines) - 1 or head.count(b"\r") != len(lines) - 1:
            raise RuntimeError("a header of the answer has a line break")
        return b"%b\r\n%b\r\n" % (head, self._line.fields())

    def _framing(self, length: int | None) -> list[bytes]:
        """Return the header that says where the answer ends, as the application left it to us."""
        if length is not None:
            self._left = length
            return [b"content-length: %d" % length]
        if self.scope["http_version"] == "1.0":
            self.closes = True  # its end is the connection's end
            return []
        return [b"transfer-encoding: chunked"]

    def _framed(self, body: bytes, more: bool) -> bytes:
        if self._bodyless:
            return b""
        if self._left is not None:
            self._left -= len(body)
            if self._left < 0 or (self._left > 0 and not more):
                raise RuntimeError("the answer is not as long as its Content-Length")
            return body
        if self.scope["http_version"] == "1.0":
            return body
        part = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
        return part if more else part + b"0\r\n\r\n"
