"""Measure throughput, in texts per second of one process under several callers, and what more threads gain."""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, TypeVar

from potstill import machine
from potstill.bench.budget import (
    MIN_CALLS,
    SCALING,
    SCALING_ROUNDS,
    SCALING_S,
    THROUGHPUT,
    THROUGHPUT_S,
    THROUGHPUT_SLOW_S,
    THROUGHPUT_SLOW_TURNS,
    THROUGHPUT_TURNS,
    split_rounds,
    thread_counts,
)
from potstill.bench.measure.run import (
    BenchRun,
    Stage,
    read_amount,
    read_times,
    read_warm,
    turn_order,
)
from potstill.bench.report_schema import Load
from potstill.timing.disturbance import watched
from potstill.timing.worker_loop import Command, Message
from potstill.timing.workers import WorkerPool

# Every process has run for long when it comes to this; a second shows whether it has settled.
_WARM_UP_S = 1.0
# Between a configuration's key and the number of threads, where each has a process of its own.
_THREADS = "#threads="

Answer = TypeVar("Answer")


def split_threads(name: str) -> tuple[str, int | None]:
    """Return the key that a process belongs to, and its number of threads where its name has one."""
    key, found, threads = name.partition(_THREADS)
    return (key, int(threads)) if found else (name, None)


def describe_callers(load: Load, callers: int) -> str:
    """Return what failures and noise floors call a load under several callers: `1×64, 4 callers`."""
    return f"{load}, {callers} caller" + ("s" if callers > 1 else "")


def has_enough_turns(turns: Collection[Mapping[str, Any]]) -> bool:
    """Tell whether a load at a number of callers has its turns: fewer of those that take long.

    A configuration that failed makes a turn shorter, but whatever is measured at all is measured at least twice.
    """
    # Of all rows together, as the whole bench waits for all of them.
    seconds = sum(reply["seconds"] for turn in turns for reply in turn.values())
    return len(turns) >= (THROUGHPUT_SLOW_TURNS if seconds > THROUGHPUT_SLOW_S else THROUGHPUT_TURNS)


def measure_throughput(run: BenchRun, pool: WorkerPool, *, launch: int, launches: int) -> None:
    """Make this launch's share of the turns at every load and number of callers.

    A turn that the machine disturbed is made anew, as often as is allowed.
    """
    bench, journal = run.bench, run.journal
    cells = [(load, callers) for load in bench.throughput_loads for callers in bench.callers]
    shares = split_rounds(THROUGHPUT_TURNS, launches)
    for number, (load, callers) in enumerate(cells):
        where = describe_callers(load, callers)
        command = {"do": "concurrent", "load": load.model_dump(), "callers": callers, "seconds": THROUGHPUT_S}
        for turn in range(sum(shares[:launch]), sum(shares[: launch + 1])):
            done = journal.parts("throughput", str(load), callers)
            # Turns are numbered over all launches, so a resumed bench makes just those that are missing.
            if (turn,) in done or has_enough_turns(done.values()):
                continue
            took_s = max((sum(reply["seconds"] for reply in made.values()) for made in done.values()), default=0.0)
            if not run.has_time(took_s, THROUGHPUT):
                return
            run.progress("measure throughput", launch * len(cells) + number, launches * len(cells), where)

            take_turns = partial(
                _take_turns,
                run,
                pool,
                load,
                command,
                read=_read_concurrent,
                stage="throughput",
                where=where,
                order=(callers, turn),
            )
            found, counted = watched(take_turns, repeats=bench.config.max_repeats)
            journal.put(("machine", "throughput", str(load), callers, turn), counted)
            journal.put(("throughput", str(load), callers, turn), found)
    if cells and launch + 1 == launches:
        run.progress("measure throughput", 1, 1, "")


def measure_scaling(run: BenchRun) -> None:
    """Compare 1, 2, 4 and so on threads of each configuration on the processor, each in a process of its own."""
    bench, journal = run.bench, run.journal
    counts, load = thread_counts(machine.available_cores()), bench.scaling_load
    on_processor = [each for each in bench.configurations if each.on_processor]
    if not bench.config.thread_scaling or len(counts) < 2:
        return
    block = {"do": "block", "load": load.model_dump(), "seconds": SCALING_S, "min_calls": MIN_CALLS}
    longest_s = 0.0
    for number, each in enumerate(on_processor):
        # Only the counts of one configuration are compared, so only they take turns with each other.
        setup = {f"{each.key}{_THREADS}{count}": run.setup_commands(each, threads=count) for count in counts}
        with run.pool(setup) as pool:
            for turn in range(SCALING_ROUNDS):
                if journal.get("scaling", each.key, turn) is not None:
                    continue
                if not run.has_time(longest_s, SCALING):
                    return
                began = run.clock()
                step, total = number * SCALING_ROUNDS + turn, len(on_processor) * SCALING_ROUNDS
                run.progress("scale threads", step, total, each.key)

                take_turns = partial(
                    _take_turns,
                    run,
                    pool,
                    load,
                    block,
                    read=_read_latencies,
                    stage="scaling",
                    # The process's name has the number of threads, which is where a failure belongs.
                    where=None,
                    order=(0, turn),
                )
                found, counted = watched(take_turns, repeats=bench.config.max_repeats)
                by_threads = {str(split_threads(name)[1]): calls_ms for name, calls_ms in found.items()}
                journal.put(("machine", "scaling", each.key, turn), counted)
                journal.put(("scaling", each.key, turn), by_threads)
                longest_s = max(longest_s, run.clock() - began)
    run.progress("scale threads", 1, 1, "")


def _take_turns(
    run: BenchRun,
    pool: WorkerPool,
    load: Load,
    command: Command,
    *,
    read: Callable[[Message], Answer],
    stage: Stage,
    where: str | None,
    order: tuple[int, int],
) -> dict[str, Answer]:
    """Ask all processes one after the other, each warmed up before; return the answers of those that did not fail."""
    pool.start(pool.names)
    warm_up = {"do": "warm", "load": load.model_dump(), "max_s": _WARM_UP_S}
    found = {}
    for name in turn_order(pool.names, seed=run.bench.seed, load=load, launch=order[0], number=order[1]):
        # A process of the latency rounds may be warm for this load already.
        if str(load) not in pool.done(name):
            if pool.ask(name, warm_up, read=read_warm, stage=stage, where=where) is None:
                continue
            pool.done(name).add(str(load))
        reply = pool.ask(name, command, read=read, stage=stage, where=where)
        if reply is not None:
            found[name] = reply
    return found


def _read_concurrent(reply: Message) -> dict[str, Any]:
    """Return how many texts several callers had answered, in which time, and each call's latency."""
    texts, seconds = int(reply["texts"]), read_amount(reply["seconds"])
    if texts < 1 or seconds == 0:
        raise ValueError("some texts in some time were expected")
    return {"texts": texts, "seconds": seconds, "latencies_ms": read_times(reply["latencies_ms"])}


def _read_latencies(reply: Message) -> list[float]:
    return read_times(reply["latencies_ms"])
