"""The context of one run: the resolved bench, its journal, clock and deadline, and its worker processes."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal

import numpy as np

from potstill.bench.budget import Deadline
from potstill.bench.config import ResolvedBench
from potstill.bench.measure.samples import Samples
from potstill.bench.models import Configuration
from potstill.bench.report_schema import Failure, Load
from potstill.progress import Progress, silent
from potstill.timing.worker_loop import Command, Message
from potstill.timing.workers import (
    Asks,
    CommandFailed,
    Worker,
    WorkerPool,
    classify,
    python_module,
    worker_pool,
)

Stage = Literal["load", "warm-up", "latency", "throughput", "scaling", "memory", "quality", "cold start"]

# A second process of the baseline takes part under its key with this suffix: what differs between the two is noise.
A_A_SUFFIX = "#again"
# The bare matrix product takes part under this name: what the machine can do while the models run.
PEAK = "#product"
_TURN_ORDER = 1  # keeps this seeded generator apart from those of the intervals


def start_worker(timeout_s: float) -> Worker:
    """Start a worker process that has `timeout_s` seconds for each answer."""
    # The worker subtracts this from its own clock, which gives `process_ms`.
    return Worker((*python_module("potstill.bench.worker"), repr(time.monotonic())), timeout_s=timeout_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRun:
    """One run of a bench: what is measured, where that is written down, and how its processes are started.

    Attributes:
        bench: what is measured.
        journal: gets everything that is measured.
        progress: called with stage, steps done, steps in all and a note.
        launch: starts a worker process, given its time limit in seconds.
        clock: returns seconds, of which only differences count.
        deadline: by when all must be done; None where there is no budget.
    """

    bench: ResolvedBench
    journal: Samples
    progress: Progress = silent
    launch: Callable[[float], Asks] = start_worker
    clock: Callable[[], float] = time.perf_counter
    deadline: Deadline | None = None

    def has_time(self, seconds: float, part: str) -> bool:
        """Tell whether a part still has so many seconds; it always has where there is no budget."""
        return self.deadline is None or seconds <= self.deadline.left_s(part)

    def setup_commands(
        self, configuration: Configuration, *, threads: int | None = None, with_texts: bool = False
    ) -> list[Command]:
        """Return the first commands of a configuration's process: load it, on so many threads, and take the texts."""
        load = configuration.load_command(seed=self.bench.seed)
        commands: list[Command] = [load if threads is None else load | {"threads": threads}]
        # Only where a load runs them: texts take memory, and the process's memory is measured.
        if with_texts and self.bench.texts and any(load.kind != "grid" for load in self.bench.loads):
            commands.append({"do": "texts", "texts": list(self.bench.texts)})
        return commands

    def measured_processes(self) -> dict[str, list[Command]]:
        """Return the setup commands of all configurations and of the A/A control, by name."""
        found = {each.key: self.setup_commands(each, with_texts=True) for each in self.bench.configurations}
        baseline = self.bench.baseline.key
        if self.bench.config.again and baseline in found:
            found[baseline + A_A_SUFFIX] = found[baseline]
        return found

    def racing_processes(self) -> dict[str, list[Command]]:
        """Return the setup commands of all that take turns: `measured_processes`, and on a CPU the bare product."""
        on_processor = [each for each in self.bench.configurations if each.on_processor]
        if not self.bench.config.peak or not on_processor:
            return self.measured_processes()
        return self.measured_processes() | {PEAK: [{"do": "products", "threads": on_processor[0].threads}]}

    def pool(self, setup: Mapping[str, Sequence[Command]]) -> AbstractContextManager[WorkerPool]:
        """Run processes within a block, given the first commands of each; failures go into the journal."""
        timeout_s = self.bench.config.timeout_s
        return worker_pool(setup, launch=lambda _: self.launch(timeout_s), log=_JournalLog(self.journal))


class _JournalLog:
    """What happens to the processes of a pool, as the journal holds it."""

    def __init__(self, journal: Samples) -> None:
        self._journal = journal

    def has_failed(self, name: str, stage: str, where: str) -> bool:
        return self._journal.get("failure", name, stage, where) is not None

    def failed(self, name: str, stage: str, where: str, error: CommandFailed) -> None:
        store_failure(self._journal, name, stage, where or None, error)

    def loaded(self, name: str, reply: Message) -> None:
        if self._journal.get("load", name) is None:
            self._journal.put(("load", name), reply)


def store_failure(journal: Samples, key: str, stage: str, where: str | None, error: CommandFailed) -> None:
    """Write down that something could not be measured."""
    failure = Failure(key=key, stage=stage, where=where, kind=classify(error), reason=str(error))
    journal.put(("failure", key, stage, where or ""), failure.model_dump(mode="json"))


def load_seed(load: Load) -> list[int]:
    """Return what makes a seeded generator one of this load."""
    # A kind's place here is part of every seed, so new ones go to the end.
    kinds = ("grid", "texts", "texts_tokenised")
    return [kinds.index(load.kind), load.batch_size, load.num_tokens or 0]


def turn_order(keys: Sequence[str], *, seed: int, load: Load, launch: int, number: int) -> list[str]:
    """Return the keys in the order of their turns: random, but the same for the same round, resumed or not."""
    rng = np.random.default_rng([seed, _TURN_ORDER, *load_seed(load), launch, number])
    return [keys[position] for position in rng.permutation(len(keys))]


# What a worker answers, as plain numbers. A reply that lacks something, or holds what cannot be, raises `KeyError`,
# `TypeError` or `ValueError`, which `WorkerPool.ask` makes a failure of.


def read_block(reply: Message) -> dict[str, Any]:
    """Return `latencies_ms`, and the CPU and wall-clock seconds of the block."""
    return {
        "latencies_ms": read_times(reply["latencies_ms"]),
        "cpu_s": read_amount(reply["cpu_s"]),
        "wall_s": read_amount(reply["wall_s"]),
    }


def read_warm(reply: Message) -> dict[str, Any]:
    """Return what the warm-up found."""
    return {
        "calls": int(reply["calls"]),
        "stationary": bool(reply["stationary"]),
        "mean_tokens": read_amount(reply["mean_tokens"]),
        "call_ms": read_amount(reply["call_ms"]),
    }


def read_times(values: Iterable[float]) -> list[float]:
    """Return latencies in milliseconds, rounded to a tenth of a microsecond, which keeps the journal small."""
    found = [round(float(value), 4) for value in values]
    if not found or not all(isfinite(value) and value > 0 for value in found):
        raise ValueError("latencies must be some numbers above 0")
    return found


def read_amount(value: float) -> float:
    """Return a number that must be finite and not negative."""
    found = float(value)
    if not isfinite(found) or found < 0:
        raise ValueError(f"{found} is no amount")
    return found
