"""The threads: who does what, and how one wakes another.

A runner does everything for a request that it can: on an idle server it tokenises, runs and reads, so that a request
changes threads twice, not four times. Text threads tokenise, and read what takes long, while the runners run. Long
texts are theirs alone, and between two chunks of one much shorter ones pass. There is one lock, around the queue; no
work is done under it. A thread with nothing to do sleeps on a queue of its own.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import inf
from queue import SimpleQueue
from time import monotonic
from typing import TypeAlias

from potstill.errors import CheckError, UsageError
from potstill.serve.batching.queue import SHORT_CHARACTERS, Batch, Item, Job, Queue, Task
from potstill.serve.batching.shadow_compare import Shadow
from potstill.serve.encoder import RunRows
from potstill.serve.http_errors import RequestError, failed, invalid, unavailable
from potstill.serve.logging import log_failure
from potstill.serve.session import Stop
from potstill.serve.tasks.features import Outputs
from potstill.serve.tokenizer import Row, between_chunks

_LOG = logging.getLogger("potstill.serve")
# Answers that take longer to read than this are handed to the text threads while rows wait.
_QUICK_READ_S = 0.0003

Done: TypeAlias = Callable[[Sequence[Job]], None]


class _GaveUp(Exception):
    """Nobody waits for what is being tokenised."""


class _Worker:
    """One thread, and what it sleeps on."""

    def __init__(self, name: str, *, runs: bool) -> None:
        self.name, self.runs = name, runs
        self.began = 0.0  # when it got what it does; 0 while it has nothing to do
        self.bell: SimpleQueue[None] = SimpleQueue()
        self.stop: Stop | None = None  # for its next run; made before the lock is taken
        self.thread: threading.Thread | None = None


class Crew:
    """Runners and text threads around one queue."""

    def __init__(
        self,
        models: Mapping[str, RunRows],
        queue: Queue,
        *,
        runners: int,
        text_threads: int,
        done: Done,
        shadow: Shadow | None = None,
    ) -> None:
        """Set up; `start` begins.

        Args:
            models: what runs rows, by name.
            queue: what waits. Nobody else may touch it while the crew works, but through the crew.
            runners: threads that run models.
            text_threads: threads that do not; at least one.
            done: called from any thread with requests that are over, answered or failed.
            shadow: what runs when a runner would be idle.
        """
        self._models, self.queue = models, queue
        self._done, self._shadow = done, shadow
        self.ran: deque[tuple[Batch, float]] = deque()
        """RunRows that are over and the seconds they took, for whoever counts them; here they would hold answers up."""
        self._lock = threading.Lock()
        self._reads: deque[Job] = deque()
        self._read_s = 0.0
        self._workers = [_Worker(f"potstill-runner-{number}", runs=True) for number in range(runners)]
        self._workers += [_Worker(f"potstill-text-{number}", runs=False) for number in range(text_threads)]
        self._idle: list[_Worker] = []
        self._closed = False

    def start(self) -> None:
        """Start the threads."""
        for worker in self._workers:
            self._begin(worker)

    def submit(self, job: Job, *, cost_s: float) -> None:
        """Take a request that is expected to cost this."""
        with self._lock:
            self.queue.add(job, cost_s=cost_s)
            self._ring((False,) if job.characters > SHORT_CHARACTERS else (True, False))
        if self._shadow is not None:
            self._shadow.step_aside()

    def drop(self, job: Job) -> None:
        """Forget a request; a run that is for nobody else is ended."""
        with self._lock:
            abandoned = self.queue.drop(job)
        for batch in abandoned:
            self.stop(batch)

    def stop(self, batch: Batch) -> None:
        """Tell a run to end."""
        if batch.stopped_at is None:
            batch.stopped_at = monotonic()
            batch.stop.set()

    def close(self) -> None:
        """Let the threads end after what they do now; what waits is not done."""
        with self._lock:
            self._closed = True
            for worker in self._workers:
                worker.bell.put(None)

    def join(self, timeout_s: float) -> bool:
        """Wait until the threads have ended; tell whether they have."""
        until = monotonic() + timeout_s
        for worker in self._workers:
            if worker.thread is not None:
                worker.thread.join(max(0.0, until - monotonic()))
        return not any(worker.thread is not None and worker.thread.is_alive() for worker in self._workers)

    def oldest(self) -> float:
        """Return since when the longest of what the threads do now has been going on; infinity if nothing is."""
        return min((worker.began for worker in self._workers if worker.began), default=inf)

    def mend(self) -> bool:
        """Start threads that have died again; tell whether all live."""
        if self._closed:
            return False
        for worker in self._workers:
            if worker.thread is not None and not worker.thread.is_alive():
                _LOG.error("the thread %s had died and is started again", worker.name)
                try:
                    self._begin(worker)
                except RuntimeError:  # no more threads on this machine
                    return False
        return True

    def _begin(self, worker: _Worker) -> None:
        # A daemon: one that hangs in a run must not keep the process from ending.
        worker.thread = threading.Thread(target=self._work, args=(worker,), name=worker.name, daemon=True)
        worker.thread.start()

    def _ring(self, kinds: Sequence[bool]) -> None:
        """Wake one idle thread, under the lock: of the first kind (does it run models?) that has one."""
        for kind in kinds:
            for worker in reversed(self._idle):  # whoever has been awake last
                if worker.runs is kind:
                    self._idle.remove(worker)
                    worker.bell.put(None)
                    return

    def _work(self, worker: _Worker) -> None:
        while not self._closed:
            try:
                task = self._next(worker)
                if task is None:
                    worker.bell.get()
                else:
                    worker.began = monotonic()
                    task()
            except BaseException as error:  # a thread that ends would take the server with it
                log_failure("the engine failed on a request", error)
            finally:
                worker.began = 0.0

    def _next(self, worker: _Worker) -> Task | None:
        if worker.runs and worker.stop is None:
            worker.stop = Stop()
        with self._lock:
            if self._reads and not worker.runs:
                return partial(self._read, [self._reads.popleft()])
            # Short texts first, also for a runner: they take little, and may be more urgent than all rows.
            raw = self.queue.next_raw(long=not worker.runs)
            if raw is not None:
                return partial(self._prepare, raw, worker)
            if worker.runs:
                idle = sum(other.runs for other in self._idle)
                batch = self.queue.next_batch(monotonic(), idle=idle, stop=worker.stop)
                if batch is not None:
                    worker.stop = None
                    if self.queue.has_rows():
                        self._ring((True,))
                    return partial(self._run, batch)
                task = self._shadow.take() if self._shadow is not None else None
                if task is not None:
                    return task
            self._idle.append(worker)
            return None

    def _prepare(self, job: Job, worker: _Worker) -> None:
        began = monotonic()
        if job.deadline <= began:
            return  # its own timer answers
        lengths: list[int] = []
        token = between_chunks.set(partial(self._let_pass, job, worker))
        try:
            job.prepared = job.prepare()
            lengths = [len(row["input_ids"]) for row in job.prepared.rows]
        except _GaveUp:
            return
        except Exception as error:
            job.error = _refusal(error)
        finally:
            between_chunks.reset(token)
        now = monotonic()
        job.tokenise_s = now - began
        job.tokens, job.left, job.outputs = sum(lengths), len(lengths), [None] * len(lengths)
        with self._lock:
            self.queue.put(job, lengths)
            # A runner runs a single row itself, at once: to wake another for it costs both of them time.
            if len(lengths) > worker.runs:
                self._ring((True,))
        # Again, because a runner may have gone back to the shadow while this was tokenised.
        if self._shadow is not None:
            self._shadow.step_aside()
        if job.error is not None:
            self._end([job])
        elif not lengths:
            self._read([job])

    def _let_pass(self, job: Job, worker: _Worker) -> None:
        """Tokenise much shorter requests in the middle of a long one, or end it if nobody waits for it any more."""
        worker.began = monotonic()  # it has come on
        while not job.dead:
            with self._lock:
                shorter = self.queue.next_raw(long=not worker.runs, before=job)
            if shorter is None:
                return
            self._prepare(shorter, worker)
        raise _GaveUp

    def _run(self, batch: Batch) -> None:
        jobs = list(dict.fromkeys(item.job for item in batch.items))
        try:
            outputs = self._models[batch.model]([_row(item) for item in batch.items], batch.stop)
        except Exception as error:
            self._failed(batch, jobs, error)
            return
        finally:
            now = monotonic()
            with self._lock:
                self.queue.done(batch, now=now)
        seconds = now - batch.started
        self.ran.append((batch, seconds))
        self._store(batch, jobs, outputs, seconds)

    def _store(self, batch: Batch, jobs: Sequence[Job], outputs: Sequence[Outputs], seconds: float) -> None:
        ready = []
        kept = [_keep(item, found) for item, found in zip(batch.items, outputs, strict=True)]
        with self._lock:
            for item, found in zip(batch.items, kept, strict=True):
                item.job.outputs[item.index] = found
                item.job.left -= 1
                if item.job.left == 0:
                    ready.append(item.job)
            for job in jobs:
                job.infer_s += seconds
            if ready and self._read_s > _QUICK_READ_S and self.queue.has_rows():
                self._reads.extend(ready)
                self._ring((False,))
                ready = []
        if ready:
            self._read(ready)

    def _read(self, jobs: Sequence[Job]) -> None:
        began = monotonic()
        for job in jobs:
            if job.dead or job.prepared is None:
                continue
            try:
                job.answers = job.prepared.decode([found for found in job.outputs if found is not None])
                if self._shadow is not None:
                    self._shadow.offer(job)
            except Exception as error:
                job.error = _refusal(error)
        seconds = (monotonic() - began) / len(jobs)
        self._read_s += 0.1 * (seconds - self._read_s)
        for job in jobs:
            job.read_s = seconds
        self._end(jobs)

    def _failed(self, batch: Batch, jobs: Sequence[Job], error: Exception) -> None:
        """Find out whose rows a run failed on, by running each request's alone."""
        if batch.stop.is_set:
            # Whoever still waits for it, waits for a run that hung.
            self._fail([job for job in jobs if not job.dead], unavailable("the model did not answer in time"))
            return
        log_failure("the engine failed on a request", error)
        if len(jobs) == 1:
            self._fail(jobs, failed())
            return
        for job in jobs:
            items = [item for item in batch.items if item.job is job]
            if job.dead:
                continue
            now = monotonic()
            alone = Batch(
                model=batch.model, items=items, longest=max(item.tokens for item in items), started=now,
                predicted_s=batch.predicted_s,
            )  # fmt: skip
            with self._lock:
                self.queue.running[alone] = None
            self._run(alone)

    def _fail(self, jobs: Sequence[Job], error: RequestError) -> None:
        with self._lock:
            for job in jobs:
                job.error = error
                self.queue.drop(job)
        self._end(jobs)

    def _end(self, jobs: Sequence[Job]) -> None:
        now = monotonic()
        for job in jobs:
            job.ended = now
        self._done(jobs)


def _keep(item: Item, found: Outputs) -> Outputs:
    prepared = item.job.prepared
    return prepared.keep(item.index, found) if prepared is not None else found


def _row(item: Item) -> Row:
    prepared = item.job.prepared
    return prepared.rows[item.index] if prepared is not None else {}


def _refusal(error: Exception) -> RequestError:
    """Return what a client is told of an error in tokenising or reading."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, UsageError) and not isinstance(error, CheckError):
        return invalid(str(error))
    log_failure("the engine failed on a request", error)
    return failed()
