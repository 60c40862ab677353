"""What goes into an engine and what comes out of it."""

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

from potstill.errors import UsageError
from potstill.serve.limits import Limits

Stage: TypeAlias = Literal["tokenise", "queue", "infer", "read"]
Outcome: TypeAlias = Literal["answered", "overloaded", "expired", "gone", "invalid", "failed", "unavailable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """How one engine works.

    Raises:
        UsageError: if a count is below 1.
    """

    threads: int | None = None
    """Threads within one run, as the models were loaded with; None where they chose for themselves."""
    runners: int | None = None
    """Runs at a time; None: the cores over the threads of one run. Several runs of one thread each answer more than
    one run of several threads (microsoft/onnxruntime#16304); an int8 student of 1 ms took 1.3 times the CPU with two
    threads."""
    text_threads: int = 1
    """Threads that only tokenise and read, while the runners run."""
    allow_drift: bool = False
    """Whether texts share a run even where a file's answers depend on their company (dynamic int8)."""
    limits: Limits = field(default_factory=Limits)
    shadow: tuple[str, str] | None = None
    """(primary, shadow): what the primary has answered runs on the shadow too, when nothing else is to do."""
    hang_s: float = 10.0
    """A run that takes longer than this, and many times longer than predicted, is told to stop."""
    grace_s: float = 5.0
    """How long a run may go on after it was told to stop; then the engine is dead."""

    def __post_init__(self) -> None:
        for name in ("runners", "threads", "text_threads"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise UsageError(f"{name} is {count}; an engine needs at least 1")


class Timings(NamedTuple):
    """Where one request's time went, in seconds."""

    tokenise_s: float
    queue_s: float
    """Neither tokenised nor run, until the answer was ready."""
    infer_s: float
    """All runs that held one of its rows."""
    tokens: int
    """Tokens that the model saw of it, without padding."""


class Answered(NamedTuple):
    """One request's answers, in the order of its inputs."""

    answers: list[Any]
    timings: Timings


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauges:
    """One model's state now."""

    queued_rows: int
    queued_tokens: int
    running_rows: int
    wait_s: float
    """The predicted wait of a short request that came now."""


class Observer(Protocol):
    """Whoever counts; called on the event loop, `shadow` from any thread. It is quick and raises nothing."""

    def batch(self, model: str, *, rows: int, tokens: int, padded_tokens: int, seconds: float) -> None:
        """One run is over."""

    def stage(self, model: str, name: Stage, seconds: float) -> None:
        """One request has spent `seconds` in a stage."""

    def outcome(self, model: str, name: Outcome) -> None:
        """One request is over."""

    def shadow(self, model: str, shadow: str, *, agreed: bool) -> None:
        """The shadow has answered one input of the model's, and decided as the model did or not."""


class Nobody:
    """An observer that counts nothing."""

    def batch(self, model: str, *, rows: int, tokens: int, padded_tokens: int, seconds: float) -> None:
        """Do nothing."""

    def stage(self, model: str, name: Stage, seconds: float) -> None:
        """Do nothing."""

    def outcome(self, model: str, name: Outcome) -> None:
        """Do nothing."""

    def shadow(self, model: str, shadow: str, *, agreed: bool) -> None:
        """Do nothing."""


nothing: Observer = Nobody()
