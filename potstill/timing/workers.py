"""The parent side of worker processes: start them, ask them with a time limit, and be sure that they end.

`Worker` is one process, `WorkerPool` several of which one runs at a time while the others are stopped. The child side
is `potstill.timing.worker_loop`.
"""

import json
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Literal, Protocol, TypeVar

import potstill
from potstill.timing.worker_loop import Command, Message

# Generous: BERT-large at batch 8 takes seconds per call on 2 cores, and a healthy worker never takes this long.
TIMEOUT_S = 300.0
# How long a worker has to end by itself once its stdin is closed, before it is killed.
_STOP_S = 2.0

FailureKind = Literal["crash", "hang", "not finite", "out of memory", "error"]
Answer = TypeVar("Answer")

# What Python, C++, CUDA and onnxruntime say. A signal 9 that is not ours is the kernel's, which has no memory left.
_OUT_OF_MEMORY = re.compile(
    r"out ?of ?memory|MemoryError|bad_alloc|Failed to allocate|killed by signal 9\b", re.IGNORECASE
)
_NOT_FINITE = "NotFinite"


class CommandFailed(Exception):
    """A worker answered that it could not do what it was asked; it lives on."""


class WorkerDied(CommandFailed):
    """A worker ended; it is gone."""


class WorkerHung(WorkerDied):
    """A worker did not answer in time and was killed."""


class WorkerConfused(WorkerDied):
    """A worker sent something that is not an answer; question and answer may be out of step, so it was killed."""


class Asks(Protocol):
    """The part of `Worker` that a pool uses, so that tests can pass a stand-in."""

    def ask(self, command: Command, *, timeout_s: float | None = None) -> Message:
        """Return the answer, or raise `CommandFailed`."""

    def pause(self) -> None:
        """Suspend the process."""

    def resume(self) -> None:
        """Let a suspended process continue."""

    def close(self) -> None:
        """End the process and wait for it."""


class Worker:
    """A running worker process."""

    def __init__(self, command: Sequence[str], *, timeout_s: float = TIMEOUT_S) -> None:
        """Start `command`, which answers as `potstill.timing.worker_loop` does."""
        self._timeout_s = timeout_s
        # A file and not a pipe: nobody reads it meanwhile, and a full pipe would block the process.
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close)
        # A group of its own: Ctrl-C reaches the asking process alone, which then ends its workers. Not a session of its
        # own: when the asking process is killed, POSIX sends SIGHUP to the groups with stopped members that it orphans.
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                text=True,
                encoding="utf-8",
                errors="replace",  # what is not UTF-8 is reported as no answer
                env=child_environment(),
                process_group=0,
            )
        except OSError:
            self._stderr.close()
            raise
        self._replies: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Return the id of the process."""
        return self._process.pid

    def ask(self, command: Command, *, timeout_s: float | None = None) -> Message:
        """Send one command and return the answer.

        Args:
            command: what to do, as JSON.
            timeout_s: for this command alone; None takes the worker's own limit.

        Raises:
            CommandFailed: with the worker's own message.
            WorkerDied: if it ended, gave no answer in time, or gave one that is not an answer; it was killed then.
        """
        assert self._process.stdin is not None
        limit_s = timeout_s or self._timeout_s
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
            line = self._replies.get(timeout=limit_s)
        except queue.Empty:
            self._process.kill()
            raise WorkerHung(f"no answer within {limit_s:g} s, killed") from None
        except OSError:
            # A broken pipe: the process has ended, and its exit code says how.
            line = ""
        if not line:
            raise WorkerDied(self._last_words())
        reply = _read_reply(line)
        if reply is None:
            self._process.kill()
            raise WorkerConfused(f"answered {line.strip()[:80]!r}, which is no answer, and was killed")
        if not reply.pop("ok"):
            raise CommandFailed(str(reply.get("error", "no reason given")))
        return reply

    def pause(self) -> None:
        """Stop the process where it is, so that none of its threads takes a core from a neighbour's turn."""
        # Unlike SIGTSTP it cannot be caught, and it stops the threads that spin for the next call.
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused process go on."""
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End the process, kindly first, with all that it started, and wait until it is gone."""
        # A stopped process would never see that its stdin has ended.
        self.resume()
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        # A child that it left behind would hold the pipe open, and the reader would wait on.
        with suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)
        # Before the pipe is closed, which the thread may be reading from.
        self._reader.join()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._stderr.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with suppress(ValueError):
            for line in self._process.stdout:
                self._replies.put(line)
        # Every answer ends with a newline, so this is none: it wakes an `ask` whose process has ended.
        self._replies.put("")

    def _last_words(self) -> str:
        try:
            code = self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return "the process closed its output and was killed"
        how = f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        self._stderr.seek(0)
        lines = self._stderr.read().decode("utf-8", errors="replace").strip().splitlines()
        return f"the process was {how}" if code < 0 else f"the process {how}" + (f": {lines[-1]}" if lines else "")


