"""The asking side of a worker: start the process, ask it with a time limit, and be sure that it ends."""

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Protocol

import potstill

# Generous: BERT-large at batch 8 takes seconds per call on 2 cores, and nobody waits this long for a healthy worker.
TIMEOUT_S = 300.0
_STOP_S = 2.0


class CommandFailed(Exception):
    """A worker answered that it could not do what it was asked; it lives on."""


class WorkerDied(CommandFailed):
    """A worker ended; it is gone."""


class WorkerHung(WorkerDied):
    """A worker did not answer in time and was killed."""


class WorkerConfused(WorkerDied):
    """A worker answered what is no answer, so that nothing it says can be relied on, and was killed."""


class Asks(Protocol):
    """What is needed of a worker: `Worker`, or a stand-in."""

    def ask(self, command: Mapping[str, Any], *, timeout_s: float | None = None) -> dict[str, Any]:
        """Return the answer, or raise `CommandFailed`."""

    def pause(self) -> None:
        """Stop it where it is."""

    def resume(self) -> None:
        """Let it go on."""

    def close(self) -> None:
        """End it."""


class Worker:
    """A running worker process."""

    def __init__(self, command: Sequence[str], *, timeout_s: float = TIMEOUT_S) -> None:
        """Start `command`, which answers as `potstill.timing.process` does."""
        self._timeout_s = timeout_s
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close)
        # A group of its own: Ctrl-C reaches the asking process alone, which then ends its workers. Not a session of its
        # own: if the asking process is killed, the system ends the stopped groups that it leaves in its session.
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                text=True,
                encoding="utf-8",
                errors="replace",  # nonsense is told as such
                env=environment(),
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

    def ask(self, command: Mapping[str, Any], *, timeout_s: float | None = None) -> dict[str, Any]:
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
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused process go on."""
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End the process, kindly first, with all that it started, and wait until it is gone."""
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
        self._reader.join()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._stderr.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with suppress(ValueError):
            for line in self._process.stdout:
                self._replies.put(line)
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


@contextmanager
def running(commands: Mapping[str, Sequence[str]]) -> Iterator[dict[str, Worker]]:
    """Run a worker per name, each by its command; whatever happens inside, none of them outlives the block."""
    workers: dict[str, Worker] = {}
    try:
        for name, command in commands.items():
            workers[name] = Worker(command)
        yield workers
    finally:
        for worker in workers.values():
            worker.close()


def python_module(name: str) -> tuple[str, ...]:
    """Return the command that runs a module of this package in a Python like this one."""
    return (sys.executable, "-P", "-m", name)


def _read_reply(line: str) -> dict[str, Any] | None:
    """Return an answer, or None where the line is none: not JSON, no object, without `ok`, or with NaN in it."""
    try:
        reply = json.loads(line, parse_constant=_refuse)
    except ValueError:
        return None
    return reply if isinstance(reply, dict) and "ok" in reply else None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def environment() -> dict[str, str]:
    """Let the child find the package where this process found it."""
    root = str(Path(potstill.__file__).resolve().parent.parent)
    path = os.environ.get("PYTHONPATH")
    return os.environ | {"PYTHONPATH": os.pathsep.join([root, path]) if path else root, "PYTHONUNBUFFERED": "1"}
