"""From nothing to the first answer: what an autoscaler, a cron job or a command line waits for.

The files are in the page cache, since the bench has read them before: a machine that has just been switched on reads
them from its disk, which this does not measure.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from functools import partial

from scipy import stats

from potstill.bench.budget import COLD_STARTS
from potstill.bench.measure.run import BenchRun, store_failure, turn_order
from potstill.bench.report_schema import ColdStart, Interval, Load
from potstill.bench.statistics import mean_log_interval
from potstill.timing.disturbance import watched
from potstill.timing.worker_loop import Command
from potstill.timing.workers import TIMEOUT_S, CommandFailed, Worker, python_module

# What a fresh process is asked where there is no data.
_TEXT = "A pot still is heated from below, and what rises from it is caught."
# The order of cold starts is drawn as that of turns, but belongs to no load.
_NO_LOAD = Load()
# Of 5 values even the extremes hold the median in 94 % of cases only (1 - 2 / 2^5).
_LEAST_FOR_ORDER = 6
_PARTS = ("process_ms", "import_ms", "load_ms", "first_answer_ms")


def measure_cold_starts(run: BenchRun) -> None:
    """Start each configuration's process from nothing, in turns, and the A/A control beside it.

    A start that the machine disturbed is repeated, as often as is allowed.
    """
    config, journal = run.bench.config, run.journal
    if not config.cold_starts:
        return
    text = next(iter(run.bench.texts), _TEXT)
    loads = {key: commands[0] for key, commands in run.measured_processes().items()}
    longest_s = 0.0
    for number in range(config.cold_starts):
        for key in turn_order(list(loads), seed=run.bench.seed, load=_NO_LOAD, launch=0, number=number):
            failed = any(journal.get("failure", key, stage, "") for stage in ("load", "cold start"))
            if failed or journal.get("cold start", key, number) is not None:
                continue
            if not run.has_time(longest_s, COLD_STARTS):
                return
            began = run.clock()
            run.progress("cold start", number, config.cold_starts, key)
            try:
                found, machine = watched(
                    partial(start_once, loads[key], text=text, timeout_s=config.timeout_s), repeats=config.max_repeats
                )
            except CommandFailed as error:
                store_failure(journal, key, "cold start", None, error)
            else:
                # Before the start itself, so that none is ever taken for undisturbed because a bench was cut off here.
                journal.put(("machine", "cold start", key, number), machine)
                journal.put(("cold start", key, number), found)
                longest_s = max(longest_s, run.clock() - began)
    run.progress("cold start", 1, 1, "")


def start_once(
    load: Command,
    *,
    text: object,
    timeout_s: float = TIMEOUT_S,
    command: Sequence[str] = python_module("potstill.bench.worker"),
) -> dict[str, float]:
    """Start a fresh process, have it load and answer one text, and return the milliseconds of each part.

    Args:
        load: the message that makes the process load.
        text: what is asked first.
        timeout_s: for each step.
        command: what answers as `potstill.bench.worker` does.

    Raises:
        CommandFailed: if it cannot load or answer; `WorkerDied` if it ended.
    """
    # This clock is the same in all processes of a machine, so the child can subtract it from its own.
    worker = Worker([*command, repr(time.monotonic())], timeout_s=timeout_s)
    try:
        reply = worker.ask(load) | worker.ask({"do": "first", "text": text})
    finally:
        worker.close()
    return {name: float(reply[name]) for name in _PARTS}


def summarise_starts(key: str, found: Sequence[Mapping[str, float]], *, disturbed: str | None = None) -> ColdStart:
    """Return the median of each part over some starts, at least one."""
    totals = [sum(parts[name] for name in _PARTS) for parts in found]
    medians = {name: statistics.median(parts[name] for parts in found) for name in _PARTS}
    return ColdStart(
        key=key,
        starts=len(found),
        total_ms=statistics.median(totals),
        interval=median_interval(totals),
        disturbed=disturbed,
        **medians,
    )


def median_interval(values: Sequence[float]) -> Interval:
    """Return a 95 % interval of the median.

    From 6 values on it is the narrowest symmetric pair of order statistics that holds the median with 95 % (David and
    Nagaraja 2003, Order Statistics, section 7.1): how many of n draws are below the median is binomial (n, 1/2). Fewer
    values have no such pair; they get Student's interval of the mean of their logarithms. One value is its own.
    """
    ordered = sorted(values)
    if len(ordered) < _LEAST_FOR_ORDER:
        return mean_log_interval(ordered)
    # `ppf` is the first count to pass 2.5 %; the one before it is the last that does not.
    lower = max(0, int(stats.binom.ppf(0.025, len(ordered), 0.5)) - 1)
    return ordered[lower], ordered[-1 - lower]
