"""HTTP/1.1 by hand: a client that shows every byte, sends what no library would, and never waits without end."""

import json
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

HANG_SECONDS = 20.0
"""No answer for so long is a hang; every deadline that the tests give a server is shorter."""


class NoAnswer(Exception):
    """The connection ended before a whole response had come; `partial` says whether a part had."""

    def __init__(self, why: str, *, partial: bool = False) -> None:
        super().__init__(why)
        self.partial = partial


class Hang(NoAnswer):
    """Nothing came within the time: not even an end."""


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    headers: dict[str, str]
    """Names in lower case; the last of equal ones."""
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def closes(self) -> bool:
        return self.headers.get("connection", "").lower() == "close"


def message(
    method: str,
    path: str,
    body: bytes | None = None,
    *,
    headers: Mapping[str, str] | None = None,
    json_body: bool = True,
) -> bytes:
    """Return the bytes of a well-made request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
    if body is not None:
        lines += ["Content-Type: application/json"] * json_body + [f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + (body or b"")


def predict_message(text: Any = "a good film", *, headers: Mapping[str, str] | None = None, **more: Any) -> bytes:
    """Return the bytes of a good `POST /predict`."""
    return message("POST", "/predict", json.dumps({"inputs": text, **more}).encode(), headers=headers)


class Connection:
    """One connection, which may be used several times."""

    def __init__(self, port: int, *, seconds: float = HANG_SECONDS) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=seconds)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._seconds = seconds
        self._buffer = bytearray()

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Send all of it; an end of the connection while sending is left for `read` to tell."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendall(data)

    def ask(self, data: bytes, *, head: bool = False) -> Response:
        self.send(data)
        return self.read(head=head)

    def half_close(self) -> None:
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """End the connection with RST instead of FIN."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        self.socket.close()

    def read(self, *, head: bool = False) -> Response:
        """Return the next response; those of status 100 are passed over.

        Raises:
            NoAnswer: if the connection ends first.
            Hang: if nothing comes for too long.
        """
        deadline = time.monotonic() + self._seconds
        while True:
            while (end := self._buffer.find(b"\r\n\r\n")) < 0:
                self._more(deadline)
            status, headers = parse_head(bytes(self._buffer[:end]))
            del self._buffer[: end + 4]
            if status >= 200:
                break
        if head or status in {204, 304}:
            return Response(status, headers, b"")
        if "chunked" in headers.get("transfer-encoding", ""):
            return Response(status, headers, self._chunks(deadline))
        size = int(headers["content-length"]) if "content-length" in headers else None
        while size is None or len(self._buffer) < size:
            try:
                self._more(deadline)
            except Hang:
                raise
            except NoAnswer:
                if size is None:
                    size = len(self._buffer)
                    break
                raise
        body = bytes(self._buffer[:size])
        del self._buffer[:size]
        return Response(status, headers, body)

    def ended(self, *, seconds: float) -> bool:
        """Return whether the server ends the connection within `seconds`; what it still sends is dropped."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.socket.settimeout(left)
            try:
                if not self.socket.recv(65536):
                    return True
            except TimeoutError:
                return False
            except OSError:
                return True
        return False

    def _more(self, deadline: float) -> None:
        self.socket.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            data = self.socket.recv(1 << 18)
        except TimeoutError as error:
            raise Hang(f"no answer within {self._seconds} s", partial=bool(self._buffer)) from error
        except OSError as error:
            raise NoAnswer(f"the connection broke: {type(error).__name__}", partial=bool(self._buffer)) from error
        if not data:
            raise NoAnswer("the connection was closed", partial=bool(self._buffer))
        self._buffer += data

    def _chunks(self, deadline: float) -> bytes:
        body = bytearray()
        while True:
            while (end := self._buffer.find(b"\r\n")) < 0:
                self._more(deadline)
            size = int(bytes(self._buffer[:end]).split(b";")[0], 16)
            while len(self._buffer) < end + 2 + size + 2:
                self._more(deadline)
            body += self._buffer[end + 2 : end + 2 + size]
            del self._buffer[: end + 2 + size + 2]
            if not size:
                return bytes(body)


def parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    """Return status and headers.

    Raises:
        NoAnswer: if this is not the head of an HTTP/1.1 response.
    """
    lines = head.decode("latin-1").split("\r\n")
    version, _, rest = lines[0].partition(" ")
    if version not in {"HTTP/1.1", "HTTP/1.0"} or not rest[:3].isdecimal():
        raise NoAnswer(f"not HTTP: {lines[0][:40]!r}", partial=True)
    pairs = (line.partition(":") for line in lines[1:])
    return int(rest[:3]), {name.strip().lower(): value.strip() for name, _, value in pairs}


def ask(port: int, data: bytes, *, seconds: float = HANG_SECONDS, head: bool = False) -> Response:
    """Return the response to one request on a connection of its own."""
    with Connection(port, seconds=seconds) as connection:
        return connection.ask(data, head=head)


def get(port: int, path: str, *, seconds: float = HANG_SECONDS) -> Response:
    return ask(port, message("GET", path, headers={"Connection": "close"}), seconds=seconds)
