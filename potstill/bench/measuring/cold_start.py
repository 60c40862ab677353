"""From nothing to the first answer: what an autoscaler, a cron job or a command line waits for.

The files are in the page cache, since the bench has read them before: a machine that has just been switched on reads
them from its disk, which this does not measure.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

from scipy import stats

from potstill.bench.measuring.stats import mean_log_interval
from potstill.bench.report_schema import ColdStart, Interval
from potstill.serve import Text
from potstill.timing.client import TIMEOUT_S, Worker, python_module

_LEAST_FOR_ORDER = 6
_PARTS = ("process_ms", "import_ms", "load_ms", "first_answer_ms")


def start_once(
    load: Mapping[str, Any],
    *,
    text: Text,
    timeout_s: float = TIMEOUT_S,
    command: Sequence[str] = python_module("potstill.bench.engines.worker"),
) -> dict[str, float]:
    """Start a fresh process, have it load and answer one text, and return the milliseconds of each part.

    Args:
        load: the message that makes the process load.
        text: what is asked first.
        timeout_s: for each step.
        command: what answers as `potstill.bench.engines.worker` does.

    Raises:
        CommandFailed: if it cannot load or answer; `WorkerDied` if it ended.
    """
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
    """Return the 95 % interval of the median.

    Of 6 values or more it is the narrowest pair of them between which the median lies with 95 %, by order statistics
    (David and Nagaraja 2003, Order Statistics, section 7.1): so many of n draws are below the median as heads come of n
    coins. Fewer carry no such pair; theirs is Student's, of the mean of their logarithms. One alone is its own.
    """
    ordered = sorted(values)
    if len(ordered) < _LEAST_FOR_ORDER:
        return mean_log_interval(ordered)
    # `ppf` is the first count to pass 2.5 %; the one before it is the last that does not.
    lower = max(0, int(stats.binom.ppf(0.025, len(ordered), 0.5)) - 1)
    return ordered[lower], ordered[-1 - lower]
