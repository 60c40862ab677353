"""The Starlette application: routes, access control, errors, request ids, metrics.

    POST /predict  /embed  /tokenize         the first model; /models/NAME/... names one
    POST /v1/embeddings     GET /v1/models   OpenAI's
    POST /                                   Hugging Face's, of the first model
    GET  /health/live  /health/ready  /health  /info  /metrics  /models/NAME
    GET  /  /docs  /openapi.json             for people
    /v2/...                                  the Open Inference Protocol

    every error    {"error": "what was wrong, what was expected", "error_type": "validation"}

Neither errors nor logs hold a client's text.
"""

import hmac
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from hashlib import sha256
from importlib.resources import files
from itertools import count
from secrets import token_hex
from time import perf_counter
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from potstill.serve.http import info
from potstill.serve.http.metrics import CONTENT_TYPE, Metrics
from potstill.serve.http.oip import v2_routes
from potstill.serve.http.openai import Embeddings, describe_model
from potstill.serve.http.openapi import document
from potstill.serve.http.predict import Endpoint, ModelEndpoints, per_model
from potstill.serve.http_errors import RequestError, error_response, failed, malformed, not_found, unavailable
from potstill.serve.limits import Limits
from potstill.serve.logging import log_failure
from potstill.tasks import FEATURE_EXTRACTION

if TYPE_CHECKING:
    from potstill.serve.batching import Engine

_GONE = 499  # nginx's status for a client that hung up; only in the metrics
# X-Request-Id that is repeated as it came: nothing that could break a header or a line of a log.
_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
# Request ids where the client sends none: random per process, then counted.
_run, _numbers = token_hex(6), count(1)
_TIMINGS = ("X-Request-Id", "X-Tokenize-Time-Ms", "X-Queue-Time-Ms", "X-Inference-Time-Ms", "X-Tokens", "Retry-After")
_MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_PAGES = {"index.html": "/", "docs.html": "/docs"}
_PAGE_HEADERS = {
    # Scripts and styles are files of this origin: nothing inline runs, and nothing is loaded from or sent elsewhere.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # or after an update an old script may meet a new page
}


def create_app(
    engine: "Engine",
    *,
    limits: Limits | None = None,
    api_keys: Sequence[str] = (),
    allowed_hosts: Collection[str] | None = None,
    cors_origins: Sequence[str] = (),
) -> Starlette:
    """Return the ASGI application that answers with `engine`, and register its metrics as the engine's observer.

    Args:
        engine: warmed up; started by the caller before requests come.
        limits: limits of sizes, counts and times; the defaults if None.
        api_keys: bearer keys; if empty, everybody is answered. /health, the pages and the OpenAPI document are always
            open.
        allowed_hosts: the names that requests may call this server by, without ports; any if None. A server that
            trusts its own machine must not be asked by a web page whose name was made to point there (DNS rebinding).
        cors_origins: the origins whose web pages may read answers; "*" is all of them.
    """
    limits = limits or Limits()
    metrics = Metrics(engine)
    engine.observer = metrics.engine_observer
    models = {name: ModelEndpoints(name, engine, limits) for name in engine.models}
    described = document(engine, limits, needs_key=_needs_key if api_keys else None)

    async def openapi(request: Request) -> Response:
        prefix = request.scope.get("root_path")
        return JSONResponse(described | ({"servers": [{"url": prefix}]} if prefix else {}))

    routes: list[BaseRoute] = [
        *_model_routes(models, limits),
        *_state_routes(engine, limits, metrics),
        *v2_routes(engine, limits),
        *_page_routes(),
        Route("/openapi.json", openapi),
    ]

    async def no_route(request: Request, error: Exception) -> Response:
        return _answer_without_route(request, routes, engine.models)

    middleware = [
        Middleware(ErrorMiddleware, metrics=metrics),
        Middleware(AccessMiddleware, api_keys=api_keys, allowed_hosts=allowed_hosts),
    ]
    if cors_origins:
        cors = Middleware(
            JsonCORSMiddleware,
            allow_origins=cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=_TIMINGS,
        )
        # Outermost: a preflight request carries no key, and errors need the CORS headers to be readable, too.
        middleware.insert(0, cors)
    app = Starlette(routes=routes, middleware=middleware, exception_handlers={HTTPException: no_route})
    app.router.redirect_slashes = False  # or Starlette would answer 307 to a slash too many, in place of our 404
    return app


