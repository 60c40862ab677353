"""All stages of a run in their order: latency, memory and throughput, quality, cold starts, thread scaling."""

from pathlib import Path

from potstill.bench.measure.cold_start import measure_cold_starts
from potstill.bench.measure.latency import measure_latency
from potstill.bench.measure.quality import collect_answers
from potstill.bench.measure.run import BenchRun
from potstill.bench.measure.throughput import measure_scaling


def measure(run: BenchRun, *, answers: Path) -> None:
    """Measure everything that is not in the journal yet.

    A failure of a configuration costs what it was asked and is written down. `KeyboardInterrupt` passes through once
    all processes are ended; a round that it cuts off leaves no trace, and another call goes on there. With a deadline,
    what there is no time for stays unmeasured: the most important stages come first.

    Args:
        run: what is measured, and where it is written down.
        answers: a folder for the answers to the data sets.
    """
    # In the order of `budget`'s parts: time for a later one is reserved while an earlier one runs.
    measure_latency(run)
    collect_answers(run, run.bench.datasets, answers)
    measure_cold_starts(run)
    measure_scaling(run)
