"""The engine: requests come in on the event loop, and are answered by a few threads or refused at once.

`Engine` connects the parts: it measures the models at warm-up, admits or refuses each request, hands it to the
`WorkerPool`, delivers the answer to the request's future, and watches for hung runs and dead threads.
"""

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
from potstill.serve.batching.cost import LONG_TOKENS, Drift, ModelPlan, constant_row, measure
from potstill.serve.batching.queue import Answered, BatchPolicy, Queue, QueuedRequest
from potstill.serve.batching.shadow_compare import ShadowComparison, check_pair
from potstill.serve.batching.workers import WorkerPool
from potstill.serve.encoder import Encoder
from potstill.serve.http_errors import RequestError, expired, overloaded, unavailable
from potstill.serve.limits import Limits
from potstill.serve.tasks import Features

Stage: TypeAlias = Literal["tokenise", "queue", "infer", "read"]
Outcome: TypeAlias = Literal["answered", "overloaded", "expired", "gone", "invalid", "failed", "unavailable"]

_LOG = logging.getLogger("potstill.serve")
_OUTCOMES: dict[int, Outcome] = {429: "overloaded", 500: "failed", 503: "unavailable", 504: "expired"}
# Seconds between two looks for hung runs, dead threads and distant deadlines.
_WATCH_S = 0.5
# Timeouts of at least this have no timer of their own, and end at the next watch: setting and cancelling a timer costs
# 82 us while the caches are cold (docs/log.md).
_TIMED_S = 10.0
# A run that takes so many times as long as predicted hangs: a busy machine slows it down by less.
_HANGS = 50.0
# Tokens per character as in English until requests have been seen, and the weight of each request in the mean.
_TOKENS_PER_CHARACTER, _LEARNING_RATE = 0.25, 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """Settings of one engine.

    Raises:
        UsageError: if a count is below 1.
    """

    threads: int | None = None
    """Threads within one run, with which the models were loaded; None where each session chose for itself."""
    runners: int | None = None
    """Runs at a time; None: the cores divided by the threads of one run. Several runs of one thread each answer more
    than one run of several threads (microsoft/onnxruntime#16304); an int8 student of 1 ms took 1.3 times the CPU with
    two threads."""
    text_threads: int = 1
    """Threads that only tokenise and decode, while the runners run."""
    allow_drift: bool = False
    """Whether texts share a run even where a file's answers depend on the batch (dynamic int8)."""
    limits: Limits = field(default_factory=Limits)
    shadow: tuple[str, str] | None = None
    """(primary, shadow): while the server is idle, the shadow answers again what the primary has answered."""
    hang_s: float = 10.0
    """Seconds after which a run that also takes many times longer than predicted is told to stop."""
    grace_s: float = 5.0
    """Seconds that a run may go on after it was told to stop; then the engine counts as dead."""

    def __post_init__(self) -> None:
        for name in ("runners", "threads", "text_threads"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise UsageError(f"{name} is {count}; an engine needs at least 1")

    def count_runners(self, threads: int) -> int:
        """Return how many runs go on at a time, where each has so many threads."""
        return self.runners or max(1, available_cores() // threads)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauges:
    """The load of one model at one moment."""

    queued_rows: int
    queued_tokens: int
    running_rows: int
    wait_s: float
    """The predicted wait of a short request that came now, in seconds."""


class Observer(Protocol):
    """Receive an engine's counts: on the event loop, `shadow` on any thread. Methods are quick and raise nothing."""

    def batch(self, model: str, *, rows: int, tokens: int, padded_tokens: int, seconds: float) -> None:
        """Record that a run has ended; `padded_tokens` are rows times the longest row."""

    def stage(self, model: str, name: Stage, seconds: float) -> None:
        """Record the seconds that a request spent in a stage."""

    def outcome(self, model: str, name: Outcome) -> None:
        """Record how a request ended."""

    def shadow(self, model: str, shadow: str, *, agreed: bool) -> None:
        """Record whether the shadow decided one input as the model did."""


class _NullObserver:
    """Ignore everything."""

    def batch(self, model: str, *, rows: int, tokens: int, padded_tokens: int, seconds: float) -> None: ...
    def stage(self, model: str, name: Stage, seconds: float) -> None: ...
    def outcome(self, model: str, name: Outcome) -> None: ...
    def shadow(self, model: str, shadow: str, *, agreed: bool) -> None: ...


nothing: Observer = _NullObserver()
"""An observer that counts nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the engine measured and chose at warm-up; `GET /info` shows it."""

    models: dict[str, ModelPlan]
    runners: int
    threads: int
    text_threads: int
    wait_ms: dict[str, float]
    """The predicted waits beyond which a request is refused: `burst` and `standing`, as in `Admission.limits_ms`."""
    memory_bytes: int | None
    """Resident memory after the largest runs, about which it stays; None where the system does not say."""

    def describe(self) -> dict[str, Any]:
        """Return the plan as plain JSON values."""
        return {
            "runners": self.runners,
            "threads": self.threads,
            "text_threads": self.text_threads,
            "wait_ms": self.wait_ms,
            "memory_bytes": self.memory_bytes,
            "models": {name: plan.describe() for name, plan in self.models.items()},
        }


class Engine:
    """Answer requests to several models with a few threads.

    All methods except `warm_up` must be called on the event loop's thread, and only there are the attributes written:
    workers report through `_on_ended` and `call_soon_threadsafe`. So nothing here needs a lock.
    """

    def __init__(
        self, models: Mapping[str, Encoder], *, settings: EngineSettings, observer: Observer = nothing
    ) -> None:
        """Keep the loaded models; nothing runs before `warm_up` and `start`.

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
        self.plan: Plan | None = None
        self.observer = observer
        """What is told of runs and requests; may be replaced until `start`."""
        self.queue: Queue
        """The requests that wait and run; set by `warm_up`."""
        self._threads = next(iter(models.values())).session.threads
        self._runners = settings.count_runners(self._threads)
        self._active: set[QueuedRequest] = set()
        self._tokens_per_character = dict.fromkeys(models, _TOKENS_PER_CHARACTER)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watching: asyncio.TimerHandle | None = None
        self._draining = self._dead = self._closed = False
        self._workers: WorkerPool
        self._admission: dict[str, Admission] = {}

    def warm_up(self) -> Plan:
        """Measure the models, choose batches and limits, and run the largest shapes. Blocks for seconds.

        Raises:
            CheckError: if a model does not run.
        """
        plans: dict[str, ModelPlan] = {}
        for name, encoder in self.models.items():
            alone = None
            # Dynamic int8 has one scale per tensor, so a text's answer depends on its neighbours (docs/log.md).
            if not encoder.batch_invariant and not self.settings.allow_drift:
                alone = "this file's answers depend on the batch, so every text runs alone"
            plans[name] = measure(
                encoder.run_rows,
                max_length=encoder.manifest.max_length,
                row=partial(constant_row, encoder.session.inputs, encoder.manifest.pad_token_id),
                alone=alone,
                runners=self._runners,
                unpadded=encoder.record.unpadded,
                sizes=encoder.session.sizes,
            )
        self.queue = Queue(
            {
                name: BatchPolicy(cost=plan.cost, drift=Drift(), budget=plan.batch_tokens, padded=plan.padded_tokens)
                for name, plan in plans.items()
            },
            runners=self._runners,
        )
        wait_ms = self.settings.limits.wait_ms
        self._admission = {
            name: Admission(
                typical_s=plan.cost.seconds(1, min(LONG_TOKENS, self._max_length(name))),
                batch_s=plan.batch_s,
                fixed_s=None if wait_ms is None else wait_ms / 1e3,
            )
            for name, plan in plans.items()
        }
        limits = [admission.limits_ms() for admission in self._admission.values()]
        self.plan = Plan(
            models=plans,
            runners=self._runners,
            threads=self._threads,
            text_threads=self.settings.text_threads,
            wait_ms={name: max(one[name] for one in limits) for name in limits[0]},
            memory_bytes=_resident_bytes(),
        )
        return self.plan

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the threads; answers are delivered on this loop.

        Raises:
            UsageError: if the engine was not warmed up.
        """
        if self.plan is None:
            raise UsageError("an engine is warmed up before it starts")
        self._loop = loop
        shadow = None
        if self.settings.shadow is not None:
            primary, twin = self.settings.shadow
            shadow = ShadowComparison(
                primary,
                self.models[twin].run_rows,
                max_length=self._max_length(twin),
                on_compared=lambda agreed: self.observer.shadow(primary, twin, agreed=agreed),
            )
        self._workers = WorkerPool(
            {name: encoder.run_rows for name, encoder in self.models.items()},
            self.queue,
            runners=self._runners,
            text_threads=self.settings.text_threads,
            on_ended=self._on_ended,
            shadow=shadow,
        )
        self._workers.start()
        self._watching = loop.call_later(_WATCH_S, self._watch)

    def drain(self) -> None:
        """Refuse new work; finish what was accepted."""
        self._draining = True

    async def close(self, *, timeout_s: float = 5.0) -> bool:
        """End the threads; requests that still wait get 503. Return whether all threads ended within the time."""
        self._draining = self._closed = True
        if self._loop is None:
            return True
        if self._watching is not None:
            self._watching.cancel()
        self._workers.close()
        self._report_runs()
        for request in list(self._active):
            self._fail(request, unavailable("the server is ending"))
        # Joining blocks, and the loop still has these 503s to send.
        return await self._loop.run_in_executor(None, self._workers.join, timeout_s)

    def is_idle(self) -> bool:
        """Tell whether every accepted request is answered."""
        return not self._active

    def is_ready(self) -> bool:
        """Tell whether requests are taken, load permitting."""
        return self._loop is not None and not self._draining and self.is_alive()

    def is_alive(self) -> bool:
        """Tell whether the engine can still answer: False for good once a run cannot be stopped or a thread is lost."""
        return not self._dead and not self._closed

    def stats(self, model: str) -> Gauges:
        """Return the load of one model now."""
        if self._loop is None:
            return Gauges(queued_rows=0, queued_tokens=0, running_rows=0, wait_s=0.0)
        queue = self.queue
        return Gauges(
            queued_rows=queue.rows[model],
            queued_tokens=queue.tokens[model],
            running_rows=sum(len(batch.rows) for batch in list(queue.running) if batch.model == model),
            wait_s=queue.wait_s(model, queue.expected_s(model, 1), now=monotonic()),
        )

    def refuse_if_full(self, model: str, *, client: str = "") -> None:
        """Refuse a request before its body is read, if even a short one of this client would be refused now.

        Raises:
            RequestError: 429 or 503.
        """
        self._check_open(model)
        if self._active:  # else there is nothing to wait for
            left_s = self.settings.limits.request_seconds
            self._admit(model, self.queue.expected_s(model, 1), client=client, left_s=left_s)

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
        """Answer one request. Cancelling drops its rows, and stops its run if no other request is in it.

        Args:
            model: the model's name.
            prepare: tokenises the request; called in a worker thread.
            characters: of each of its texts, from which its cost is estimated.
            client: who sent it, as far as known: the clients of a lane have equal shares.
            timeout_s: seconds that its client waits, from `received_at` on; the server's own limit holds too.
            received_at: when it came, in the event loop's time.

        Raises:
            RequestError: 429 if it would wait too long, 503 if the engine ends or is dead, 504 if it was not ready
                in time, 500 if the tokenizer or the model failed on it, and whatever `prepare` refuses.
        """
        self._check_open(model)
        loop, now, most = self._loop, monotonic(), self.settings.limits.request_seconds
        if loop is None:
            raise unavailable("the server is starting")
        allowed = most if timeout_s is None else min(timeout_s, most)
        # asyncio's clock is time.monotonic too (BaseEventLoop.time), so the two can be compared.
        arrived = now if received_at is None else min(received_at, now)
        deadline = arrived + allowed
        if deadline <= now:
            self.observer.outcome(model, "expired")
            raise expired(allowed)
        rows, cost = self.expected_cost(model, characters)
        if self._active:
            self._admit(model, cost, rows=rows, client=client, left_s=deadline - now)
        future: asyncio.Future[Answered] = loop.create_future()
        request = QueuedRequest(
            model=model,
            prepare=prepare,
            characters=sum(characters),
            arrived=now,
            deadline=deadline,
            timeout_s=allowed,
            client=client,
            future=future,
        )
        self._active.add(request)
        timer = loop.call_later(deadline - now, self._expire, request) if allowed < _TIMED_S else None
        self._workers.submit(request, cost_s=cost)
        try:
            return await future
        except asyncio.CancelledError:
            self.observer.outcome(model, "gone")
            raise
        finally:
            if timer is not None:
                timer.cancel()
            self._active.discard(request)
            if request.ended == 0.0:  # cancelled or expired while the workers still have it
                self._workers.drop(request)

    def expected_cost(self, model: str, characters: Sequence[int]) -> tuple[int, float]:
        """Return how many rows texts make, and their cost in seconds, estimated from their characters."""
        most, ratio = self._max_length(model), self._tokens_per_character[model]
        # Only a question's context is split into windows; of other long texts the end is cut.
        windows = self.settings.limits.windows if self.models[model].task.has_windows else 1
        rows, cost = 0, 0.0
        for one in characters:
            tokens = 2 + int(one * ratio)  # [CLS] and [SEP]
            parts = min(windows, ceil(tokens / most))
            rows += parts
            cost += parts * self.queue.expected_s(model, min(most, tokens))
        return max(1, rows), cost

    def _max_length(self, model: str) -> int:
        return self.models[model].manifest.max_length

    def _check_open(self, model: str) -> None:
        if self._dead:
            why = "the engine does not answer"
        elif self._draining:
            why = "the server is ending"
        elif self._loop is None:
            why = "the server is starting"
        else:
            return
        self.observer.outcome(model, "unavailable")
        raise unavailable(why)

    def _admit(self, model: str, cost: float, *, rows: int = 1, client: str, left_s: float) -> None:
        now, queue = monotonic(), self.queue
        retry_after = self._admission[model].refusal(
            queue.lane(model, cost),
            queue.wait_s(model, cost, now=now, client=client),
            cost,
            now=now,
            longest_row_s=queue.longest_row_s(),
            runs_s=cost / min(rows, self._runners),
            left_s=left_s,
        )
        if retry_after is not None:
            self.observer.outcome(model, "overloaded")
            raise overloaded(retry_after)

    def _on_ended(self, requests: Sequence[QueuedRequest]) -> None:
        """Hand requests that are over to the event loop; called by the workers."""
        if self._loop is not None and not self._closed:
            try:
                self._loop.call_soon_threadsafe(self._deliver, requests)
            except RuntimeError:  # the loop has ended: nobody waits
                return

    def _deliver(self, requests: Sequence[QueuedRequest]) -> None:
        delivered = []
        for request in requests:
            if request.future is None or request.future.done():
                continue
            delivered.append(request)
            if request.error is not None:
                request.future.set_exception(request.error)
            elif request.answers is not None:
                request.future.set_result(Answered(answers=request.answers, timings=request.timings()))
        if delivered and self._loop is not None:
            # After the answers are sent: counting before took each of them 50 us when caches are cold (docs/log.md).
            self._loop.call_soon(self._count, delivered)

    def _count(self, requests: Sequence[QueuedRequest]) -> None:
        for request in requests:
            if request.error is not None:
                self.observer.outcome(request.model, _OUTCOMES.get(request.error.status, "invalid"))
            elif request.answers is not None:
                self.observer.outcome(request.model, "answered")
                timings = request.timings()
                self.observer.stage(request.model, "tokenise", timings.tokenise_s)
                self.observer.stage(request.model, "queue", timings.queue_s)
                self.observer.stage(request.model, "infer", timings.infer_s)
                self.observer.stage(request.model, "read", request.decode_s)
                if request.characters:
                    self._learn(request)
        self._report_runs()

    def _learn(self, request: QueuedRequest) -> None:
        """Update the tokens per character and the typical cost from an answered request."""
        model = request.model
        lengths = [len(row["input_ids"]) for row in request.features.rows]
        cost = sum(self.queue.expected_s(model, length) for length in lengths)
        is_lowest = self.queue.lane(model, cost).level == 0
        self._admission[model].took(cost, drift=self.queue.drift(model), is_lowest=is_lowest)
        if max(lengths, default=0) < self._max_length(model):  # nothing was cut
            ratio = max(0.0, request.tokens - 2 * len(lengths)) / request.characters
            self._tokens_per_character[model] += _LEARNING_RATE * (ratio - self._tokens_per_character[model])

    def _report_runs(self) -> None:
        while self._workers.finished_runs:
            batch, seconds = self._workers.finished_runs.popleft()
            rows = len(batch.rows)
            self.observer.batch(
                batch.model, rows=rows, tokens=batch.tokens, padded_tokens=rows * batch.longest, seconds=seconds
            )

    def _expire(self, request: QueuedRequest) -> None:
        self._fail(request, expired(request.timeout_s))

    def _fail(self, request: QueuedRequest, error: RequestError) -> None:
        if request.future is not None and not request.future.done():
            self.observer.outcome(request.model, _OUTCOMES.get(error.status, "failed"))
            request.future.set_exception(error)
        self._workers.drop(request)

    def _watch(self) -> None:
        """Expire distant deadlines, stop hung runs, and mark the engine dead if a run or a thread is lost."""
        now, settings = monotonic(), self.settings
        self._report_runs()
        for request in [request for request in self._active if request.deadline <= now]:
            self._expire(request)
        for batch in list(self.queue.running):
            if batch.started + max(settings.hang_s, _HANGS * batch.predicted_s) < now:
                self._workers.stop_run(batch)
            # onnxruntime looks at `terminate` between two operators only, so a run may not stop.
            if batch.stopped_at is not None and batch.stopped_at + settings.grace_s < now:
                self._die("a run did not end when it was told to")
        if self._workers.busy_since() + settings.limits.request_seconds + settings.grace_s < now:
            self._die("a thread has been at one thing for longer than any request may take")
        if not self._workers.restart_dead_threads():
            self._die("a thread has ended and no other could be started")
        if self._dead:  # /health/live says no from now on, for the orchestrator to restart the process
            for request in list(self._active):
                self._fail(request, unavailable("the engine does not answer"))
        elif self._loop is not None:
            self._watching = self._loop.call_later(_WATCH_S, self._watch)

    def _die(self, why: str) -> None:
        if not self._dead:
            _LOG.critical("the engine is dead: %s", why)
        self._dead = True


def _resident_bytes() -> int | None:
    """Return the resident memory of this process; None where the system does not say (not Linux)."""
    try:
        # The second field is resident pages (proc_pid_statm(5)).
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return None
