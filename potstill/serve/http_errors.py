"""Every way in which a request is not answered: one class, one shape, and the statuses that there are.

No message repeats what a client sent: it may be private, and messages end in logs. They name places, types and counts.
"""

from collections.abc import Mapping
from math import ceil
from typing import Literal, TypeAlias

from potstill.errors import UsageError

ErrorType: TypeAlias = Literal[
    "validation", "unauthorized", "not_found", "method_not_allowed", "timeout", "too_large", "unsupported_media_type",
    "overloaded", "backend", "unavailable",
]  # fmt: skip


class RequestError(UsageError):
    """A request that gets an error: its HTTP status, its `error_type`, and headers to send along."""

    def __init__(
        self, message: str, *, status: int, error_type: ErrorType, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.error_type = error_type
        self.headers = dict(headers or {})

    def content(self) -> dict[str, str]:
        """Return the body of the response, the same for every error."""
        return {"error": str(self), "error_type": self.error_type}


def invalid(message: str) -> RequestError:
    """422: it was understood and asks for what cannot be."""
    return RequestError(message, status=422, error_type="validation")


def malformed(message: str) -> RequestError:
    """400: it could not be read."""
    return RequestError(message, status=400, error_type="validation")


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