# ---------------------------------------------------------------- routes


def _model_routes(models: Mapping[str, ModelEndpoints], limits: Limits) -> list[BaseRoute]:
    vectors = {name: model for name, model in models.items() if model.encoder.manifest.task == FEATURE_EXTRACTION.name}

    async def list_models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [describe_model(name) for name in models]})

    async def describe_openai(model: ModelEndpoints, request: Request) -> Response:
        return JSONResponse(describe_model(model.name))

    async def describe(model: ModelEndpoints, request: Request) -> Response:
        return JSONResponse(info.describe_model(model.encoder))

    routes: list[BaseRoute] = [Route("/predict", per_model(models, ModelEndpoints.predict), methods=["POST"])]
    if vectors:
        routes += [
            Route("/v1/embeddings", Embeddings(vectors, limits).embed, methods=["POST"]),
            Route("/embed", per_model(vectors, ModelEndpoints.embed), methods=["POST"]),
            Route("/models/{name}/embed", per_model(vectors, ModelEndpoints.embed), methods=["POST"]),
        ]
    return [
        *routes,
        Route("/models/{name}/predict", per_model(models, ModelEndpoints.predict), methods=["POST"]),
        Route("/", per_model(models, ModelEndpoints.hugging_face), methods=["POST"]),
        Route("/models/{name}", per_model(models, ModelEndpoints.hugging_face), methods=["POST"]),
        Route("/tokenize", per_model(models, ModelEndpoints.tokenize), methods=["POST"]),
        Route("/models/{name}/tokenize", per_model(models, ModelEndpoints.tokenize), methods=["POST"]),
        Route("/models/{name}", per_model(models, describe)),
        Route("/v1/models", list_models),
        Route("/v1/models/{name}", per_model(models, describe_openai)),
    ]


def _state_routes(engine: "Engine", limits: Limits, metrics: Metrics) -> list[BaseRoute]:
    async def live(_: Request) -> Response:
        if not engine.is_alive():
            raise unavailable("the engine does not answer; restart the server")
        return JSONResponse({"status": "ok"})

    async def ready(request: Request) -> Response:
        info.check_ready(engine, request)
        return JSONResponse({"status": "ok"})

    async def describe(_: Request) -> Response:
        return JSONResponse(info.describe_server(engine, limits))

    async def measured(_: Request) -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    return [
        Route("/health/live", live),
        Route("/health/ready", ready),
        Route("/health", ready),
        Route("/info", describe),
        Route("/metrics", measured),
    ]


def _page_routes() -> list[BaseRoute]:
    """Return routes for the two pages and their files, read once: HTML, CSS and JavaScript without a build step."""
    routes: list[BaseRoute] = []
    for file in files("potstill.serve.http").joinpath("static").iterdir():
        media_type = _MEDIA_TYPES.get(file.name.rpartition(".")[2])
        if media_type is not None:
            response = Response(file.read_bytes(), media_type=media_type, headers=_PAGE_HEADERS)
            routes.append(Route(_PAGES.get(file.name, f"/static/{file.name}"), _constant(response)))
    return routes


def _constant(response: Response) -> Endpoint:
    async def endpoint(_: Request) -> Response:
        return response

    return endpoint


def _answer_without_route(request: Request, routes: Sequence[BaseRoute], models: Iterable[str]) -> Response:
    """Answer OPTIONS on a known path with 204; raise 405 for another method there, and 404 for an unknown path."""
    methods = {
        method
        for route in routes
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE
        for method in route.methods or ()
    }
    if methods and request.method == "OPTIONS":
        return Response(status_code=204, headers={"Allow": ", ".join(sorted({*methods, "OPTIONS"}))})
    if methods:
        allowed = ", ".join(sorted(methods))
        raise RequestError(
            f"this path answers {allowed}", status=405, error_type="method_not_allowed", headers={"Allow": allowed}
        )
    paths = sorted({route.path for route in routes if isinstance(route, Route) and "{" not in route.path})
    known = ", ".join(path for path in paths if not path.startswith(("/static/", "/v2/")))
    raise not_found(
        f"there is nothing at this path; there are {known}, and models/NAME/ before predict, "
        f"embed and tokenize, where NAME is one of: {', '.join(models)}"
    )


# ---------------------------------------------------------------- what holds for every request


