"""What RFC 9110 and RFC 9112 say of a connection's bytes, in both directions; nothing of it is the server's own code.

`read_requests` tells which whole, strictly valid requests some bytes begin with: those must be answered. What follows
them the standard leaves to the server, within limits. `Responses` reads what comes back, and takes nothing that a
strict recipient would not.
"""

import re
import socket
import time
from dataclasses import dataclass, field
from typing import Literal

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_LINE = re.compile(rb"(%b) (\S+) HTTP/1\.([01])\r\n" % _TOKEN)
_FIELD = re.compile(rb"(%b):[ \t]*((?:[\x21-\x7e\x80-\xff](?:[ \t]*[\x21-\x7e\x80-\xff])*)?)[ \t]*\r\n" % _TOKEN)
_PCHAR = rb"(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})"
_ORIGIN = re.compile(rb"(?:/%b*)+(?:\?(?:%b|[/?])*)?" % (_PCHAR, _PCHAR))
_HOST = re.compile(rb"(?:(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?")
_CHUNK = re.compile(
    rb"([0-9A-Fa-f]{1,8})((?:;%b(?:=(?:%b|\"[^\"\\\x00-\x08\x0a-\x1f\x7f]*\"))?)*)\r\n" % (_TOKEN, _TOKEN)
)
_STATUS = re.compile(rb"HTTP/1\.1 ([1-5][0-9]{2}) [\t\x20-\x7e\x80-\xff]*\r\n")
_NEVER_BEHIND = {b"content-length", b"transfer-encoding", b"host", b"connection"}
"""Fields that must not be sent as trailers (RFC 9110, section 6.5.1)."""
_ONCE = {b"content-length", b"transfer-encoding", b"content-type", b"connection", b"date", b"allow", b"retry-after"}
MOST_HEAD, MOST_FIELDS, MOST_TARGET, MOST_BODY = 30_000, 90, 4_000, 2_000_000
"""Larger requests are valid, too, but a server may have caps."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request that is valid to the letter."""

    method: bytes
    target: bytes
    version: bytes
    fields: dict[bytes, bytes]
    body: bytes

    @property
    def persists(self) -> bool:
        """Whether the connection goes on after it (RFC 9112, section 9.3)."""
        options = _options(self.fields)
        if b"close" in options:
            return False
        return self.version == b"1" or b"keep-alive" in options

    @property
    def is_for_this_machine(self) -> bool:
        """Whether it calls the server by a name of its machine; by another it is refused where there are no keys."""
        host = re.sub(rb":[0-9]*$", b"", self.fields.get(b"host", b"")).lower()
        return host in {b"", b"localhost", b"127.0.0.1", b"[::1]"}


def _options(fields: dict[bytes, bytes]) -> set[bytes]:
    return {option.strip().lower() for option in fields.get(b"connection", b"").split(b",")}


@dataclass(frozen=True, slots=True)
class Read:
    """What some bytes are.

    Attributes:
        requests: those that must be answered, in order.
        rest: what follows: nothing, or something that is not, or not yet, a strictly valid request.
    """

    requests: list[Request]
    rest: Literal["nothing", "something"]


def read_requests(data: bytes) -> Read:
    """Return the valid requests that `data` begins with, up to one that ends the connection."""
    requests, at = list[Request](), 0
    while at < len(data):
        found = _request(data, at)
        if found is None:
            return Read(requests, "something")
        request, at = found
        requests.append(request)
        if not request.persists:
            return Read(requests, "nothing" if at == len(data) else "something")
    return Read(requests, "nothing")


def _request(data: bytes, at: int) -> tuple[Request, int] | None:
    begin, line = at, _LINE.match(data, at)
    if line is None:
        return None
    method, target, minor = line.groups()
    read = _fields(data, line.end())
    if read is None or read[1] - begin > MOST_HEAD or not _is_target(method, target):
        return None
    fields, at = read
    chunked, length = fields.get(b"transfer-encoding"), fields.get(b"content-length")
    if (minor == b"1" and b"host" not in fields) or not _HOST.fullmatch(fields.get(b"host", b"")):
        return None
    if fields.get(b"expect", b"100-continue").lower() != b"100-continue":
        return None
    if minor == b"0" and (b"proxy-connection" in fields or {b"close", b"keep-alive"} <= _options(fields)):
        return None  # what a client of HTTP/1.0 means by these is a guess
    if chunked is not None:
        body = _chunked(data, at) if minor == b"1" and length is None and chunked.lower() == b"chunked" else None
    elif length is not None and not (length.isdigit() and len(length) < 9 and int(length) <= MOST_BODY):
        body = None
    else:
        end = at + int(length or 0)
        body = (data[at:end], end) if end <= len(data) else None
    if body is None:
        return None
    return Request(method, target, minor, fields, body[0]), body[1]


