"""The processes of a run: one per row, of which one runs and the others stand still; faults cost what they must.

A process that died, hung or ran out of memory is started anew when it is asked about something else. What it was asked
is lost: asking again would most likely end in the same way, and might take as long.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias, TypeVar

from potstill.bench.measuring.samples import Samples
from potstill.bench.report_schema import Failure
from potstill.timing.client import (
    Asks,
    CommandFailed,
    Worker,
    WorkerConfused,
    WorkerDied,
    WorkerHung,
    python_module,
)

Command: TypeAlias = Mapping[str, Any]
Launch: TypeAlias = Callable[[float], Asks]
"""Starts a process that has so many seconds for each answer."""
Kind = Literal["crash", "hang", "not finite", "out of memory", "error"]
Stage = Literal["load", "warm-up", "latency", "throughput", "scaling", "memory", "quality", "cold start"]
Answer = TypeVar("Answer")

# What Python, C++, CUDA and onnxruntime say. A signal 9 that is not ours is the kernel's, which has no memory left.
_OUT_OF_MEMORY = re.compile(
    r"out ?of ?memory|MemoryError|bad_alloc|Failed to allocate|killed by signal 9\b", re.IGNORECASE
)
_NOT_FINITE = "NotFinite"


def start_worker(timeout_s: float) -> Worker:
    """Start the process that measures."""
    return Worker((*python_module("potstill.bench.engines.worker"), repr(time.monotonic())), timeout_s=timeout_s)


def classify(error: CommandFailed) -> Kind:
    """Return what kind of fault it was."""
    if isinstance(error, WorkerHung):
        return "hang"
    if str(error).startswith(_NOT_FINITE):
        return "not finite"
    if _OUT_OF_MEMORY.search(str(error)):
        return "out of memory"
    return "crash" if isinstance(error, WorkerDied) and not isinstance(error, WorkerConfused) else "error"


class Team:
    """The processes, started when they are first asked; made by `open_team`."""

    def __init__(
        self, greetings: Mapping[str, Sequence[Command]], *, journal: Samples, launch: Launch, timeout_s: float
    ) -> None:
        """Know whom to start; see `open_team`."""
        self._greetings, self._journal = greetings, journal
        self._launch, self._timeout_s = launch, timeout_s
        self._begun: dict[str, Asks] = {}
        self._running: dict[str, Asks] = {}
        self._done: dict[str, set[str]] = {}

    @property
    def names(self) -> list[str]:
        """Return who is there, or can be started."""
        return [name for name in self._greetings if not self._failed(name, "load", None)]

    def done(self, name: str) -> set[str]:
        """Return what the present process has been used for: a set that its user fills and a new process empties."""
        return self._done.setdefault(name, set())

    def start(self, names: Sequence[str]) -> None:
        """Have these processes loaded; they begin all at once, so that one imports while another loads."""
        for name in names:
            if name not in self._running and not self._failed(name, "load", None):
                self._begin(name)
        for name in names:
            self._load(name)

    def ask(
        self,
        name: str,
        command: Command,
        *,
        read: Callable[[dict[str, Any]], Answer],
        stage: Stage,
        where: str | None = None,
        timeout_s: float | None = None,
    ) -> Answer | None:
        """Wake a process, ask it, and stop it again.

        Args:
            name: whom.
            command: what to do.
            read: returns what is wanted of the reply; a `KeyError`, `TypeError` or `ValueError` is a failure.
            stage: what is lost if it fails.
            where: at which load or data set.
            timeout_s: another limit than the usual.

        Returns:
            What `read` returned, or None after writing the failure down, now or in an earlier run.
        """
        if self._failed(name, stage, where) or not self._load(name):
            return None
        return self._ask(name, command, read=read, stage=stage, where=where, timeout_s=timeout_s)

    def close(self) -> None:
        """End all processes; whoever is asked afterwards starts anew."""
        for workers in (self._begun, self._running):
            while workers:
                workers.popitem()[1].close()
        self._done.clear()

    def _failed(self, name: str, stage: Stage, where: str | None) -> bool:
        places = {("load", ""), (stage, where or "")}
        return any(self._journal.get("failure", name, *place) is not None for place in places)

    def _begin(self, name: str) -> None:
        try:
            self._begun[name] = self._launch(self._timeout_s)
        except OSError as error:
            self._note(name, CommandFailed(f"{type(error).__name__}: {error}"), stage="load", where=None)

    def _load(self, name: str) -> bool:
        """Have a process that is loaded; tell whether there is one."""
        if name in self._running:
            return True
        if name not in self._begun and not self._failed(name, "load", None):
            self._begin(name)
        if name not in self._begun:
            return False
        self._running[name] = self._begun.pop(name)
        for number, command in enumerate(self._greetings[name]):
            reply = self._ask(name, command, read=dict, stage="load", where=None, timeout_s=None)
            if reply is None:
                self._end(name)
                return False
            if number == 0 and self._journal.get("load", name) is None:
                self._journal.put(("load", name), reply)
        return True

    def _ask(
        self,
        name: str,
        command: Command,
        *,
        read: Callable[[dict[str, Any]], Answer],
        stage: Stage,
        where: str | None,
        timeout_s: float | None,
    ) -> Answer | None:
        worker = self._running[name]
        worker.resume()
        try:
            reply = worker.ask(command, timeout_s=timeout_s)
        except CommandFailed as error:
            self._note(name, error, stage=stage, where=where)
            # Who ran out of memory may live on, but with what it had taken until then.
            if isinstance(error, WorkerDied) or classify(error) == "out of memory":
                self._end(name)
            return None
        finally:
            worker.pause()
        try:
            return read(reply)
        except (KeyError, TypeError, ValueError) as error:
            told = f"answered {str(reply)[:80]} to {command['do']!r} ({type(error).__name__}: {str(error)[:80]})"
            self._note(name, CommandFailed(told), stage=stage, where=where)
            return None

    def _end(self, name: str) -> None:
        self._done.pop(name, None)
        if name in self._running:
            self._running.pop(name).close()

    def _note(self, name: str, error: CommandFailed, *, stage: Stage, where: str | None) -> None:
        failure = Failure(key=name, stage=stage, where=where, kind=classify(error), reason=str(error))
        self._journal.put(("failure", name, stage, where or ""), failure.model_dump(mode="json"))


@contextmanager
def open_team(
    greetings: Mapping[str, Sequence[Command]], *, journal: Samples, launch: Launch, timeout_s: float
) -> Iterator[Team]:
    """Have a team within a block; whatever happens there, none of its processes outlives it.

    Args:
        greetings: who takes part -> what its process is told first, the load command before all.
        journal: gets the failures, and the answers to the first load commands.
        launch: starts a process.
        timeout_s: how long one answer may take.
    """
    team = Team(greetings, journal=journal, launch=launch, timeout_s=timeout_s)
    try:
        yield team
    finally:
        team.close()
