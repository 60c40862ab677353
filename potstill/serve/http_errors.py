"""Every way in which a request is not answered: one class, its statuses, and the JSON that a client gets.

No message repeats what a client sent: it may be private, and messages end in logs. They name places, types and counts.
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
    """A request that gets an error: its HTTP status, its `error_type`, and headers to send along."""

    def __init__(
        self, message: str, *, status: int, error_type: ErrorType, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.error_type = error_type
        self.headers = dict(headers or {})

    def content(self, path: str = "") -> dict[str, object]:
        """Return the body of the response: one shape everywhere, and OpenAI's own under /v1."""
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
    # The engine raises these errors without HTTP, and then without Starlette.
    from starlette.responses import Response

    content = to_json(error.content(path))  # under load most answers are refusals, and `json` takes ten times as long
    return Response(content, status_code=error.status, headers=error.headers, media_type="application/json")


def invalid(message: str) -> RequestError:
    """422: it was understood and asks for what cannot be."""
    return RequestError(message, status=422, error_type="validation")


def malformed(message: str) -> RequestError:
    """400: it could not be read."""
    return RequestError(message, status=400, error_type="validation")


def not_found(message: str) -> RequestError:
    """404: there is no such path or model."""
    return RequestError(message, status=404, error_type="not_found")


def too_large(message: str) -> RequestError:
    """413: over a limit of size."""
    return RequestError(message, status=413, error_type="too_large")


def overloaded(retry_after_s: float) -> RequestError:
    """429: those before it take too long already. `retry_after_s` is when it would be taken, as predicted."""
    return RequestError(
        f"too much is waiting already; try again in {_whole(retry_after_s)} s",
        status=429,
        error_type="overloaded",
        headers={"Retry-After": str(_whole(retry_after_s)), "Retry-After-Ms": str(max(1, ceil(retry_after_s * 1e3)))},
    )


def unavailable(message: str, *, retry_after_s: float = 1.0) -> RequestError:
    """503: starting, ending, or with an engine that does not answer."""
    return RequestError(
        message, status=503, error_type="unavailable", headers={"Retry-After": str(_whole(retry_after_s))}
    )


def expired(timeout_s: float) -> RequestError:
    """504: it was not answered within the time that the client, or the server, gave it."""
    return RequestError(f"not answered within {timeout_s * 1e3:.0f} ms", status=504, error_type="timeout")


def failed() -> RequestError:
    """500: the model failed on it."""
    return RequestError(
        "the model failed on this request; the server's log says where", status=500, error_type="backend"
    )


def _whole(seconds: float) -> int:
    """Return seconds as Retry-After takes them: whole, and at least 1."""
    return max(1, ceil(seconds))