def _is_target(method: bytes, target: bytes) -> bool:
    # CONNECT and absolute targets are for proxies; an origin server may refuse them as it likes. PRI begins HTTP/2.
    if method in {b"CONNECT", b"PRI"} or len(target) > MOST_TARGET:
        return False
    return _ORIGIN.fullmatch(target) is not None or (target == b"*" and method == b"OPTIONS")


def _fields(data: bytes, at: int) -> tuple[dict[bytes, bytes], int] | None:
    """Return the fields up to the empty line, lists joined; None if they are not valid, or framing comes twice."""
    fields, count = dict[bytes, bytes](), 0
    while not data.startswith(b"\r\n", at):
        line = _FIELD.match(data, at)
        if line is None or count == MOST_FIELDS:
            return None
        name, value = line[1].lower(), line[2]
        if name in fields and name in {b"host", b"content-length", b"transfer-encoding", b"expect"}:
            return None
        if name == b"transfer-encoding" and not line[0].endswith(value + b"\r\n"):
            return None  # llhttp takes no white space behind the coding, which is safe
        fields[name] = fields[name] + b", " + value if name in fields else value
        at, count = line.end(), count + 1
    return fields, at + 2


def _chunked(data: bytes, at: int) -> tuple[bytes, int] | None:
    body = b""
    while True:
        head = _CHUNK.match(data, at)
        if head is None:
            return None
        size, at = int(head[1], 16), head.end()
        if size == 0:
            trailers = _fields(data, at)
            if trailers is None or _NEVER_BEHIND & trailers[0].keys():
                return None
            return body, trailers[1]
        body += data[at : at + size]
        at += size + 2
        if len(body) > MOST_BODY or data[at - 2 : at] != b"\r\n":
            return None


class Wrong(Exception):
    """The server did what it must not; the message says what."""


class Late(Wrong):
    """Nothing came in time, not even an end."""


class Ended(Exception):
    """The connection ended between two responses. `by` is end or reset."""

    def __init__(self, by: str) -> None:
        super().__init__(by)
        self.by = by


@dataclass(slots=True)
class Answer:
    """One final response."""

    status: int
    fields: dict[bytes, bytes]
    body: bytes
    continued: bool = False
    """Whether 100 (Continue) came before it."""
    closes: bool = field(init=False)

    def __post_init__(self) -> None:
        self.closes = self.fields.get(b"connection", b"").lower() == b"close"


