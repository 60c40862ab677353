"""The parts of a connection's life, and of what comes in."""

from typing import Final

_EMPTY_LINE = b"\r\n\r\n"

AHEAD_BYTES = 65_536
"""Bytes that are read of the next requests while one is answered; reading goes on for the sake of the end of file."""
BODY_PARTS = 16_384
"""Chunks, trailers and fragments of one body; Triton allows 65,536 of a body that may be 32 times as large as ours."""
LINGER_SECONDS = 2.0
"""How long a client may go on sending after the last answer. Closing at once would reset the connection, and a reset
can take the answer from the client before it is read (RFC 9112, section 9.6)."""
LINGER_BYTES = 16 << 20
"""And how much: a client that only reads once it has sent all of its body gets its 413 up to here."""


class Phase:
    """What a connection is about.

    Plain numbers: a member of an Enum costs 0.1 us to look up, and a request looks some 25 times.
    """

    FRESH: Final = 0
    """Not a byte has come yet."""
    IDLE: Final = 1
    """Between two requests."""
    HEAD: Final = 2
    """Line and headers are coming."""
    BODY: Final = 3
    """The request's body is coming; it may be answered already."""
    ANSWERING: Final = 4
    """The request is whole."""
    CLOSING: Final = 5
    """Nothing more is answered; what still comes is thrown away."""


class EmptyLines:
    """Finds the ends of empty lines, also where one comes in two pieces."""

    __slots__ = ("_tail",)

    def __init__(self) -> None:
        self._tail = b""
        """The last bytes seen, as far as an empty line may have begun in them."""

    def end(self, data: bytes, at: int) -> int:
        """Return the place behind the first empty line from `at` on, or the end of the data."""
        if self._tail:
            across = (self._tail + data[at : at + 3]).find(_EMPTY_LINE)
            if across >= 0:
                end = at + across + 4 - len(self._tail)
                self._tail = b""
                return end
        found = data.find(_EMPTY_LINE, at)
        if found >= 0:
            self._tail = b""
            return found + 4
        self._tail = (self._tail + data[max(at, len(data) - 3) :])[-3:]
        return len(data)
