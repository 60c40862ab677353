"""Requests, their rows, and the rows that run together: what the engine's parts hand to one another."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from potstill.serve.batching.settings import Answered
from potstill.serve.http_errors import RequestError
from potstill.serve.session import Stop
from potstill.serve.tasks.prepared import Outputs, Prepared

if TYPE_CHECKING:
    from potstill.serve.batching.queue import Lane

Task: TypeAlias = Callable[[], None]
"""Something for a thread to do."""


@dataclass(slots=True, eq=False, kw_only=True)
class Job:
    """One request inside of the engine. Times are of `time.monotonic`, costs in seconds of one runner."""

    model: str
    prepare: Callable[[], Prepared]
    characters: int
    """Of all its texts."""
    arrived: float
    deadline: float
    timeout_s: float
    client: str = ""
    """Who sent it, as far as that is known: what one client has waiting stands only in its own way."""
    future: "asyncio.Future[Answered] | None" = None

    lane: "Lane | None" = None
    """Where it, or its rows, wait."""
    waiting_s: float = 0.0
    """Cost of its rows that wait, as measured at the start; before it is tokenised, what it is expected to cost."""
    dead: bool = False
    """Nobody waits for it any more; its rows must not run."""

    prepared: Prepared | None = None
    outputs: list[Outputs | None] = field(default_factory=list)
    """Of its rows, as far as they have run."""
    left: int = 0
    """Rows that have not run."""
    tokens: int = 0
    tokenise_s: float = 0.0
    infer_s: float = 0.0
    read_s: float = 0.0
    answers: list[Any] | None = None
    error: RequestError | None = None
    ended: float = 0.0


@dataclass(slots=True, eq=False)
class Item:
    """One row that waits."""

    job: Job
    index: int
    tokens: int
    cost_s: float
    """Alone, as measured at the start."""


@dataclass(slots=True, eq=False, kw_only=True)
class Batch:
    """Rows that run together."""

    model: str
    items: Sequence[Item]
    longest: int
    """Tokens of the longest row: what the others are padded to."""
    started: float
    predicted_s: float
    stop: Stop = field(default_factory=Stop)
    stopped_at: float | None = None

    @property
    def tokens(self) -> int:
        """Return the tokens without padding."""
        return sum(item.tokens for item in self.items)

    def is_abandoned(self) -> bool:
        """Tell whether nobody waits for any of it."""
        return all(item.job.dead for item in self.items)
