"""The HTTP application: predict, health, info, and one shape for every error.

    POST /predict  {"inputs": "text" | ["text", {"text": ..., "text_pair": ...}], "parameters": {"top_k": 1}}
                   one text gives [{"label": ..., "score": ...}, ...], most likely first; a list gives a list of these
    GET /health    {"status": "ok"}; the model has answered before this path exists
    GET /info      what is served and how it was checked

    every error    {"error": "what was wrong, what was expected", "error_type": "validation"}

Neither errors nor logs hold a client's text.
"""

import logging
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import potstill
from potstill.serve.encoder import Encoder, check_servable
from potstill.serve.limits import Limits
from potstill.serve.request import ErrorType, RequestError, read_predict
from potstill.serve.worker import Worker

_LOG = logging.getLogger("potstill.serve")
_DEFAULTS = Limits()
_PATHS = "POST /predict, GET /health, GET /info"


def create_app(encoder: Encoder, *, limits: Limits = _DEFAULTS) -> Starlette:
    """Return the application that answers with `encoder`, after the model has answered once.

    Raises:
        UsageError: if the bundle's task is not served.
        CheckError: if the model does not answer with finite numbers.
    """
    check_servable(encoder.manifest)
    _warm_up(encoder)
    api = _Api(encoder, limits)
    app = Starlette(
        routes=[
            Route("/predict", api.predict, methods=["POST"]),
            Route("/health", api.health, methods=["GET"]),
            Route("/info", api.info, methods=["GET"]),
        ],
        exception_handlers={RequestError: _on_request_error, HTTPException: _on_http_error, Exception: _on_any_error},
        lifespan=api.lifespan,
    )
    app.router.redirect_slashes = False  # a redirect would be an answer outside of the documented ones
    return app


class _Api:
    """The three endpoints and the worker behind them."""

    def __init__(self, encoder: Encoder, limits: Limits) -> None:
        self._encoder = encoder
        self._limits = limits
        self._worker = Worker(waiting=limits.waiting)
        self._info = describe(encoder)

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        yield
        self._worker.close()

    async def predict(self, request: Request) -> JSONResponse:
        _check_media_type(request)
        manifest = self._encoder.manifest
        asked = read_predict(
            await _read_body(request, self._limits.body_bytes),
            limits=self._limits,
            max_length=manifest.max_length,
            num_labels=len(manifest.labels),
        )
        try:
            answers = await self._worker.run(lambda: self._encoder.predict(asked.texts, top_k=asked.top_k))
        except RequestError:
            raise
        except Exception as error:
            raise _backend_failure(error) from None
        return JSONResponse(answers if asked.is_list else answers[0])

    async def health(self, _: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    async def info(self, _: Request) -> JSONResponse:
        return JSONResponse(self._info)


def describe(encoder: Encoder) -> dict[str, Any]:
    """Return what `GET /info` says: the model, where it came from, and how it was checked; plain JSON values."""
    manifest, record = encoder.manifest, encoder.record
    file = encoder.bundle.record_of(encoder.precision)
    return {
        "task": manifest.task,
        "labels": manifest.labels,
        "precision": encoder.precision,
        "max_length": manifest.max_length,
        "parameters": manifest.parameters,
        "model_file": record.file,
        "model_sha256": file.sha256,
        "model_size_bytes": file.size_bytes,
        "quantisation": record.quantisation,
        "batch_invariant": record.batch_invariant,
        "parity": record.parity,
        "source": manifest.source,
        "threads": encoder.session.threads,
        "potstill_version": potstill.__version__,
    }


def _warm_up(encoder: Encoder) -> None:
    # The longest text first: onnxruntime then reserves its memory once, in the largest size one text needs.
    encoder.predict(["warm up " * encoder.manifest.max_length])
    encoder.predict(["warm up"])


async def _read_body(request: Request, most: int) -> bytes:
    # Starlette's own cap answers in plain text, so the body is counted here.
    too_large = RequestError(f"the body is over {most} bytes; send fewer texts", status=413, error_type="too_large")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > most:
        raise too_large
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > most:
                raise too_large
    except ClientDisconnect:
        raise RequestError("the body ended early", status=400, error_type="validation") from None
    return bytes(body)


def _check_media_type(request: Request) -> None:
    kind, _, parameters = request.headers.get("content-type", "").lower().partition(";")
    charset = parameters.partition("charset=")[2].strip(' "') or "utf-8"
    encoding = request.headers.get("content-encoding", "identity").lower()
    if kind.strip() != "application/json" or charset not in {"utf-8", "utf8"} or encoding != "identity":
        raise RequestError(
            "the body must be plain JSON in UTF-8: send Content-Type: application/json and no Content-Encoding",
            status=415,
            error_type="unsupported_media_type",
        )


def _backend_failure(error: Exception) -> RequestError:
    # The place only: an exception's message may quote the text it failed on.
    frame = traceback.extract_tb(error.__traceback__)[-1]
    _LOG.error("inference failed: %s at %s:%s", type(error).__name__, frame.filename, frame.lineno)
    return RequestError(
        "the model failed on this request; the server's log says where", status=500, error_type="backend"
    )


async def _on_request_error(_: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, RequestError):
        raise error
    return _error(str(error), error.error_type, error.status, error.headers)


async def _on_http_error(_: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, HTTPException):
        raise error
    headers = dict(error.headers or {})
    if error.status_code == 404:
        return _error(f"there is nothing at this path; there are {_PATHS}", "not_found", 404, headers)
    if error.status_code == 405:
        allowed = headers.get("Allow", "other methods")
        return _error(f"this path answers {allowed}; there are {_PATHS}", "method_not_allowed", 405, headers)
    kind: ErrorType = "validation" if error.status_code < 500 else "backend"
    return _error("the request cannot be answered", kind, error.status_code, headers)


async def _on_any_error(_: Request, __: Exception) -> JSONResponse:
    return _error("the server failed on this request", "backend", 500, {})


def _error(message: str, error_type: ErrorType, status: int, headers: dict[str, str]) -> JSONResponse:
    return JSONResponse({"error": message, "error_type": error_type}, status_code=status, headers=headers)
