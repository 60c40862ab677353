"""The errors that a client gets: one exception class, a function for each status, and the JSON of the response.

No message repeats what a client sent, because it may be private and messages end in logs. Messages name places, types
and counts instead. The engine raises these errors too; it needs no HTTP for that.
"""

from collections.abc import Mapping
from math import ceil
from typing import TYPE_CHECKING, Literal, TypeAlias

from pydantic_core import to_json

from potstill.errors import UsageError

if TYPE_CHECKING:
    from starlette.responses import Response

ErrorType: TypeAlias = Literal[
    "validation",
    "unauthorized",
    "not_found",
    "method_not_allowed",
    "timeout",
    "too_large",
    "unsupported_media_type",
    "overloaded",
    "backend",
    "unavailable",
]


class RequestError(UsageError):
    """The error of one request: its HTTP status, `error_type`, and headers of the response."""

    def __init__(
        self, message: str, *, status: int, error_type: ErrorType, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.error_type = error_type
        self.headers = dict(headers or {})

    def content(self, path: str = "") -> dict[str, object]:
        """Return the body of the response as JSON values: under /v1 in OpenAI's shape, elsewhere in potstill's."""
        if not path.startswith("/v1/"):
            return {"error": str(self), "error_type": self.error_type}
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": str(self), "type": kind, "param": None, "code": self.error_type}}


def error_response(error: RequestError, *, path: str = "") -> "Response":
    """Return the response for an error.

    Args:
        error: what was wrong.
        path: of the request; under /v1 clients of OpenAI expect another shape.
    """
    # Imported here, because the engine raises these errors in processes that have no Starlette.
    from starlette.responses import Response

    # pydantic's writer, because under load most answers are refusals, and `json` takes ten times as long.
    content = to_json(error.content(path))
    return Response(content, status_code=error.status, headers=error.headers, media_type="application/json")


def invalid(message: str) -> RequestError:
    """Return a 422: the request was read, and asks for something that is not possible."""
    return RequestError(message, status=422, error_type="validation")


def malformed(message: str) -> RequestError:
    """Return a 400: the request cannot be read."""
    return RequestError(message, status=400, error_type="validation")


def not_found(message: str) -> RequestError:
    """Return a 404: there is no such path or model."""
    return RequestError(message, status=404, error_type="not_found")


def too_large(message: str) -> RequestError:
    """Return a 413: the request is over a limit of size."""
    return RequestError(message, status=413, error_type="too_large")


def overloaded(retry_after_s: float) -> RequestError:
    """Return a 429: too much is waiting. `retry_after_s` says after how many seconds the client should try again."""
    return RequestError(
        f"too much is waiting already; try again in {_whole(retry_after_s)} s",
        status=429,
        error_type="overloaded",
        headers={"Retry-After": str(_whole(retry_after_s)), "Retry-After-Ms": str(max(1, ceil(retry_after_s * 1e3)))},
    )


def unavailable(message: str, *, retry_after_s: float = 1.0) -> RequestError:
    """Return a 503: the server is starting or ending, or its engine does not answer."""
    return RequestError(
        message, status=503, error_type="unavailable", headers={"Retry-After": str(_whole(retry_after_s))}
    )


def expired(timeout_s: float) -> RequestError:
    """Return a 504: the request was not answered within the time that the client, or the server, allows."""
    return RequestError(f"not answered within {timeout_s * 1e3:.0f} ms", status=504, error_type="timeout")


def failed() -> RequestError:
    """Return a 500: the tokenizer or the model failed on the request."""
    return RequestError(
        "the model failed on this request; the server's log says where", status=500, error_type="backend"
    )


def _whole(seconds: float) -> int:
    """Return seconds as Retry-After takes them (RFC 9110, section 10.2.3): a whole number; here at least 1."""
    return max(1, ceil(seconds))
