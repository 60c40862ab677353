"""One request and its answer, as near to ASGI as it gets: what is read of the headers, the body, the reply."""

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from itertools import count
from secrets import token_hex
from typing import Any, TypeAlias

from pydantic_core import to_json

from potstill.serve.batching import Answered
from potstill.serve.http_errors import RequestError, invalid, malformed, too_large
from potstill.serve.limits import Limits

Scope: TypeAlias = Any
Receive: TypeAlias = Callable[[], Awaitable[Any]]
Send: TypeAlias = Callable[[Any], Awaitable[None]]
Headers: TypeAlias = dict[bytes, bytes]
"""Lower-case names; of a header that comes twice the last counts."""
Fields: TypeAlias = list[tuple[bytes, bytes]]

_JSON = (b"content-type", b"application/json")
_SANE_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
SHORTEST_TIMEOUT_MS, LONGEST_TIMEOUT_MS = 10, 86_400_000
"""What X-Request-Timeout-Ms may say. Less than the shortest is what any process is paused for now and then: nothing can
be promised in it. The server's own limit is less than the longest, and then counts."""
_TIMEOUT = re.compile(rb"[0-9]{1,8}")
_PLAIN_JSON = frozenset({b"application/json", b"application/json; charset=utf-8", b"application/json;charset=utf-8"})
_run, _numbers = token_hex(6).encode(), count(1)


@dataclass(slots=True)
class Reply:
    """An answer that is ready to be sent."""

    status: int
    body: bytes
    fields: Fields
    """Header fields, Content-Type among them; Content-Length is added."""


@dataclass(slots=True)
class Call:
    """One request whose body has not been read."""

    scope: Scope
    headers: Headers
    receive: Receive
    model: str
    """The model that its path names, or the default."""
    client: str = ""
    """Its API key's hash, or without keys the address that it came from: who shares with whom."""


def json_reply(content: Any, *, status: int = 200, fields: Fields | None = None) -> Reply:
    """Return a reply of JSON values; floats are written so that they read back the same."""
    return Reply(status, to_json(content), [_JSON, *(fields or ())])


def error_reply(error: RequestError) -> Reply:
    """Return the reply of the one shape that errors have."""
    fields = [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
    return json_reply(error.content(), status=error.status, fields=fields)


async def send_reply(reply: Reply, send: Send, *, request_id: bytes, with_body: bool = True) -> None:
    """Send it; `with_body` is false for HEAD."""
    length = (b"content-length", str(len(reply.body)).encode())
    fields = [*reply.fields, (b"x-request-id", request_id)]
    if reply.status != 204:
        fields.append(length)
    await send({"type": "http.response.start", "status": reply.status, "headers": fields})
    await send({"type": "http.response.body", "body": reply.body if with_body else b""})


def request_id_of(headers: Headers) -> bytes:
    """Return the client's X-Request-Id if it can be sent back safely, else a new one."""
    given = headers.get(b"x-request-id")
    if given is not None and _SANE_ID.fullmatch(given):
        return given
    return b"%b-%x" % (_run, next(_numbers))


def timeout_of(headers: Mapping[bytes, bytes], limits: Limits) -> float | None:
    """Return the seconds that the client gives the request, at most the server's own; None if it does not say.

    Raises:
        RequestError: 422 if X-Request-Timeout-Ms is not a whole number, or out of bounds.
    """
    given = headers.get(b"x-request-timeout-ms")
    if given is None:
        return None
    if not _TIMEOUT.fullmatch(given) or not SHORTEST_TIMEOUT_MS <= int(given) <= LONGEST_TIMEOUT_MS:
        raise invalid(
            "X-Request-Timeout-Ms must be a whole number of milliseconds"
            f" from {SHORTEST_TIMEOUT_MS} to {LONGEST_TIMEOUT_MS}"
        )
    return min(int(given) / 1e3, limits.request_seconds)


def received_at(scope: Scope) -> float | None:
    """Return when the headers had come, in the event loop's clock; None if the server does not say."""
    state = scope.get("state")
    return state.get("received_at") if state else None


def check_media_type(headers: Mapping[bytes, bytes]) -> None:
    """Refuse what is not plain JSON in UTF-8.

    Raises:
        RequestError: 415.
    """
    given = headers.get(b"content-type", b"")
    if given in _PLAIN_JSON and b"content-encoding" not in headers:
        return
    kind, _, parameters = given.decode("latin-1").lower().partition(";")
    charset = parameters.partition("charset=")[2].strip(' "') or "utf-8"
    encoding = headers.get(b"content-encoding", b"identity").lower()
    if kind.strip() != "application/json" or charset not in {"utf-8", "utf8"} or encoding != b"identity":
        raise RequestError(
            "the body must be plain JSON in UTF-8: send Content-Type: application/json and no Content-Encoding",
            status=415,
            error_type="unsupported_media_type",
        )


async def read_body(receive: Receive, headers: Mapping[bytes, bytes], limits: Limits) -> bytes:
    """Return the whole body.

    Raises:
        RequestError: 413 if it is over the limit, 400 if the client leaves before its end.
    """
    declared = headers.get(b"content-length", b"")
    if declared.isdigit() and int(declared[:20]) > limits.body_bytes:
        raise _too_large(limits)
    message = await receive()
    if not message.get("more_body") and message["type"] == "http.request":
        body: bytes = message.get("body", b"")
    else:
        body = await _read_parts(message, receive, limits)
    if len(body) > limits.body_bytes:
        raise _too_large(limits)
    return body


async def _read_parts(message: Any, receive: Receive, limits: Limits) -> bytes:
    body = bytearray()
    while message["type"] == "http.request":
        body += message.get("body", b"")
        if not message.get("more_body") or len(body) > limits.body_bytes:
            return bytes(body)
        message = await receive()
    raise malformed("the body ended early")


def _too_large(limits: Limits) -> RequestError:
    return too_large(f"the body is over {limits.body_bytes} bytes; send fewer texts")


def timing_fields(answered: Answered) -> Fields:
    """Return the response headers that say where the time went."""
    timings = answered.timings
    return [
        (b"x-tokenize-time-ms", b"%.3f" % (timings.tokenise_s * 1e3)),
        (b"x-queue-time-ms", b"%.3f" % (timings.queue_s * 1e3)),
        (b"x-inference-time-ms", b"%.3f" % (timings.infer_s * 1e3)),
        (b"x-tokens", b"%d" % timings.tokens),
    ]