class ErrorMiddleware:
    """Set X-Request-Id, turn exceptions into JSON errors, and count requests by route and status.

    Args:
        app: the next ASGI application.
        metrics: where requests are counted.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; scopes other than HTTP are passed on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _SANE_ID.fullmatch(given) else f"{_run}-{next(_numbers):x}"
        field = (b"x-request-id", request_id.encode())
        status, started = _GONE, perf_counter()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                # A new list: that of a page's constant response would grow with every request.
                message = {**message, "headers": [*message.get("headers", ()), field]}
            await send(message)

        metrics = self._metrics
        metrics.in_flight.inc()
        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            if not isinstance(error, RequestError):
                log_failure("a request failed", error)
                error = failed()
            if status == _GONE:  # no response has begun, so this one still can
                await error_response(error, path=route_path(scope))(scope, receive, send_with_id)
        finally:
            metrics.in_flight.dec()
            # Labels are the route's template: names from the path would be without bound, and a client's.
            route = scope.get("route")
            if isinstance(route, Route) and scope["method"] in (route.methods or ()):
                metrics.requests.labels(scope["method"], route.path, status).inc()
                if scope["method"] == "POST" and status == 200:
                    metrics.seconds.observe(perf_counter() - started)
            else:
                metrics.requests.labels("any", "none", status).inc()


class AccessMiddleware:
    """Refuse requests without a valid key (401) or with a Host that is not allowed (400).

    Args:
        app: the next ASGI application.
        api_keys: bearer keys; if empty, no key is needed.
        allowed_hosts: names without ports; any if None.
    """

    def __init__(self, app: ASGIApp, api_keys: Iterable[str], allowed_hosts: Collection[str] | None) -> None:
        self._app = app
        # Hashed, so that all have one length: compare_digest may reveal lengths by its time (Python's documentation).
        self._hashes = [sha256(key.encode()).digest() for key in api_keys]
        self._hosts = None if allowed_hosts is None else {name.lower() for name in allowed_hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on one request; `request.state.client` is then its key's hash, or the address that it came from."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            self._check_host(headers.get("host", ""))
            client = str((scope.get("client") or ("",))[0])
            if self._hashes and _needs_key(scope["method"], route_path(scope)):
                client = self._check_key(scope)
            scope.setdefault("state", {})["client"] = client
        await self._app(scope, receive, send)

    def _check_host(self, host: str) -> None:
        # Without the port, an IPv6 address's brackets (RFC 3986, section 3.2.2) and the root's dot of a full name.
        name = re.sub(r":\d*$", "", host).strip("[]").rstrip(".").lower()
        if self._hosts is not None and name and name not in self._hosts:
            raise malformed(
                "the header Host is not a name of this server, which answers its own machine without a key; "
                "ask for localhost, or start it with --allowed-host or --api-key-file"
            )

    def _check_key(self, scope: Scope) -> str:
        """Return the hash of the request's key in hexadecimal.

        Raises:
            RequestError: 401 if there is no key, or an unknown one.
        """
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, key = given.partition(b" ")
        hashed = sha256(key.strip()).digest()
        # Every key is compared, so that the time does not tell which one fits. The scheme's case does not matter
        # (RFC 9110, section 11.1).
        fits = [hmac.compare_digest(hashed, known) for known in self._hashes]
        if scheme.lower() != b"bearer" or not any(fits):
            raise RequestError(
                "a key is needed: send Authorization: Bearer KEY",
                status=401,
                error_type="unauthorized",
                headers={"WWW-Authenticate": 'Bearer realm="potstill"'},
            )
        return hashed.hex()


def _needs_key(method: str, path: str) -> bool:
    """Return whether a key is needed: for all but the state of the server, and the pages for people."""
    if path in {"/docs", "/openapi.json", "/health"} or path.startswith(("/health/", "/v2/health/", "/static/")):
        return False
    return path != "/" or method == "POST"


class JsonCORSMiddleware(CORSMiddleware):
    """Starlette's CORS middleware, whose refusals are JSON in the shape of every other error."""

    def preflight_response(self, request_headers: Headers) -> Response:
        """Return the response to a preflight request; 400 in our shape if it is refused."""
        response = super().preflight_response(request_headers)
        if response.status_code == 200:
            return response
        return error_response(malformed("pages of this origin may not ask that; see --cors-origin"))


def route_path(scope: Scope) -> str:
    """Return the request's path without the root path under which a proxy shows the server."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))