def classify(error: CommandFailed) -> FailureKind:
    """Return what kind of failure it was."""
    # First, since it is a `WorkerDied` too; that it was killed was our own doing.
    if isinstance(error, WorkerHung):
        return "hang"
    if str(error).startswith(_NOT_FINITE):
        return "not finite"
    if _OUT_OF_MEMORY.search(str(error)):
        return "out of memory"
    return "crash" if isinstance(error, WorkerDied) and not isinstance(error, WorkerConfused) else "error"


class PoolLog(Protocol):
    """Where a pool writes down what happens to its processes, and looks up what has failed before."""

    def has_failed(self, name: str, stage: str, where: str) -> bool:
        """Tell whether a process has failed at a stage and place, in this run or in one that is resumed."""

    def failed(self, name: str, stage: str, where: str, error: CommandFailed) -> None:
        """Write a failure down."""

    def loaded(self, name: str, reply: Message) -> None:
        """Take what a process answered to its first command."""


class WorkerPool:
    """Processes of which one runs at a time and the others are stopped; made by `worker_pool`.

    They are started when they are first asked. A process that died, hung or ran out of memory is started anew when it
    is asked about something else. What it was asked is lost: asking again would most likely end in the same way, and
    might take as long.
    """

    def __init__(
        self,
        setup: Mapping[str, Sequence[Command]],
        *,
        launch: Callable[[str], Asks],
        log: PoolLog,
    ) -> None:
        """Start nothing yet; see `worker_pool` for the arguments."""
        self._setup, self._launch, self._log = setup, launch, log
        self._started: dict[str, Asks] = {}
        self._loaded: dict[str, Asks] = {}
        self._done: dict[str, set[str]] = {}

    @property
    def names(self) -> list[str]:
        """Return the names of the processes that can be loaded, in the order given."""
        return [name for name in self._setup if not self._log.has_failed(name, "load", "")]

    def done(self, name: str) -> set[str]:
        """Return the notes on a running process, such as the loads it is warm for: a set to add to, lost with it."""
        return self._done.setdefault(name, set())

    def start(self, names: Sequence[str]) -> None:
        """Load these processes; all are started first, so that one imports while another loads."""
        for name in names:
            if name not in self._loaded:
                self._start(name)
        for name in names:
            self._load(name)

    def ask(
        self,
        name: str,
        command: Command,
        *,
        read: Callable[[Message], Answer],
        stage: str,
        where: str | None = None,
        timeout_s: float | None = None,
    ) -> Answer | None:
        """Wake a process, ask it, and stop it again.

        Args:
            name: of the process.
            command: what to do.
            read: returns what is wanted of the reply; a `KeyError`, `TypeError` or `ValueError` is a failure.
            stage: what is lost if it fails.
            where: at which load or data set.
            timeout_s: another limit than the usual.

        Returns:
            What `read` returned, or None after writing the failure down, now or in an earlier run.
        """
        if self._log.has_failed(name, stage, where or "") or not self._load(name):
            return None
        return self._ask(name, command, read=read, stage=stage, where=where, timeout_s=timeout_s)

    def close(self) -> None:
        """End all processes; one that is asked afterwards is started anew."""
        for workers in (self._started, self._loaded):
            while workers:
                workers.popitem()[1].close()
        self._done.clear()

    def _start(self, name: str) -> None:
        if name in self._started or self._log.has_failed(name, "load", ""):
            return
        try:
            self._started[name] = self._launch(name)
        except OSError as error:
            self._log.failed(name, "load", "", CommandFailed(f"{type(error).__name__}: {error}"))

    def _load(self, name: str) -> bool:
        """Start and load a process unless it is loaded; tell whether it is now."""
        if name in self._loaded:
            return True
        self._start(name)
        if name not in self._started:
            return False
        # Moved before it has loaded, because `_ask` looks here; a failure takes it out again.
        self._loaded[name] = self._started.pop(name)
        for number, command in enumerate(self._setup[name]):
            reply = self._ask(name, command, read=dict, stage="load", where=None, timeout_s=None)
            if reply is None:
                self._end(name)
                return False
            if number == 0:
                self._log.loaded(name, reply)
        return True

    def _ask(
        self,
        name: str,
        command: Command,
        *,
        read: Callable[[Message], Answer],
        stage: str,
        where: str | None,
        timeout_s: float | None,
    ) -> Answer | None:
        worker = self._loaded[name]
        worker.resume()
        try:
            reply = worker.ask(command, timeout_s=timeout_s)
        except CommandFailed as error:
            self._log.failed(name, stage, where or "", error)
            # A process that ran out of memory may live on, but holds what it had taken until then.
            if isinstance(error, WorkerDied) or classify(error) == "out of memory":
                self._end(name)
            return None
        finally:
            # After `_end` this does nothing: Popen sends no signal to a process that was waited for.
            worker.pause()
        try:
            return read(reply)
        except (KeyError, TypeError, ValueError) as error:
            told = f"answered {str(reply)[:80]} to {command['do']!r} ({type(error).__name__}: {str(error)[:80]})"
            self._log.failed(name, stage, where or "", CommandFailed(told))
            return None

    def _end(self, name: str) -> None:
        self._done.pop(name, None)
        if name in self._loaded:
            self._loaded.pop(name).close()


