"""A request whose head is that of the one before, but for the length of its body: it need not be read again.

A client that keeps its connection sends the same head with every request. Reading one takes a dozen calls from the
parser, which is a tenth of the time that an idle server adds to an answer, and a third of what a refusal costs.
"""

from typing import NamedTuple

from potstill.serve.wire.head import Head, Scope

_LENGTH = b"content-length"
# Longer heads are read each time: every connection keeps one.
_MOST_BYTES = 2_048
# Digits of a length; longer ones are left to the parser.
_MOST_DIGITS = 9


class Known(NamedTuple):
    """A head that was read and found right, cut at its Content-Length."""

    before: bytes
    """Up to the digits."""
    after: bytes
    """From behind the digits to the end of the empty line."""
    scope: Scope
    """What the head decides of an ASGI scope, with the headers of the first such request."""
    place: int
    """Of Content-Length among those headers."""
    keep_alive: bool

    def body_of(self, data: bytes) -> tuple[bytes, bytes] | None:
        """Return the digits and the body if `data` is one whole request with this head, else None."""
        before = self.before
        if not data.startswith(before):
            return None
        end = data.find(b"\r", len(before))
        digits = data[len(before) : end]
        body_at = end + len(self.after)
        # bytes.isdigit knows ASCII only.
        if not digits.isdigit() or len(digits) > _MOST_DIGITS or not data.startswith(self.after, end):
            return None
        return (digits, data[body_at:]) if len(data) - body_at == int(digits) else None

    def scope_of(self, digits: bytes) -> Scope:
        """Return the scope of a request with this head and a body of so many bytes."""
        fields = self.scope["headers"].copy()
        fields[self.place] = (_LENGTH, digits)
        return {**self.scope, "headers": fields}


def known(data: bytes, head: Head, scope: Scope, *, keep_alive: bool) -> Known | None:
    """Return what to recognise the next head by, or None if it has to be read.

    Args:
        data: the head as it came, with its empty line; or nothing, if it came in parts.
        head: what was read of it.
        scope: what it decides.
        keep_alive: whether the connection goes on.
    """
    digits = head.ruled.get(_LENGTH)
    is_plain = scope["http_version"] == "1.1" and not head.chunked and not head.expects_continue
    if digits is None or not is_plain or not 0 < len(data) <= _MOST_BYTES:
        return None
    at = data.lower().find(b"\r\n" + _LENGTH + b":") + len(_LENGTH) + 3
    at += len(data[at:]) - len(data[at:].lstrip(b" "))
    before, after = data[:at], data[at + len(digits) :]
    if data[at : at + len(digits)] != digits or not after.startswith(b"\r\n"):
        return None
    place = next(number for number, (name, _) in enumerate(scope["headers"]) if name == _LENGTH)
    return Known(before, after, {**scope}, place, keep_alive)  # applications write into theirs
