"""What goes into an engine and what comes out of it."""

import asyncio
import logging
import resource
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import ceil
from pathlib import Path
from time import monotonic
from typing import Any, Literal, Protocol, TypeAlias

from potstill.errors import UsageError
from potstill.machine import available_cores
from potstill.serve.batching.admission import Admission
from potstill.serve.batching.cost import LONG_TOKENS, Drift, ModelPlan, describe, measure, row_of
from potstill.serve.batching.queue import Answered, Job, Policy, Queue, Timings
from potstill.serve.batching.shadow_compare import Shadow, check_pair
from potstill.serve.batching.workers import Crew
from potstill.serve.encoder import Encoder, RunRows
from potstill.serve.http_errors import RequestError, expired, overloaded, unavailable
from potstill.serve.limits import Limits
from potstill.serve.tasks.features import Features

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
    """RunRows at a time; None: the cores over the threads of one run. Several runs of one thread each answer more than
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


# DOC: What an engine measures and chooses at its start.


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the engine measured and chose at its start."""

    models: dict[str, ModelPlan]
    runners: int
    threads: int
    text_threads: int
    wait_ms: dict[str, float]
    """The predicted wait beyond which a request is refused: in a burst and while a queue stands."""
    memory_bytes: int | None
    """Resident after the largest runs: about what it stays at."""

    def describe(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {
            "runners": self.runners,
            "threads": self.threads,
            "text_threads": self.text_threads,
            "wait_ms": self.wait_ms,
            "memory_bytes": self.memory_bytes,
            "models": {name: describe(plan) for name, plan in self.models.items()},
        }


def measure_models(
    models: Mapping[str, Encoder], runs: Mapping[str, RunRows], *, settings: EngineSettings, runners: int
) -> dict[str, ModelPlan]:
    """Measure every model.

    Args:
        models: what is measured.
        runs: what runs rows of each.
        settings: say whether texts may share a run.
        runners: how many runs there may be at a time.

    Raises:
        CheckError: if a model does not run.
    """
    plans: dict[str, ModelPlan] = {}
    for name, model in models.items():
        alone = None
        if not model.record.batch_invariant and not settings.allow_drift:
            alone = "this file's answers depend on their company, so every text runs alone"
        plans[name] = measure(
            runs[name],
            max_length=model.manifest.max_length,
            row=partial(row_of, model.session.inputs, model.manifest.pad_token_id),
            alone=alone,
            runners=runners,
            unpadded=model.record.unpadded,
        )
    return plans


def resident_bytes() -> int | None:
    """Return how much memory this process has; None where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return None


# DOC: The engine: requests in on the event loop, answers out, or a refusal at once.

# How often hung runs and dead threads are looked for; not in the way of any request.
_WATCH_S = 0.5
# A deadline that is further away than this needs no timer of its own: it is seen to at the next watch.
_TIMED_S = 10.0
# A run that takes so many times what was predicted hangs; others on the machine slow it down less than this.
_HANGS = 50.0
_LOG = logging.getLogger("potstill.serve")


class Engine:
    """Answers requests to several models with a few threads.

    All methods but `warm_up` are called on the event loop's thread.
    """

    def __init__(
        self, models: Mapping[str, Encoder], *, settings: EngineSettings, observer: Observer = nothing
    ) -> None:
        """Take loaded models; nothing runs before `warm_up` and `start`.

        Raises:
            UsageError: if there is no model, or the shadow's pair is not among them.
        """
        if not models:
            raise UsageError("an engine needs at least one model")
        for name in settings.shadow or ():
            if name not in models:
                raise UsageError(f"the shadow pair names {name}; there are {', '.join(models)}")
        if settings.shadow is not None:
            check_pair(models[settings.shadow[0]], models[settings.shadow[1]])
        self.models = dict(models)
        self.settings = settings
        self._threads = next(iter(models.values())).session.threads
        self._runners = settings.runners or max(1, available_cores() // self._threads)
        self.plan: Plan | None = None
        self.observer = observer
        """Who counts; may be changed until `start`."""
        self._runs = {name: encoder.run_rows for name, encoder in models.items()}
        self._active: set[Job] = set()
        self._ratio = dict.fromkeys(models, 0.25)  # tokens per character, as in English; learnt
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watching: asyncio.TimerHandle | None = None
        self._draining = self._dead = self._closed = False
        self._queue: Queue
        self._crew: Crew
        self._doors: dict[str, Admission] = {}

    def warm_up(self) -> Plan:
        """Measure, choose, and run the largest shapes; blocking, before `start`.

        Raises:
            CheckError: if a model does not run.
        """
        plans = measure_models(self.models, self._runs, settings=self.settings, runners=self._runners)
        policies = {
            name: Policy(cost=plan.cost, drift=Drift(), budget=plan.batch_tokens, padded=plan.padded_tokens)
            for name, plan in plans.items()
        }
        self._queue = Queue(policies, runners=self._runners)
        wait_ms = self.settings.limits.wait_ms
        self._doors = {
            name: Admission(
                typical_s=plan.cost.seconds(1, min(LONG_TOKENS, self._length(name))),
                batch_s=plan.batch_s,
                fixed_s=None if wait_ms is None else wait_ms / 1e3,
            )
            for name, plan in plans.items()
        }
        limits = [door.limits_ms() for door in self._doors.values()]
        self.plan = Plan(
            models=plans,
            runners=self._runners,
            threads=self._threads,
            text_threads=self.settings.text_threads,
            wait_ms={name: max(one[name] for one in limits) for name in limits[0]},
            memory_bytes=resident_bytes(),
        )
        return self.plan

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the threads; answers are given to futures of this loop."""
        if self.plan is None:
            raise UsageError("an engine is warmed up before it starts")
        self._loop = loop
        self._crew = Crew(
            self._runs,
            self._queue,
            runners=self._runners,
            text_threads=self.settings.text_threads,
            done=self._done,
            shadow=self._shadow(),
        )
        self._crew.start()
        self._watching = loop.call_later(_WATCH_S, self._watch)

    def drain(self) -> None:
        """Refuse new work; finish what was accepted."""
        self._draining = True

    async def close(self, *, timeout_s: float = 5.0) -> bool:
        """End the threads; who still waits gets 503. Tell whether all threads ended within the time."""
        self._draining = self._closed = True
        if self._loop is None:
            return True
        if self._watching is not None:
            self._watching.cancel()
        self._crew.close()
        self._report_runs()
        for job in list(self._active):
            self._fail(job, unavailable("the server is ending"))
        return await self._loop.run_in_executor(None, self._crew.join, timeout_s)

    def is_idle(self) -> bool:
        """Tell whether every accepted request is answered."""
        return not self._active

    def is_ready(self) -> bool:
        """Tell whether requests are taken, load permitting."""
        return self._loop is not None and not self._draining and self.is_alive()

    def is_alive(self) -> bool:
        """Tell whether the engine can still answer: False once a run hangs past its end, or a thread stays dead."""
        return not self._dead and not self._closed

    def stats(self, model: str) -> Gauges:
        """Return one model's state now."""
        if self._loop is None:
            return Gauges(queued_rows=0, queued_tokens=0, running_rows=0, wait_s=0.0)
        queue = self._queue
        return Gauges(
            queued_rows=queue.rows[model],
            queued_tokens=queue.tokens[model],
            running_rows=sum(len(batch.items) for batch in list(queue.running) if batch.model == model),
            wait_s=queue.wait_s(model, queue.expected_s(model, 1), now=monotonic()),
        )

    def refuse_if_full(self, model: str, *, client: str = "") -> None:
        """Refuse before a body is read, if a short request of this client would be refused now.

        Raises:
            RequestError: 429 or 503.
        """
        self._check_open(model)
        if self._active:  # else there is nothing to wait for
            left_s = self.settings.limits.request_seconds
            self._admit(model, self._queue.expected_s(model, 1), client=client, left_s=left_s)

    async def answer(
        self,
        model: str,
        prepare: Callable[[], Features],
        *,
        characters: Sequence[int],
        client: str = "",
        timeout_s: float | None = None,
        received_at: float | None = None,
    ) -> Answered:
        """Answer one request. Cancelling gives its place to others.

        Args:
            model: which model.
            prepare: tokenises; called in another thread.
            characters: of each of its texts, from which its cost is guessed.
            client: who sent it, as far as that is known: clients have equal shares of what waits.
            timeout_s: how long its client waits, from `received_at` on; the server's own limit holds too.
            received_at: when it came, in the event loop's time.

        Raises:
            RequestError: 429 if it would wait too long, 503 if the engine ends or is dead, 504 if it was not ready
                in time, 500 if the model failed on it, and whatever `prepare` refuses.
        """
        self._check_open(model)
        loop, now, most = self._loop, monotonic(), self.settings.limits.request_seconds
        if loop is None:
            raise unavailable("the server is starting")
        allowed = most if timeout_s is None else min(timeout_s, most)
        arrived = now if received_at is None else min(received_at, now)
        deadline = arrived + allowed
        if deadline <= now:
            self._count(model, "expired")
            raise expired(allowed)
        rows, cost = self._guess(model, characters)
        if self._active:
            self._admit(model, cost, rows=rows, client=client, left_s=deadline - now)
        future: asyncio.Future[Answered] = loop.create_future()
        job = Job(
            model=model,
            prepare=prepare,
            characters=sum(characters),
            arrived=now,
            deadline=deadline,
            timeout_s=allowed,
            client=client,
            future=future,
        )
        self._active.add(job)
        timer = loop.call_later(deadline - now, self._expire, job) if allowed < _TIMED_S else None
        self._crew.submit(job, cost_s=cost)
        try:
            return await future
        except asyncio.CancelledError:
            self._count(model, "gone")
            raise
        finally:
            if timer is not None:
                timer.cancel()
            self._active.discard(job)
            if job.ended == 0.0:
                self._crew.drop(job)

    def _shadow(self) -> Shadow | None:
        pair = self.settings.shadow
        if pair is None:
            return None
        return Shadow(
            pair,
            self._runs[pair[1]],
            max_length=self._length(pair[1]),
            on_compared=lambda agreed: self.observer.shadow(*pair, agreed=agreed),
        )

    def _check_open(self, model: str) -> None:
        if self._dead:
            self._count(model, "unavailable")
            raise unavailable("the engine does not answer")
        if self._draining or self._loop is None:
            self._count(model, "unavailable")
            raise unavailable("the server is ending" if self._draining else "the server is starting")

    def _admit(self, model: str, cost: float, *, rows: int = 1, client: str, left_s: float) -> None:
        now, queue = monotonic(), self._queue
        retry_after = self._doors[model].refusal(
            queue.lane(model, cost),
            queue.wait_s(model, cost, now=now, client=client),
            cost,
            now=now,
            longest_row_s=queue.longest_row_s(),
            runs_s=cost / min(rows, self._runners),
            left_s=left_s,
        )
        if retry_after is not None:
            self._count(model, "overloaded")
            raise overloaded(retry_after)

    def _guess(self, model: str, characters: Sequence[int]) -> tuple[int, float]:
        """Return how many rows the texts make, and what these cost, as far as characters say it."""
        most, ratio = self._length(model), self._ratio[model]
        windows = self._windows(model)
        rows, cost = 0, 0.0
        for one in characters:
            tokens = 2 + int(one * ratio)
            parts = min(windows, ceil(tokens / most))
            rows += parts
            cost += parts * self._queue.expected_s(model, min(most, tokens))
        return max(1, rows), cost

    def _windows(self, model: str) -> int:
        """Return in how many rows a text may be read; where it is one, longer texts are cut."""
        return self.settings.limits.windows if self.models[model].task.has_windows else 1

    def _length(self, model: str) -> int:
        return self.models[model].manifest.max_length

    def _done(self, jobs: Sequence[Job]) -> None:
        if self._loop is not None and not self._closed:
            try:
                self._loop.call_soon_threadsafe(self._deliver, jobs)
            except RuntimeError:  # the loop has ended: nobody waits
                return

    def _deliver(self, jobs: Sequence[Job]) -> None:
        told = []
        for job in jobs:
            if job.future is None or job.future.done():
                continue
            told.append(job)
            if job.error is not None:
                job.future.set_exception(job.error)
            elif job.answers is not None:
                job.future.set_result(Answered(answers=job.answers, timings=_timings(job)))
        if told and self._loop is not None:
            self._loop.call_soon(self._account, told)  # behind the answers: nobody waits for the counting

    def _account(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            if job.error is not None:
                self._count(job.model, _OUTCOMES.get(job.error.status, "invalid"))
            elif job.answers is not None:
                self._count(job.model, "answered")
                timings = _timings(job)
                self.observer.stage(job.model, "tokenise", timings.tokenise_s)
                self.observer.stage(job.model, "queue", timings.queue_s)
                self.observer.stage(job.model, "infer", timings.infer_s)
                self.observer.stage(job.model, "read", job.read_s)
                self._learn(job)
        self._report_runs()

    def _report_runs(self) -> None:
        while self._crew.ran:
            batch, seconds = self._crew.ran.popleft()
            rows = len(batch.items)
            self.observer.batch(
                batch.model, rows=rows, tokens=batch.tokens, padded_tokens=rows * batch.longest, seconds=seconds
            )

    def _learn(self, job: Job) -> None:
        if job.prepared is None or not job.characters:
            return
        lengths = [len(row["input_ids"]) for row in job.prepared.rows]
        cost = sum(self._queue.expected_s(job.model, length) for length in lengths)
        is_lowest = self._queue.lane(job.model, cost).level == 0
        self._doors[job.model].took(cost, drift=self._queue.drift(job.model), is_lowest=is_lowest)
        if max(lengths, default=0) < self._length(job.model):  # nothing was cut
            ratio = max(0.0, job.tokens - 2 * len(lengths)) / job.characters
            self._ratio[job.model] += 0.02 * (ratio - self._ratio[job.model])

    def _expire(self, job: Job) -> None:
        self._fail(job, expired(job.timeout_s))

    def _fail(self, job: Job, error: RequestError) -> None:
        if job.future is not None and not job.future.done():
            self._count(job.model, _OUTCOMES.get(error.status, "failed"))
            job.future.set_exception(error)
        self._crew.drop(job)

    def _watch(self) -> None:
        """Stop runs that take far too long, and notice what does not stop."""
        now, settings = monotonic(), self.settings
        self._report_runs()
        for job in [job for job in self._active if job.deadline <= now]:
            self._expire(job)
        for batch in list(self._queue.running):
            if batch.started + max(settings.hang_s, _HANGS * batch.predicted_s) < now:
                self._crew.stop(batch)
            if batch.stopped_at is not None and batch.stopped_at + settings.grace_s < now:
                self._die("a run did not end when it was told to")
        if self._crew.oldest() + settings.limits.request_seconds + settings.grace_s < now:
            self._die("a thread has been at one thing for longer than any request may take")
        if not self._crew.mend():
            self._die("a thread has ended and no other could be started")
        if self._dead:
            for job in list(self._active):
                self._fail(job, unavailable("the engine does not answer"))
        elif self._loop is not None:
            self._watching = self._loop.call_later(_WATCH_S, self._watch)

    def _die(self, why: str) -> None:
        if not self._dead:
            _LOG.critical("the engine is dead: %s", why)
        self._dead = True

    def _count(self, model: str, name: Outcome) -> None:
        self.observer.outcome(model, name)


_OUTCOMES: dict[int, Outcome] = {429: "overloaded", 500: "failed", 503: "unavailable", 504: "expired"}


def _timings(job: Job) -> Timings:
    queue_s = max(0.0, job.ended - job.arrived - job.tokenise_s - job.infer_s)
    return Timings(tokenise_s=job.tokenise_s, queue_s=queue_s, infer_s=job.infer_s, tokens=job.tokens)
