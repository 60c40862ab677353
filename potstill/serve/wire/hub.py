"""What the connections of one server share: their number, their deadlines, and whether the server is ending."""

import asyncio
from collections import Counter, OrderedDict
from typing import Protocol

from potstill.serve.limits import Limits

BODIES_BYTES = 128 << 20
"""Bytes of bodies that are not whole yet, over all connections: 64 of the largest."""
_MOST_ENDING = 32
"""Connections over the cap that have had their last answer and are given a moment to read it."""


class Member(Protocol):
    """A connection, as the hub sees it."""

    deadline: float
    """When its client has had its time, in the loop's clock; infinity while nothing is asked of the client."""
    held: int
    """Bytes that it holds of a body that is not whole yet."""

    def expire(self) -> None:
        """End it: the deadline is over."""

    def evict(self) -> None:
        """End it: others need the place."""


class Hub:
    """The connections of one server."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.draining = False
        """Whether every answer ends its connection."""
        self.most = limits.connections
        """Connections that may be open; the server lowers it to what its file descriptors allow."""
        self.refused: Counter[int] = Counter()
        """How often the server itself answered, by status: no application has seen these requests."""
        self.evicted = 0
        """Connections that were closed to make place."""
        self.buffered = 0
        """Bytes of bodies that are not whole yet."""
        self.connections: set[Member] = set()
        self._waiting: OrderedDict[Member, None] = OrderedDict()
        self._ending: OrderedDict[Member, None] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None
        self._lines_from: list[tuple[bytes, bytes]] = []
        self._lines = b""
        # One timer for all: a deadline is an assignment, not an entry in the loop's heap, and may be late by this much.
        self._tick = min(0.5, min(limits.header_seconds, limits.body_seconds, limits.idle_seconds,
                                  limits.write_seconds) / 4)  # fmt: skip

    def join(self, member: Member, loop: asyncio.AbstractEventLoop) -> None:
        """Take a new connection; the one that has waited longest for its client goes if there are too many."""
        self.connections.add(member)
        self._waiting[member] = None
        if self._timer is None:
            self._timer = loop.call_later(self._tick, self._sweep, loop)
        if len(self.connections) > self.most:
            if len(self.connections) - len(self._ending) > self.most and self._waiting:
                self._evict(self._waiting)
            if len(self.connections) > self.most + _MOST_ENDING and self._ending:
                self._evict(self._ending)

    def make_place(self) -> None:
        """Free a file descriptor: of the connection that ends already, or has waited longest for its client."""
        if self._ending or self._waiting:
            self._evict(self._ending or self._waiting)

    def _evict(self, members: OrderedDict[Member, None]) -> None:
        member, _ = members.popitem(last=False)
        self.evicted += 1
        member.evict()

    def leave(self, member: Member) -> None:
        """Forget a connection that is closed."""
        self.connections.discard(member)
        self._waiting.pop(member, None)
        self._ending.pop(member, None)

    def waits(self, member: Member) -> None:
        """Note that it now waits for its client."""
        self._waiting[member] = None

    def ends(self, member: Member) -> None:
        """Note that it has had its last answer, and only waits for its client to see it."""
        self._waiting.pop(member, None)
        self._ending[member] = None

    def works(self, member: Member) -> None:
        """Note that its client now waits for us."""
        self._waiting.pop(member, None)

    def buffer(self, count: int) -> None:
        """Count bytes of unfinished bodies; when all together are too many, the body that waits longest goes."""
        self.buffered += count
        if count > 0 and self.buffered > BODIES_BYTES:
            holder = next((member for member in self._waiting if member.held), None)
            if holder is not None:
                self._waiting.pop(holder)
                self.evicted += 1
                holder.evict()

    def lines_of(self, fields: list[tuple[bytes, bytes]]) -> bytes:
        """Return header fields as lines; they are the same list for a second."""
        if fields is not self._lines_from:
            self._lines_from = fields
            self._lines = b"".join([name + b": " + value + b"\r\n" for name, value in fields])
        return self._lines

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for member in tuple(self.connections):
            if member.deadline <= now:
                member.expire()
        self._timer = loop.call_later(self._tick, self._sweep, loop) if self.connections else None