class Responses:
    """Reads responses from a socket.

    Args:
        connection: connected.
        seconds: how long the server may be silent.
    """

    def __init__(self, connection: socket.socket, *, seconds: float) -> None:
        self._socket, self.seconds = connection, seconds
        self._data = bytearray()

    def next(self, request: Request | None) -> Answer:
        """Return the next final response.

        Args:
            request: what it answers; None if the standard leaves open whether it was a request at all.

        Raises:
            Wrong: if it is not one, or not one that may answer this request.
            Late: if it does not come.
            Ended: if the connection ends instead.
        """
        deadline = time.monotonic() + self.seconds
        if not self._data:
            self._more(deadline, between=True)
        continued = False
        while True:
            status, fields = self._head(deadline)
            if status >= 200:
                break
            waits = request is None or (b"expect" in request.fields and request.version == b"1")
            if status != 100 or continued or not waits:
                raise Wrong(f"an interim response {status} that nobody waits for")
            continued = True
        answer = Answer(status, fields, b"", continued)
        answer.body = self._body(request, answer, deadline)
        _check(request, answer)
        return answer

    def nothing_more(self) -> None:
        """Check that nothing lies between two requests.

        Raises:
            Wrong: if a response came that answers nothing.
            Ended: if the connection has ended.
        """
        self._socket.setblocking(False)
        try:
            data = self._socket.recv(65536)
            if not data and not self._data:
                raise Ended("end")
            self._data += data
        except BlockingIOError:
            pass
        except OSError:
            raise Ended("reset") from None
        if self._data:
            raise Wrong(f"bytes that answer nothing: {bytes(self._data[:80])!r}")

    def whatever(self) -> list[int]:
        """Read to the end what may be answers to HEAD, so that bodies may be missing; return the statuses.

        Raises:
            Wrong: if it is not HTTP.
            Late: if it does not end.
        """
        deadline = time.monotonic() + self.seconds
        try:
            while True:
                self._more(deadline, between=True)
        except Ended:
            data, self._data = bytes(self._data), bytearray()
        if data and not _STATUS.match(data):
            raise Wrong(f"no status line: {data[:80]!r}")
        return [int(line[1]) for line in _STATUS.finditer(data)]

    def end(self) -> None:
        """Wait until the connection ends.

        Raises:
            Wrong: if more comes.
            Late: if it stays open.
        """
        deadline = time.monotonic() + self.seconds
        try:
            while not self._data:
                self._more(deadline, between=True)
        except Ended:
            return
        raise Wrong(f"bytes behind the last response: {bytes(self._data[:80])!r}")

    def _more(self, deadline: float, *, between: bool = False) -> None:
        self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            data = self._socket.recv(1 << 18)
        except TimeoutError:
            raise Late(f"silent for {self.seconds:g} s" + ("" if between else " within a response")) from None
        except OSError:
            data = None
        if not data:
            if between:
                raise Ended("reset" if data is None else "end")
            raise Wrong(f"the connection ended within a response: {bytes(self._data[:80])!r}")
        self._data += data

    def _line_end(self, at: int, deadline: float) -> int:
        while (end := self._data.find(b"\r\n", at)) < 0:
            if len(self._data) - at > 65536:
                raise Wrong("a line of the response does not end")
            self._more(deadline)
        return end + 2

    def _head(self, deadline: float) -> tuple[int, dict[bytes, bytes]]:
        end = self._line_end(0, deadline)
        line = _STATUS.fullmatch(self._data, 0, end)
        if line is None:
            raise Wrong(f"no status line: {bytes(self._data[:80])!r}")
        status, fields = int(line[1]), dict[bytes, bytes]()
        while True:
            at, end = end, self._line_end(end, deadline)
            if end == at + 2:
                break
            found = _FIELD.fullmatch(self._data, at, end)
            if found is None:
                raise Wrong(f"no field line: {bytes(self._data[at:end][:80])!r}")
            name = found[1].lower()
            if name in fields and name in _ONCE:
                raise Wrong(f"{name.decode()} comes twice")
            fields[name] = found[2]
        del self._data[:end]
        return status, fields

    def _body(self, request: Request | None, answer: Answer, deadline: float) -> bytes:
        fields = answer.fields
        coding, length = fields.get(b"transfer-encoding"), fields.get(b"content-length")
        if answer.status in {204, 304} or (request is not None and request.method == b"HEAD"):
            if answer.status == 204 and (coding or length):
                raise Wrong("a 204 with a length")
            return b""
        if coding is not None:
            if length is not None or coding.lower() != b"chunked" or (request is not None and request.version == b"0"):
                raise Wrong(f"transfer-encoding {coding!r} that must not be here")
            return self._chunks(deadline)
        if length is None:
            if not answer.closes:
                raise Wrong(f"a {answer.status} that does not say where it ends")
            return self._until_end(deadline)
        if not length.isdigit():
            raise Wrong(f"content-length {length!r}")
        size = int(length)
        while len(self._data) < size:
            self._more(deadline)
        body = bytes(self._data[:size])
        del self._data[:size]
        return body

    def _until_end(self, deadline: float) -> bytes:
        try:
            while True:
                self._more(deadline, between=True)
        except Ended as ended:
            if ended.by == "reset":
                raise Wrong("a reset within a response that ends with its connection") from None
        body = bytes(self._data)
        self._data.clear()
        return body

    def _chunks(self, deadline: float) -> bytes:
        body = b""
        while True:
            end = self._line_end(0, deadline)
            head = _CHUNK.fullmatch(self._data, 0, end)
            if head is None:
                raise Wrong(f"no chunk: {bytes(self._data[:40])!r}")
            size = int(head[1], 16)
            while len(self._data) < end + size + 2:
                self._more(deadline)
            if self._data[end + size : end + size + 2] != b"\r\n":
                raise Wrong("a chunk that is longer than it says")
            body += self._data[end : end + size]
            del self._data[: end + size + 2]
            if size == 0:
                return body


def _check(request: Request | None, answer: Answer) -> None:
    """Hold a response against what the standard demands beside the framing."""
    status, fields = answer.status, answer.fields
    if status >= 500 and status not in {501, 505}:
        raise Wrong(f"{status}: {answer.body[:120]!r}")
    if b"date" not in fields:
        raise Wrong(f"a {status} without Date")  # RFC 9110, section 6.6.1
    if status == 405 and b"allow" not in fields:
        raise Wrong("a 405 without Allow")
    if status in {429, 503} and not fields.get(b"retry-after", b"").isdigit():
        raise Wrong(f"a {status} without Retry-After")
    if request is None:
        return
    if not request.persists and not answer.closes:
        raise Wrong("the connection was to end, and the response does not say so")
    # Who answers before all of the body has come may end the connection instead of waiting for the rest.
    waits = request.body or {b"expect", b"transfer-encoding"} & request.fields.keys()
    # HTTP/1.0 has no persistent connections of its own: a server may end every one.
    if answer.closes and request.persists and request.version == b"1" and status < 400 and not waits:
        raise Wrong(f"a {status} ends a connection that was to go on")
    wanted = 200 if request.is_for_this_machine else 400
    if request.target == b"/health/live" and request.method in {b"GET", b"HEAD"} and status != wanted:
        raise Wrong(f"{status} to a valid request for /health/live: {answer.body[:120]!r}")
