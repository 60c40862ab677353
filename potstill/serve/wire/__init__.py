"""HTTP/1.1 for an ASGI application, with a deadline or a cap for everything that a client can do."""

from potstill.serve.limits import Limits
from potstill.serve.wire.connection import Connection
from potstill.serve.wire.hub import Hub

__all__ = ["Connection", "Hub", "guarded"]


def guarded(limits: Limits) -> type[Connection]:
    """Return the protocol for `uvicorn.Config(http=...)`; all connections of one such class share a `hub`."""
    return type("GuardedConnection", (Connection,), {"hub": Hub(limits)})
