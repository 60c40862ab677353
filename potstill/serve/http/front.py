"""The ASGI application itself: find the endpoint, say no cheaply, answer every error in one shape.

At ten times the capacity nine of ten requests are refused, and the refusals share the cores with the model. So a
refusal is decided from the path and the headers alone: no routing by patterns, no body, no validation.
"""

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Iterable, Mapping
from hashlib import sha256
from time import perf_counter
from typing import TypeAlias

from potstill.serve.http.context import Engine
from potstill.serve.http.exchange import (
    Call,
    Headers,
    Receive,
    Reply,
    Scope,
    Send,
    error_reply,
    request_id_of,
    send_reply,
)
from potstill.serve.http.metrics import Counts, Traffic
from potstill.serve.http_errors import RequestError, failed
from potstill.serve.logging import log_failure

_GONE = 499  # nginx's word for a client that hung up; only in the metrics
Handler: TypeAlias = Callable[[Call], Awaitable[Reply]]


class Endpoint:
    """What answers one method of one path."""

    __slots__ = ("counts", "handler", "is_open", "is_work", "model")

    def __init__(self, handler: Handler, counts: Counts, *, model: str, is_work: bool, is_open: bool) -> None:
        self.handler = handler
        self.counts = counts
        self.model = model
        self.is_work = is_work
        self.is_open = is_open


Table: TypeAlias = Mapping[str, Mapping[str, Endpoint]]
"""path -> method -> endpoint; every path that there is, with the models' names filled in."""


class Keys:
    """The bearer keys, hashed: what is compared has one length, and a comparison takes one time."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._hashes = [sha256(key.encode()).digest() for key in keys]

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def check(self, headers: Headers) -> str:
        """Let a request pass that has a key; return which, hashed.

        Raises:
            RequestError: 401.
        """
        scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
        given = sha256(key.strip()).digest()
        # Every key is compared, whichever fits.
        fits = [hmac.compare_digest(given, known) for known in self._hashes]
        if scheme.lower() != b"bearer" or not any(fits):
            raise RequestError(
                "a key is needed: send Authorization: Bearer KEY",
                status=401,
                error_type="unauthorized",
                headers={"WWW-Authenticate": 'Bearer realm="potstill"'},
            )
        return given.hex()


class Front:
    """The application: ASGI 3, HTTP only."""

    def __init__(self, *, engine: Engine, table: Table, keys: Keys, traffic: Traffic) -> None:
        self._engine = engine
        self._table = table
        self._keys = keys
        self._traffic = traffic
        self._nowhere = traffic.counts("any", "none")
        self._paths = sorted(path for path in table if not path.startswith(("/models/", "/static/", "/v2/")))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; other kinds of scope are acknowledged and left."""
        if scope["type"] != "http":
            await _acknowledge(scope, receive, send)
            return
        headers: Headers = dict(scope["headers"])
        request_id = request_id_of(headers)
        methods = self._table.get(scope["path"])
        endpoint = methods.get(scope["method"]) if methods is not None else None
        if endpoint is None:
            await self._answer_other(scope, receive, send, headers, request_id, methods)
            return
        try:
            client = str((scope.get("client") or ("",))[0])
            if self._keys and not endpoint.is_open:
                client = self._keys.check(headers)
            if endpoint.is_work:
                self._engine.refuse_if_full(endpoint.model, client=client)
        except RequestError as error:
            endpoint.counts.add(error.status)
            await send_reply(error_reply(error), send, request_id=request_id)
            return
        await self._run(endpoint, Call(scope, headers, receive, endpoint.model, client), send, request_id)

    async def _run(self, endpoint: Endpoint, call: Call, send: Send, request_id: bytes) -> None:
        traffic = self._traffic
        traffic.in_flight += 1
        started = perf_counter()
        status = _GONE
        try:
            try:
                reply = await endpoint.handler(call)
            except Exception as error:
                reply = error_reply(_as_request_error(error))
            status = reply.status
            await send_reply(reply, send, request_id=request_id, with_body=call.scope["method"] != "HEAD")
        finally:
            traffic.in_flight -= 1
            endpoint.counts.add(status)
            if endpoint.is_work and status == 200:
                traffic.seconds.observe(perf_counter() - started)

    async def _answer_other(
        self, scope: Scope, receive: Receive, send: Send, headers: Headers, request_id: bytes,
        methods: Mapping[str, Endpoint] | None,
    ) -> None:  # fmt: skip
        """Answer what the table does not hold: OPTIONS, and 404 and 405."""
        method = scope["method"]
        try:
            is_open = any(endpoint.is_open for endpoint in (methods or {}).values())
            if self._keys and not is_open and method != "OPTIONS":
                self._keys.check(headers)
            allowed = set(methods or ())
            reply = _options(allowed) if method == "OPTIONS" and allowed else None
            if reply is None:
                raise self._method_not_allowed(allowed) if allowed else self._not_found()
        except RequestError as error:
            reply = error_reply(error)
        self._nowhere.add(reply.status)
        await send_reply(reply, send, request_id=request_id, with_body=method != "HEAD")

    def _not_found(self) -> RequestError:
        models = ", ".join(self._engine.models)
        return RequestError(
            f"there is nothing at this path; there are {', '.join(self._paths)}, and models/NAME/ before predict, "
            f"embed and tokenize, where NAME is one of: {models}",
            status=404,
            error_type="not_found",
        )

    def _method_not_allowed(self, allowed: set[str]) -> RequestError:
        names = ", ".join(sorted(allowed))
        return RequestError(
            f"this path answers {names}", status=405, error_type="method_not_allowed", headers={"Allow": names}
        )


def _as_request_error(error: Exception) -> RequestError:
    if isinstance(error, RequestError):
        return error
    log_failure("a request failed", error)
    return failed()


def _options(allowed: set[str]) -> Reply:
    return Reply(204, b"", [(b"allow", ", ".join(sorted({*allowed, "OPTIONS"})).encode())])


async def _acknowledge(scope: Scope, receive: Receive, send: Send) -> None:
    """Follow the lifespan protocol, which has nothing to do here; close a WebSocket."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1003})
        return
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
        await asyncio.sleep(0)
