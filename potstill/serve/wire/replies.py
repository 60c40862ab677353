"""The server's own words: answers to requests that no application sees, in the one shape of every error."""

import http
import json

from potstill.serve.http_errors import ErrorType, RequestError

STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}".encode() for status in http.HTTPStatus}
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def error_bytes(error: RequestError, *, fields: bytes = b"", with_body: bool = True) -> bytes:
    """Return a whole response that ends the connection; `fields` are header lines, each with its CRLF."""
    body = json.dumps(error.content()).encode()
    own = "".join(f"{name.lower()}: {value}\r\n" for name, value in error.headers.items())
    head = (
        b"%b\r\n%b%bcontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        % (STATUS_LINES[error.status], fields, own.encode(), len(body))
    )  # fmt: skip
    return head + body if with_body else head


def refuse(status: int, error_type: ErrorType, message: str) -> RequestError:
    """Return an error that only the wire has."""
    return RequestError(message, status=status, error_type=error_type)
