"""From nothing to the first answer: what an autoscaler, a cron job or a command line waits for."""

import statistics
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from scipy import stats

from potstill.bench.contract import ColdStart, Interval
from potstill.progress import Progress, silent
from potstill.serve import Text
from potstill.timing.client import TIMEOUT_S, Worker, python_module

if TYPE_CHECKING:
    from potstill.bench.subjects import Entry

_PARTS = ("process_ms", "import_ms", "load_ms", "first_answer_ms")


def cold_start(
    entry: "Entry",
    *,
    text: Text,
    starts: int,
    seed: int = 0,
    spinning: bool = True,
    timeout_s: float = TIMEOUT_S,
    command: Sequence[str] = python_module("potstill.bench.engines.worker"),
    progress: Progress = silent,
) -> ColdStart:
    """Start a fresh process `starts` times, load, and answer one text; return the median of each part.

    The files are in the page cache, since the bench has read them before: a machine that has just been switched on
    reads them from its disk, which this does not measure.

    Args:
        entry: what is started.
        text: what is asked first.
        starts: how often, at least once.
        seed: of the load message.
        spinning: whether idle threads wait busily.
        timeout_s: for each step.
        command: what answers as `potstill.bench.engines.worker` does.
        progress: is told of each start.

    Raises:
        CommandFailed: if it cannot load or answer; `WorkerDied` if it ended.
    """
    load = entry.load_command(seed=seed, spinning=spinning)
    found = []
    for number in range(starts):
        progress("cold start", number, starts, entry.key)
        found.append(_start(command, load, text=text, timeout_s=timeout_s))
    progress("cold start", starts, starts, entry.key)
    totals = [sum(parts.values()) for parts in found]
    medians = {name: statistics.median(parts[name] for parts in found) for name in _PARTS}
    return ColdStart(
        key=entry.key, starts=starts, total_ms=statistics.median(totals), interval=median_interval(totals), **medians
    )


def median_interval(values: Sequence[float]) -> Interval:
    """Return the narrowest pair of `values` between which the median lies with 95 %, else the smallest and largest.

    Order statistics (David and Nagaraja 2003, Order Statistics, section 7.1): so many of n draws are below the median
    as heads come of n coins. Fewer than 6 values reach no 95 %.
    """
    ordered = sorted(values)
    # `ppf` is the first count to pass 2.5 %; the one before it is the last that does not.
    lower = max(0, int(stats.binom.ppf(0.025, len(ordered), 0.5)) - 1)
    return ordered[lower], ordered[-1 - lower]


def _start(command: Sequence[str], load: dict[str, Any], *, text: Text, timeout_s: float) -> dict[str, float]:
    worker = Worker([*command, repr(time.monotonic())], timeout_s=timeout_s)
    try:
        reply = worker.ask(load) | worker.ask({"do": "first", "text": text})
    finally:
        worker.close()
    return {name: float(reply[name]) for name in _PARTS}