@contextmanager
def worker_pool(
    setup: Mapping[str, Sequence[Command]], *, launch: Callable[[str], Asks], log: PoolLog
) -> Iterator[WorkerPool]:
    """Provide a pool within a `with` block; whatever happens there, none of its processes outlives it.

    Args:
        setup: name -> the first commands of its process, the one that loads it before all others.
        launch: starts a process by its name.
        log: gets the failures, and the answers to the first commands.
    """
    pool = WorkerPool(setup, launch=launch, log=log)
    try:
        yield pool
    finally:
        pool.close()


def python_module(name: str) -> tuple[str, ...]:
    """Return the command that runs a module of this package in a Python like this one."""
    # -P keeps the working folder out of sys.path, where -m puts it: a numpy.py there must not be imported.
    return (sys.executable, "-P", "-m", name)


def _read_reply(line: str) -> Message | None:
    """Return an answer, or None where the line is none: not JSON, no object, without `ok`, or with NaN in it."""
    try:
        # Python reads NaN and Infinity, which JSON does not have (RFC 8259, section 6).
        reply = json.loads(line, parse_constant=_refuse)
    except ValueError:
        return None
    return reply if isinstance(reply, dict) and "ok" in reply else None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def child_environment() -> dict[str, str]:
    """Return the environment of a child that must import this same copy of the package."""
    root = str(Path(potstill.__file__).resolve().parent.parent)
    path = os.environ.get("PYTHONPATH")
    return os.environ | {"PYTHONPATH": os.pathsep.join([root, path]) if path else root, "PYTHONUNBUFFERED": "1"}
