"""What one server takes before it says no; every default with its reason."""

from dataclasses import dataclass, fields

from potstill.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Caps of a server.

    Raises:
        UsageError: if a cap is below 1.
    """

    body_bytes: int = 2_000_000
    """Bytes of a request's body; text-embeddings-inference has the same default."""
    inputs: int = 64
    """Texts or pairs in one request."""
    characters_per_token: int = 250
    """Characters that one text may have, per token of the model's max length: 128,000 at 512 tokens. Truncation
    comes after tokenising, so a longer text costs time that no answer shows. text-embeddings-inference refuses at
    the same multiple; English has about 5 characters per token."""
    nesting: int = 8
    """Depth of the JSON; what the server understands has depth 3."""
    waiting: int = 32
    """Requests that may wait while one is answered; more get 429 and a Retry-After."""
    shutdown_seconds: int = 20
    """How long SIGTERM lets accepted requests finish; Kubernetes kills after 30."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value < 1:
                raise UsageError(f"the limit {field.name} is {value}; it must be at least 1")
