"""The threads that tokenise, run the model and decode answers.

A runner does as much as it can for a request: on an idle server it tokenises, runs and decodes, so that a request
changes threads twice, not four times. While all runners are busy, text threads tokenise, and decode what takes long.
Only they tokenise long texts, and between two chunks of one they tokenise much shorter requests.

**The lock.** There is one, `WorkerPool._lock`. It guards the queue, the requests that wait to be decoded and the idle
threads. They belong together: a thread that finds nothing to do joins the idle list in the same step, so that
whoever adds work sees it there and wakes it. The event loop takes it in `submit` and `drop`, the workers around each
piece of work. It is held for microseconds: nothing is tokenised, run or decoded under it, and no future is touched.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import inf
from queue import SimpleQueue
from time import monotonic

from potstill.errors import CheckError, UsageError
from potstill.serve.batching.queue import SHORT_CHARACTERS, Batch, Queue, QueuedRequest
from potstill.serve.batching.shadow_compare import ShadowComparison
from potstill.serve.encoder import RunRows
from potstill.serve.http_errors import RequestError, failed, invalid, unavailable
from potstill.serve.logging import log_failure
from potstill.serve.session import Stop
from potstill.serve.tasks import Outputs
from potstill.serve.tokenizer import between_chunks

_LOG = logging.getLogger("potstill.serve")
# Mean seconds of decoding a request above which text threads do it while rows wait, so that the runner can run.
_QUICK_DECODE_S = 0.0003


class _GivenUp(Exception):
    """Raised out of a tokenisation that nobody waits for any more."""


class _Slot:
    """The state of one worker thread; if the thread dies, another is started with the same slot."""

    def __init__(self, name: str, *, is_runner: bool) -> None:
        self.name, self.is_runner = name, is_runner
        self.thread: threading.Thread | None = None
        self.began = 0.0
        """When it began its current piece of work (`time.monotonic`); 0 while idle. Written by its own thread only."""
        self.wakeups: SimpleQueue[None] = SimpleQueue()
        """What the thread sleeps on: its own, to wake exactly one; a queue, so that no wake-up is lost."""
        self.stop: Stop | None = None
        """For its next run: made outside the lock, because a RunOptions takes 88 us when caches are cold."""


class WorkerPool:
    """Runners and text threads around one queue."""

    def __init__(
        self,
        models: Mapping[str, RunRows],
        queue: Queue,
        *,
        runners: int,
        text_threads: int,
        on_ended: Callable[[Sequence[QueuedRequest]], None],
        shadow: ShadowComparison | None = None,
    ) -> None:
        """Set up the slots; `start` starts their threads.

        Args:
            models: what runs rows, by the model's name.
            queue: the requests. Once the pool has started, it is changed through the pool only.
            runners: number of threads that run models.
            text_threads: number of threads that only tokenise and decode; at least one.
            on_ended: called from any thread with requests that are answered or failed.
            shadow: what runs when a runner would be idle.
        """
        self._models, self._queue = models, queue
        self._on_ended, self._shadow = on_ended, shadow
        self.finished_runs: deque[tuple[Batch, float]] = deque()
        """Ended runs and their seconds, for the event loop to count; single operations of a deque need no lock."""
        self._lock = threading.Lock()
        self._to_decode: deque[QueuedRequest] = deque()
        self._decode_s = 0.0  # seconds of one request, as a moving mean; a lost update of two threads does not matter
        self._slots = [_Slot(f"potstill-runner-{number}", is_runner=True) for number in range(runners)]
        self._slots += [_Slot(f"potstill-text-{number}", is_runner=False) for number in range(text_threads)]
        self._idle: list[_Slot] = []
        self._closed = False

    def start(self) -> None:
        """Start the threads."""
        for slot in self._slots:
            self._start_thread(slot)

    def submit(self, request: QueuedRequest, *, cost_s: float) -> None:
        """Queue a request with its estimated cost, and wake a thread for it."""
        with self._lock:
            self._queue.add(request, cost_s=cost_s)
            # A runner first: it will run the row too, with no change of threads.
            if request.characters > SHORT_CHARACTERS or not self._wake(runner=True):
                self._wake(runner=False)
        if self._shadow is not None:
            self._shadow.step_aside()

    def drop(self, request: QueuedRequest) -> None:
        """Remove a request, and stop a run in which every other row is dropped as well."""
        with self._lock:
            abandoned = self._queue.drop(request)
        for batch in abandoned:
            self.stop_run(batch)

    def stop_run(self, batch: Batch) -> None:
        """Tell a run to end."""
        if batch.stopped_at is None:
            batch.stopped_at = monotonic()
            batch.stop.set()

    def close(self) -> None:
        """Tell the threads to end after their current work; what waits is not done."""
        with self._lock:
            self._closed = True
            for slot in self._slots:
                slot.wakeups.put(None)

    def join(self, timeout_s: float) -> bool:
        """Wait at most `timeout_s` until the threads have ended; return whether they have."""
        until = monotonic() + timeout_s
        threads = [slot.thread for slot in self._slots if slot.thread is not None]
        for thread in threads:
            thread.join(max(0.0, until - monotonic()))
        return not any(thread.is_alive() for thread in threads)

    def busy_since(self) -> float:
        """Return when the oldest work that still goes on began (`time.monotonic`); infinity if all are idle."""
        return min((slot.began for slot in self._slots if slot.began), default=inf)

    def restart_dead_threads(self) -> bool:
        """Start a new thread for each one that has died; return whether all are alive."""
        if self._closed:
            return False
        for slot in self._slots:
            if slot.thread is not None and not slot.thread.is_alive():
                _LOG.error("the thread %s had died and is started again", slot.name)
                try:
                    self._start_thread(slot)
                except RuntimeError:  # no more threads on this machine
                    return False
        return True

    def _start_thread(self, slot: _Slot) -> None:
        # A daemon: one that hangs in a run must not keep the process from ending.
        slot.thread = threading.Thread(target=self._work, args=(slot,), name=slot.name, daemon=True)
        slot.thread.start()

    def _wake(self, *, runner: bool) -> bool:
        """Wake one idle thread of a kind; return whether there was one. The caller holds the lock."""
        for slot in reversed(self._idle):  # the one that was awake last, whose caches are warm
            if slot.is_runner is runner:
                self._idle.remove(slot)
                slot.wakeups.put(None)
                return True
        return False

    def _work(self, slot: _Slot) -> None:
        while not self._closed:
            try:
                work = self._next_work(slot)
                if work is None:
                    slot.wakeups.get()
                else:
                    slot.began = monotonic()
                    work()
            except BaseException as error:  # a thread that ends would take the server with it
                log_failure("the engine failed on a request", error)
            finally:
                slot.began = 0.0

    def _next_work(self, slot: _Slot) -> Callable[[], None] | None:
        if slot.is_runner and slot.stop is None:
            slot.stop = Stop()
        with self._lock:
            if self._to_decode and not slot.is_runner:
                return partial(self._decode, [self._to_decode.popleft()])
            # Tokenise before running, also on a runner: it takes little, and the row may be the most urgent one.
            request = self._queue.next_to_tokenise(long=not slot.is_runner)
            if request is not None:
                return partial(self._tokenise, request, slot)
            if slot.is_runner:
                idle = sum(other.is_runner for other in self._idle)
                batch = self._queue.next_batch(monotonic(), idle=idle, stop=slot.stop)
                if batch is not None:
                    slot.stop = None  # the batch has it: a RunOptions that was terminated cannot be used again
                    if self._queue.has_rows():
                        self._wake(runner=True)
                    return partial(self._run, batch)
                work = self._shadow.next_work() if self._shadow is not None else None
                if work is not None:
                    return work
            # In the same critical section as the search: work that is added later finds this slot idle and wakes it.
            self._idle.append(slot)
            return None

    def _tokenise(self, request: QueuedRequest, slot: _Slot) -> None:
        began = monotonic()
        if request.deadline <= began:
            return  # the engine's timer or watch answers it

        lengths: list[int] = []
        token = between_chunks.set(partial(self._tokenise_shorter_ones, request, slot))
        try:
            request.features = request.prepare()
            lengths = [len(row["input_ids"]) for row in request.features.rows]
        except _GivenUp:
            return
        except BaseException as error:  # a panic of the tokenizers library is no Exception (pyo3's PanicException)
            request.error = _as_request_error(error)
        finally:
            between_chunks.reset(token)
        request.tokenise_s = monotonic() - began
        request.tokens, request.rows_left = sum(lengths), len(lengths)
        request.outputs = [None] * len(lengths)
        with self._lock:
            self._queue.add_rows(request, lengths)
            # A runner runs a single row itself, at once: to wake another for it costs both of them time.
            if len(lengths) > slot.is_runner:
                self._wake(runner=True)
        # Again, because a runner may have gone back to the shadow while this was tokenised.
        if self._shadow is not None:
            self._shadow.step_aside()
        if request.error is not None:
            self._end([request])
        elif not lengths:
            self._decode([request])

    def _tokenise_shorter_ones(self, request: QueuedRequest, slot: _Slot) -> None:
        """Tokenise much shorter requests between two chunks of a long one.

        Raises:
            _GivenUp: if nobody waits for the long one any more.
        """
        slot.began = monotonic()  # there was progress, so the watch must not take this for a hung thread
        while not request.is_dropped:
            with self._lock:
                shorter = self._queue.next_to_tokenise(long=not slot.is_runner, before=request)
            if shorter is None:
                return
            self._tokenise(shorter, slot)
        raise _GivenUp

    def _run(self, batch: Batch) -> None:
        requests = list(dict.fromkeys(row.request for row in batch.rows))
        kept: list[Outputs] = []
        failure: BaseException | None = None
        try:
            rows = [row.request.features.rows[row.index] for row in batch.rows]
            outputs = self._models[batch.model](rows, batch.stop)
            # Copies of what is needed: views would keep the whole batch's arrays until the last answer is sent.
            kept = [row.request.features.keep(row.index, found) for row, found in zip(batch.rows, outputs, strict=True)]
        except BaseException as error:  # as in _tokenise
            failure = error
        now = monotonic()
        seconds = now - batch.started
        if failure is None:
            self.finished_runs.append((batch, seconds))
        with self._lock:
            self._queue.finish(batch, now=now)
        if failure is None:
            self._store(batch, requests, kept, seconds)
        else:
            self._finish_failed(batch, requests, failure)

    def _store(
        self, batch: Batch, requests: Sequence[QueuedRequest], outputs: Sequence[Outputs], seconds: float
    ) -> None:
        """Give each request the outputs of its rows, and decode the requests that are complete."""
        ready = []
        # Two runners may have rows of one request: exactly one of them must see that its row was the last.
        with self._lock:
            for row, found in zip(batch.rows, outputs, strict=True):
                row.request.outputs[row.index] = found
                row.request.rows_left -= 1
                if row.request.rows_left == 0:
                    ready.append(row.request)
            for request in requests:
                request.infer_s += seconds
            # Only to a text thread that sleeps: one that tokenises a long text would let these wait for its end.
            is_slow = ready and self._decode_s > _QUICK_DECODE_S and self._queue.has_rows()
            if is_slow and self._wake(runner=False):
                self._to_decode.extend(ready)
                ready = []
        if ready:
            self._decode(ready)

    def _decode(self, requests: Sequence[QueuedRequest]) -> None:
        began = monotonic()
        for request in requests:
            if request.is_dropped:
                continue
            try:
                request.answers = request.features.decode([found for found in request.outputs if found is not None])
                if self._shadow is not None:
                    self._shadow.offer(request)
            except BaseException as error:  # as in _tokenise
                request.error = _as_request_error(error)
        seconds = (monotonic() - began) / len(requests)
        self._decode_s += 0.1 * (seconds - self._decode_s)
        for request in requests:
            request.decode_s = seconds
        self._end(requests)

    def _finish_failed(self, batch: Batch, requests: Sequence[QueuedRequest], error: BaseException) -> None:
        """Answer the requests of a failed run: run each one's rows alone, so that only the culprit gets a 500."""
        if batch.stop.is_set:
            # Abandoned runs are stopped too, but nobody waits for those: this one hung.
            waiting = [request for request in requests if not request.is_dropped]
            self._fail(waiting, unavailable("the model did not answer in time"))
            return
        log_failure("the engine failed on a request", error)
        if len(requests) == 1:
            self._fail(requests, failed())
            return
        for request in requests:
            if request.is_dropped:
                continue
            rows = [row for row in batch.rows if row.request is request]
            alone = Batch(
                model=batch.model,
                rows=rows,
                longest=max(row.tokens for row in rows),
                started=monotonic(),
                predicted_s=batch.predicted_s,
            )
            with self._lock:
                self._queue.running[alone] = None
            self._run(alone)

    def _fail(self, requests: Sequence[QueuedRequest], error: RequestError) -> None:
        with self._lock:
            for request in requests:
                request.error = error
                self._queue.drop(request)
        self._end(requests)

    def _end(self, requests: Sequence[QueuedRequest]) -> None:
        now = monotonic()
        for request in requests:
            request.ended = now
        self._on_ended(requests)


def _as_request_error(error: BaseException) -> RequestError:
    """Return the error that a client gets for a failure in tokenising or decoding."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, UsageError) and not isinstance(error, CheckError):
        return invalid(str(error))
    log_failure("the engine failed on a request", error)
    return failed()
