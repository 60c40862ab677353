"""What every endpoint is given, and what the API needs of an engine."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from potstill.serve.batching import Answered, EngineSettings, Gauges, Observer
from potstill.serve.encoder import Encoder
from potstill.serve.limits import Limits
from potstill.serve.tasks.features import Features


class Engine(Protocol):
    """The part of `potstill.serve.batching.Engine` that the API uses; all of it is called on the event loop."""

    observer: Observer

    @property
    def models(self) -> Mapping[str, Encoder]:
        """What is served, by name; the first is the default."""

    @property
    def settings(self) -> EngineSettings:
        """How it works."""

    @property
    def plan(self) -> Any:
        """What was measured at start and chosen from it, with `describe()`; None before."""

    def refuse_if_full(self, model: str, *, client: str) -> None:
        """Raise RequestError 429 or 503 if nothing more of this client would be admitted now."""

    async def answer(
        self,
        model: str,
        prepare: Callable[[], Features],
        *,
        characters: Sequence[int],
        client: str,
        timeout_s: float | None,
        received_at: float | None,
    ) -> Answered:
        """Return the answers, or raise RequestError; cancelling it drops what has not begun."""

    def stats(self, model: str) -> Gauges:
        """Return what waits and runs."""

    def is_alive(self) -> bool:
        """Whether the engine's threads answer."""

    def is_ready(self) -> bool:
        """Whether requests are taken."""


@dataclass(frozen=True, slots=True)
class Context:
    """What the endpoints share."""

    engine: Engine
    limits: Limits
    models: Mapping[str, Encoder]
    """By name; the first is the default."""
