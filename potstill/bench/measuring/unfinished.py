"""What an interrupted run had not measured yet."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from potstill import machine
from potstill.bench.measuring.budget import SCALING_ROUNDS, thread_counts
from potstill.bench.measuring.rounds import is_lost, kept_rounds, wanted_rounds
from potstill.bench.measuring.samples import Samples
from potstill.bench.measuring.throughput import is_enough, place, runs_on_processor, throughput_loads
from potstill.bench.report_schema import Load
from potstill.config import BenchConfig

if TYPE_CHECKING:
    from potstill.bench.subjects import Entry


def list_unfinished(
    journal: Samples, entries: "Sequence[Entry]", loads: Sequence[Load], *, config: BenchConfig
) -> list[str]:
    """Return a phrase for everything that is still to be measured; what failed is finished."""
    keys = [entry.key for entry in entries if journal.get("failure", entry.key, "load", "") is None]
    found = list(_rounds(journal, keys, loads, config=config))
    found += [f"memory of {key}" for key in keys if not _is_done(journal, key, "memory", least=1)]
    if config.cold_starts:
        starts = config.cold_starts
        found += [f"cold start of {key}" for key in keys if not _is_done(journal, key, "cold start", least=starts)]
    for load in throughput_loads(config) if keys else ():
        for callers in dict.fromkeys(config.callers):
            if not is_enough(journal.parts("throughput", str(load), callers).values()):
                found.append(f"throughput at {place(load, callers)}")
    if config.thread_scaling and len(thread_counts(machine.available_cores())) > 1:
        rows = [entry.key for entry in entries if entry.key in keys and runs_on_processor(entry)]
        found += [f"thread scaling of {key}" for key in rows if len(journal.parts("scaling", key)) < SCALING_ROUNDS]
    return found


def _rounds(journal: Samples, keys: Sequence[str], loads: Sequence[Load], *, config: BenchConfig) -> Iterable[str]:
    for load in loads:
        made, wanted = len(kept_rounds(journal, load)), wanted_rounds(journal, load, config=config)
        if made < wanted and not all(is_lost(journal, key, load) for key in keys):
            yield f"latency at {load}: {made} of {wanted} rounds"


def _is_done(journal: Samples, key: str, stage: str, *, least: int) -> bool:
    return len(journal.parts(stage, key)) >= least or journal.get("failure", key, stage, "") is not None
