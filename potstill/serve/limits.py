"""The limits of one server; every default with its reason."""

from dataclasses import dataclass, fields

from potstill.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of sizes, counts and times; none of them can be switched off.

    Raises:
        UsageError: if a limit is not above 0.
    """

    body_bytes: int = 2_000_000
    """Bytes of a request's body; text-embeddings-inference has the same default."""
    inputs: int = 64
    """Texts, pairs or questions in one request."""
    characters_per_token: int = 250
    """Characters that one text may have, per token of the model's max length: 128,000 at 512 tokens. Truncation
    comes after tokenising, so a longer text costs time that no answer shows. text-embeddings-inference refuses at
    the same multiple; English has about 5 characters per token."""
    windows: int = 64
    """Windows into which one question's context may be split."""
    nesting: int = 8
    """Nesting of the JSON; the deepest request that the server understands has 5 levels."""
    header_bytes: int = 32_768
    """Bytes of a request's line and headers together; h11 and nginx stop at the same order."""
    headers: int = 100
    """Header fields of one request, as Apache's LimitRequestFields."""
    url_bytes: int = 4_096
    """Bytes of a request's target; our longest path has some hundred."""
    connections: int = 2_048
    """Open connections; beyond it the one that has waited longest for its client is closed."""
    header_seconds: float = 10.0
    """Seconds from a request's first byte (or the connection's start) to the end of its headers."""
    body_seconds: float = 30.0
    """Seconds from the end of the headers to the end of the body."""
    idle_seconds: float = 30.0
    """Seconds between two requests of one connection."""
    write_seconds: float = 30.0
    """Seconds that a client may leave an answer unread."""
    request_seconds: float = 60.0
    """Longest time in seconds from the end of a request's headers to its answer, and the longest timeout that a client
    can ask for."""
    wait_ms: float | None = None
    """Longest predicted wait in milliseconds at which a request is accepted; None lets `Admission` choose it from what
    requests cost on this machine."""
    drain_seconds: float = 2.0
    """Seconds after SIGTERM in which new requests are still answered while /health/ready says no: a load balancer needs
    that time to notice."""
    shutdown_seconds: float = 20.0
    """Seconds after that in which accepted requests may finish; Kubernetes kills 30 s after SIGTERM."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            # Without a load balancer there is nobody to give time to notice.
            zero_is_fine = field.name == "drain_seconds" and value == 0
            if value is not None and not value > 0 and not zero_is_fine:
                raise UsageError(f"the limit {field.name} is {value}; it must be above 0")
